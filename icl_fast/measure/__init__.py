"""Everything read off one model: head scores, circuits, attributions, ablations, their sweep over a run's snapshots."""

from icl_fast.measure.ablation import AblationMode
from icl_fast.measure.attribution import Attribution, logit_attribution
from icl_fast.measure.circuits import composition_scores, copying_eigenvalue_score, copying_eigenvalues, qk_trace
from icl_fast.measure.evaluate import SnapshotProgress, evaluate, measure_snapshots
from icl_fast.measure.head_scores import (
    copying,
    copying_scores,
    distinct_random_tokens,
    prefix_matching,
    prefix_matching_scores,
    previous_token,
    previous_token_scores,
    repeated_random_tokens,
)
from icl_fast.measure.parts import ablate
from icl_fast.measure.reading import (
    TokenisedText,
    head_views,
    template_attention,
    text_dataset,
    token_losses,
    tokenise,
)
from icl_fast.measure.snapshots import evaluation_tokens, find_snapshots, missing_snapshots, readable_snapshots
from icl_fast.measure.sweep import SweepProgress, plan_sweep, sweep
from icl_fast.measure.targets import Target, parse_targets
from icl_fast.measure.workspace import OtherResults, open_results, save_results

__all__ = [
    "AblationMode",
    "Attribution",
    "OtherResults",
    "SnapshotProgress",
    "SweepProgress",
    "Target",
    "TokenisedText",
    "ablate",
    "composition_scores",
    "copying",
    "copying_eigenvalue_score",
    "copying_eigenvalues",
    "copying_scores",
    "distinct_random_tokens",
    "evaluate",
    "evaluation_tokens",
    "find_snapshots",
    "head_views",
    "logit_attribution",
    "measure_snapshots",
    "missing_snapshots",
    "open_results",
    "parse_targets",
    "plan_sweep",
    "prefix_matching",
    "prefix_matching_scores",
    "previous_token",
    "previous_token_scores",
    "qk_trace",
    "readable_snapshots",
    "repeated_random_tokens",
    "save_results",
    "sweep",
    "template_attention",
    "text_dataset",
    "token_losses",
    "tokenise",
]
