"""Everything that is computed from measurements of many snapshots."""

from icl_fast.analysis.ablation_changes import ablation_changes
from icl_fast.analysis.ablation_comparison import compare_ablations
from icl_fast.analysis.before_after import attribute_heads, attribute_icl, before_after_attribution, before_after_vector
from icl_fast.analysis.curiosities import Curiosity, find_curiosities
from icl_fast.analysis.heads import (
    Correlation,
    HeadTypes,
    JointScores,
    Thresholds,
    correlate,
    head_formation,
    head_types,
    heads_of_interest,
    joint_scores,
    opaque_heads,
)
from icl_fast.analysis.icl_score import (
    compare_by_position,
    icl_score,
    icl_score_variants,
    loss_by_log_position,
    loss_by_log_tokens,
    loss_heatmap,
)
from icl_fast.analysis.learning import Transience, learning_time, transience
from icl_fast.analysis.loss_bump import LossBump, gained_inside, loss_bump
from icl_fast.analysis.pca import JointPCA, joint_pca
from icl_fast.analysis.phase_change import PhaseChange, find_phase_change, phase_change_of

__all__ = [
    "Correlation",
    "Curiosity",
    "HeadTypes",
    "JointPCA",
    "JointScores",
    "LossBump",
    "PhaseChange",
    "Thresholds",
    "Transience",
    "ablation_changes",
    "attribute_heads",
    "attribute_icl",
    "before_after_attribution",
    "before_after_vector",
    "compare_ablations",
    "compare_by_position",
    "correlate",
    "find_curiosities",
    "find_phase_change",
    "gained_inside",
    "head_formation",
    "head_types",
    "heads_of_interest",
    "icl_score",
    "icl_score_variants",
    "joint_pca",
    "joint_scores",
    "learning_time",
    "loss_bump",
    "loss_by_log_position",
    "loss_by_log_tokens",
    "loss_heatmap",
    "opaque_heads",
    "phase_change_of",
    "transience",
]
