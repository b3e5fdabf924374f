"""Everything read off one model: token losses, head scores, ablations and their sweep over a run's snapshots."""

from icl_fast.measure.ablation import AblationMode
from icl_fast.measure.head_scores import prefix_matching, prefix_matching_scores, repeated_random_tokens
from icl_fast.measure.parts import ablate
from icl_fast.measure.sweep import SweepProgress, find_snapshots, open_results, plan_sweep, sweep
from icl_fast.measure.targets import Target, parse_targets

__all__ = [
    "AblationMode",
    "SweepProgress",
    "Target",
    "ablate",
    "find_snapshots",
    "open_results",
    "parse_targets",
    "plan_sweep",
    "prefix_matching",
    "prefix_matching_scores",
    "repeated_random_tokens",
    "sweep",
]
