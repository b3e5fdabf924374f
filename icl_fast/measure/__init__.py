"""Everything read off one model: head scores, circuits, attributions, ablations, their sweep over a run's snapshots."""

from icl_fast.measure.ablation.definition import AblationMode
from icl_fast.measure.ablation.names import Target, parse_targets
from icl_fast.measure.ablation.parts import ablate
from icl_fast.measure.ablation.sweep import SweepProgress, plan_sweep, sweep
from icl_fast.measure.exemplar.ablation import (
    composition,
    cut_output_connections,
    embedding_path,
    keep_one_head,
    knock_out_each_head,
)
from icl_fast.measure.exemplar.measured_run import MeasuredRun, measure_strategies, measure_wiring, open_measured
from icl_fast.measure.exemplar.passes import SecondPass, answers_again, means_again
from icl_fast.measure.exemplar.progress import Transplant, measure_over_snapshots
from icl_fast.measure.exemplar.single_heads import attention_weight_curve, residual_heads, single_heads
from icl_fast.measure.exemplar.superposition import attention_deltas, temperature_curves
from icl_fast.measure.exemplar.wiring import remove_sets, wiring_map
from icl_fast.measure.heads.attribution import Attribution, logit_attribution
from icl_fast.measure.heads.circuits import composition_scores, copying_eigenvalue_score, copying_eigenvalues, qk_trace
from icl_fast.measure.heads.evaluate import evaluate
from icl_fast.measure.heads.reading import (
    TokenisedText,
    head_views,
    template_attention,
    text_dataset,
    token_losses,
    tokenise,
)
from icl_fast.measure.heads.scores import (
    copying,
    copying_scores,
    distinct_random_tokens,
    prefix_matching,
    prefix_matching_scores,
    previous_token,
    previous_token_scores,
    repeated_random_tokens,
)
from icl_fast.measure.over_snapshots import SnapshotProgress, measure_snapshots
from icl_fast.measure.store import OtherResults, open_results, save_results

__all__ = [
    "AblationMode",
    "Attribution",
    "MeasuredRun",
    "OtherResults",
    "SecondPass",
    "SnapshotProgress",
    "SweepProgress",
    "Target",
    "TokenisedText",
    "Transplant",
    "ablate",
    "answers_again",
    "attention_deltas",
    "attention_weight_curve",
    "composition",
    "composition_scores",
    "copying",
    "copying_eigenvalue_score",
    "copying_eigenvalues",
    "copying_scores",
    "cut_output_connections",
    "distinct_random_tokens",
    "embedding_path",
    "evaluate",
    "head_views",
    "keep_one_head",
    "knock_out_each_head",
    "logit_attribution",
    "means_again",
    "measure_over_snapshots",
    "measure_snapshots",
    "measure_strategies",
    "measure_wiring",
    "open_measured",
    "open_results",
    "parse_targets",
    "plan_sweep",
    "prefix_matching",
    "prefix_matching_scores",
    "previous_token",
    "previous_token_scores",
    "qk_trace",
    "remove_sets",
    "repeated_random_tokens",
    "residual_heads",
    "save_results",
    "single_heads",
    "sweep",
    "temperature_curves",
    "template_attention",
    "text_dataset",
    "token_losses",
    "tokenise",
    "wiring_map",
]
