"""Everything read off one model: ablations, heads, strategies; what is not here is reached through its room.

`icl_fast.measure.ablation`, `icl_fast.measure.heads` and `icl_fast.measure.exemplar` hold the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from icl_fast.extras import on_use

if TYPE_CHECKING:
    from icl_fast.measure.ablation import AblationOptions
    from icl_fast.measure.ablation.ablate import ablate
    from icl_fast.measure.ablation.sweep import plan_sweep, sweep
    from icl_fast.measure.exemplar.ablation_sweep import measure_ablations
    from icl_fast.measure.exemplar.measured_run import measure_strategies, measure_wiring, open_measured
    from icl_fast.measure.heads import (
        composition_scores,
        copying_eigenvalue_score,
        copying_eigenvalues,
        copying_scores,
        logit_attribution,
        measure_idealised,
        measure_templates,
        prefix_matching_scores,
        previous_token_scores,
        qk_trace,
    )
    from icl_fast.measure.heads.evaluate import evaluate
    from icl_fast.measure.loaded import LoadedModel, ModelOutput, load
    from icl_fast.measure.store import OtherResults, open_results, save_results
    from icl_fast.measure.store_files import DamagedResults

# ablations
__all__ = ["AblationOptions", "ablate", "plan_sweep", "sweep"]
# scores and circuits of heads
__all__ += ["copying_scores", "evaluate", "prefix_matching_scores", "previous_token_scores"]
__all__ += ["composition_scores", "copying_eigenvalue_score", "copying_eigenvalues", "qk_trace"]
__all__ += ["logit_attribution", "measure_idealised", "measure_templates"]
# exemplar runs
__all__ += ["measure_ablations", "measure_strategies", "measure_wiring", "open_measured"]
# a model to work with
__all__ += ["LoadedModel", "ModelOutput", "load"]
# results on disk
__all__ += ["DamagedResults", "OtherResults", "open_results", "save_results"]

_HOMES = {
    **dict.fromkeys(__all__, "heads"),
    **dict.fromkeys(("AblationOptions", "ablate", "plan_sweep", "sweep"), "ablation"),
    **dict.fromkeys(("measure_strategies", "measure_wiring", "open_measured"), "exemplar.measured_run"),
    **dict.fromkeys(("OtherResults", "open_results", "save_results"), "store"),
    **dict.fromkeys(("LoadedModel", "ModelOutput", "load"), "loaded"),
    "measure_ablations": "exemplar.ablation_sweep",
    "DamagedResults": "store_files",
}
__getattr__ = on_use(__name__, _HOMES)  # training needs none of these
