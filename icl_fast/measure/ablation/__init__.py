"""Ablations: heads removed from a model, by definition and fast, and swept over snapshots."""

from icl_fast.measure.ablation.ablate import ablate
from icl_fast.measure.ablation.modes import MODES, AblationMode
from icl_fast.measure.ablation.names import UNABLATED, Ablation, parse_ablations
from icl_fast.measure.ablation.options import AblationOptions
from icl_fast.measure.ablation.sweep import PlannedSweep, SweepProgress, plan_sweep, sweep

# the calls
__all__ = ["ablate", "plan_sweep", "sweep"]
# what they are asked, and what they tell
__all__ += ["AblationOptions", "PlannedSweep", "SweepProgress"]
# what is removed, and what is preserved
__all__ += ["MODES", "UNABLATED", "Ablation", "AblationMode", "parse_ablations"]
