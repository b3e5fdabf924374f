"""The two tensor-product models of Singh's thesis: phase changes (4.4.2) and strategy coopetition (5.7)."""

from icl_fast.toy.coopetition import Setting, add_flow, diagram, settings_grid, simulate_settings
from icl_fast.toy.models import Coopetition, TensorProduct, explicit_loss
from icl_fast.toy.phase_change import plateaus, saddle, simulate_clamps, vector_names
from icl_fast.toy.runs import Runs, draw_runs, join_runs
from icl_fast.toy.simulate import Trajectory, gradient_flow, record_at, simulate, simulate_parts
from icl_fast.toy.summary import RULES, plateau_length, summarise

__all__ = [
    "RULES",
    "Coopetition",
    "Runs",
    "Setting",
    "TensorProduct",
    "Trajectory",
    "add_flow",
    "diagram",
    "draw_runs",
    "explicit_loss",
    "gradient_flow",
    "join_runs",
    "plateau_length",
    "plateaus",
    "record_at",
    "saddle",
    "settings_grid",
    "simulate",
    "simulate_clamps",
    "simulate_parts",
    "simulate_settings",
    "summarise",
    "vector_names",
]
