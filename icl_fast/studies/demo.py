"""The demo: three small models, dense snapshots, every head of one knocked out, a verdict by a fixed rule."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import xarray as xr

from icl_fast.analysis import PhaseChange, phase_change_of
from icl_fast.files import atomic_write, locked, to_json
from icl_fast.measure import AblationOptions, open_results, prefix_matching_scores, sweep
from icl_fast.measure.ablation import UNABLATED, SweepProgress
from icl_fast.report.draw.figures import phase_change_figure, save_figure
from icl_fast.runs import Run, load_config
from icl_fast.training import TrainingProgress, train

MODELS = ("one_layer", "two_layer", "one_layer_smeared")
ABLATED = "two_layer"
EXAMPLES = 384
ICL_WINDOW = 13
MEMORY = "128MiB"  # little, because it is faster: the allocator reuses small buffers and pages large ones in anew

ShowTraining = Callable[[str, int], AbstractContextManager[Callable[[TrainingProgress], None]]]
ShowSweep = Callable[[str], AbstractContextManager[Callable[[SweepProgress], None]]]


@dataclass(frozen=True)
class DemoResult:
    """What one seed's demo found: by model its Dataset and verdict (None: too few snapshots); the figure's files."""

    seed: int
    models: dict[str, xr.Dataset]
    changes: dict[str, PhaseChange | None]
    figure: list[Path]


def run_demo(
    configs: str | Path,
    out: str | Path,
    seed: int,
    show_training: ShowTraining,
    show_sweep: ShowSweep,
    *,
    repair: bool = False,
) -> DemoResult:
    """Train, measure, ablate and draw; what is there already from an earlier call is kept, so that it resumes.

    Args:
        configs: a folder with `<model>.yaml` for each of `MODELS`.
        out: where run folders `seed<N>/<model>`, figures and `seed<N>/summary.json` go.
        seed: seed of the initial weights of all three models; the data are the same for all seeds.
        show_training, show_sweep: context managers that show progress (see `icl_fast.cli.progress`).
        repair: whether damaged results are measured again, rather than refused.

    Raises:
        DamagedResults: results that are not as they were written.
        InputError: a config missing or wrong, a run folder that holds another run, another process that is at it,
            the disk full.
    """
    home = Path(out) / f"seed{seed}"
    models: dict[str, xr.Dataset] = {}
    with locked(home / ".lock-demo", f"out: {home}"):
        for name in MODELS:
            config = load_config(Path(configs) / f"{name}.yaml", [f"training.seed={seed}"])
            run = Run(home / name)
            with show_training(name, config.training.steps) as on_step:
                train(config, run.path, resume=run.exists, on_progress=on_step)
            with show_sweep(name) as on_part:
                heads = "all" if name == ABLATED else UNABLATED
                ablation = AblationOptions(heads=heads, icl_window=ICL_WINDOW, memory=MEMORY)
                results = sweep(run.path, ablation, examples=EXAMPLES, repair=repair, on_part=on_part)
            models[name] = open_results(results).assign(prefix_matching=_prefix_matching(run))
        changes = {name: phase_change_of(data, data["prefix_matching"]) for name, data in models.items()}
        figure = save_figure(phase_change_figure(models, changes, ABLATED), home / "phase_change")
        with atomic_write(home / "summary.json") as temporary:
            temporary.write_text(
                to_json({name: change and asdict(change) for name, change in changes.items()}, indent=1)
            )
        return DemoResult(seed, models, changes, figure)


def _prefix_matching(run: Run) -> xr.DataArray:
    steps = run.snapshot_steps()
    scores = torch.stack([prefix_matching_scores(run.load_snapshot(step).model) for step in steps])
    return xr.DataArray(scores.numpy(), dims=("snapshot", "layer_", "head_"), coords={"snapshot": steps})
