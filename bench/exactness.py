"""How exact the sweep's engine is: against the definition, for every architecture and mode, and in bfloat16.

    python bench/exactness.py [--ckpt RUN ...] [--json FILE]

First table: random models whose heads matter, every single head, two sets over layers and one complement, all positions
and three. Differences are of per-token losses in nats, to the definition computed in float64 from the same weights;
"relative" is the root mean square of the difference over that of the effect, of the ablation where it is worst. Beside
the engine in float32 stands the definition in float32.

Second table, for each --ckpt: the last snapshot of a run on 64 examples, the mean effects of its heads, weakest first.
Errors with products of bfloat16, and in bfloat16 throughout by the engine and by the definition, relative to the mean
effect in float64, and of the first also to its standard error.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from report import environment
from rich import box
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from icl_fast.data import load_text
from icl_fast.files import to_json
from icl_fast.measure.ablation.definition import ablated_losses
from icl_fast.measure.ablation.engine import ablation_effects
from icl_fast.measure.ablation.modes import MODES, AblationMode
from icl_fast.measure.ablation.names import Ablation, parse_ablations
from icl_fast.measure.ablation.products import Products
from icl_fast.measure.ablation.schedule import make_schedule
from icl_fast.models import Transformer, TransformerConfig
from icl_fast.runs import Run

N, T, V = 4, 64, 257
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "2 layers": {},
    "2 layers, windows": {"windows": [[None, 8, 16, None], [5, None, None, 30]]},
    "2 layers, smeared, rotary": {"key": "smeared", "position": "rotary"},
    "3 layers": {"layers": 3, "position": "learned"},
    "3 layers, MLP": {"layers": 3, "mlp": True, "position": "sinusoidal"},
    "3 layers, RMSNorm, gated MLP": {
        **{"layers": 3, "mlp": True, "position": "rotary"},
        **{"norm": "rms", "gated": True, "activation": "silu"},
    },
}
KINDS = ("float64", "float32", "bfloat16 products", "definition float32")
EVERY_MODE = [*MODES, "q+k", "v+k"]


def losses(
    model: Transformer, tokens: tuple[Tensor, Tensor], rows: Tensor, ablations: Sequence[Ablation], mode: AblationMode
) -> Tensor:
    """Effects [A,n,R] by the definition."""
    base, *ablated = ablated_losses(model, *tokens, rows, ablations, mode)
    return torch.stack(ablated) - base


def engine(
    model: Transformer,
    tokens: tuple[Tensor, Tensor],
    rows: Tensor,
    ablations: Sequence[Ablation],
    mode: AblationMode,
    rounded: bool = False,
) -> tuple[Tensor, str]:
    """Effects [A,n,R] by the engine, its products rounded or not, and the methods it took."""
    schedule = make_schedule(
        model.config,
        examples=len(rows),
        context=tokens[0].shape[1],
        rows=rows.shape[1],
        ablations=ablations,
        mode=mode,
        memory=2 << 30,
        itemsize=model.embed.weight.dtype.itemsize,
    )
    products = Products(model, rounded=rounded)
    _, effects = ablation_effects(model, *tokens, rows, ablations, mode, schedule=schedule, products=products)
    return effects, ", ".join(sorted(set(schedule.methods)))


def worst(effects: Tensor, truth: Tensor) -> float:
    """Of all ablations: rms of the difference over rms of the effect, 0 for an effect of nothing."""
    error = (effects - truth).square().mean((1, 2)).sqrt()
    size = truth.square().mean((1, 2)).sqrt()
    return float((error / size).nan_to_num(0.0).max())


def random_models() -> list[dict[str, Any]]:
    found = []
    every = torch.arange(T).expand(N, -1)
    few = torch.stack([torch.tensor([3, 60, i]) for i in (0, 17, 33, 63)])
    for (name, shape), mode_name in product(ARCHITECTURES.items(), EVERY_MODE):
        torch.manual_seed(0)
        config = TransformerConfig(**{"layers": 2, "width": 64, "heads": 4, "vocab": V, "context": T, **shape})
        model = Transformer(config).double().requires_grad_(False)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(1.5)
        tokens = torch.randint(V, (N, T)), torch.randint(V, (N, T))
        last, mode = config.layers - 1, AblationMode.parse(mode_name)
        ablations = parse_ablations(f"all,0.0+{last}.1,0.*,~0.0", config)
        for positions, rows in (("all", every), ("few", few)):
            truth = losses(model, tokens, rows, ablations, mode)
            double, methods = engine(model, tokens, rows, ablations, mode)
            single = copy.deepcopy(model).float()
            fast, _ = engine(single, tokens, rows, ablations, mode)
            rounded, _ = engine(single, tokens, rows, ablations, mode, rounded=True)
            by_definition = losses(single, tokens, rows, ablations, mode)
            row: dict[str, Any] = {"model": name, "mode": mode_name, "positions": positions, "methods": methods}
            kinds = dict(zip(KINDS, (double, fast, rounded, by_definition), strict=True))
            for kind, effects in kinds.items():
                difference = (effects - truth).abs()
                row[kind] = [float(difference.max()), float(difference.mean()), worst(effects, truth)]
            found.append(row)
    return found


def bfloat16(run: Path) -> list[dict[str, Any]]:
    folder = Run(run)
    model = folder.load_snapshot(folder.snapshot_steps()[-1]).model.double().requires_grad_(False)
    evaluation = load_text(folder.text_config.data).evaluation()
    tokens = evaluation.inputs[:64], evaluation.targets[:64]
    rows = torch.arange(tokens[0].shape[1]).expand(len(tokens[0]), -1)
    ablations, mode = parse_ablations("all", model.config), AblationMode.parse("pattern-preserving")
    effects = losses(model, tokens, rows, ablations, mode)
    truth, sem = effects.mean((1, 2)), effects.flatten(1).std(1) / effects[0].numel() ** 0.5
    narrow = copy.deepcopy(model).bfloat16()
    found = {
        "products": engine(model.float(), tokens, rows, ablations, mode, rounded=True)[0],
        "engine": engine(narrow, tokens, rows, ablations, mode)[0],
        "definition": losses(narrow, tokens, rows, ablations, mode),
    }
    errors = {name: (values.double().mean((1, 2)) - truth).abs() for name, values in found.items()}
    return [
        {
            "run": run.name,
            "head": ablations[index].name,
            "mean effect": float(truth[index]),
            "standard error": float(sem[index]),
            **{name: float(error[index] / truth[index].abs()) for name, error in errors.items()},
            "products, of the standard error": float(errors["products"][index] / sem[index]),
        }
        for index in truth.abs().argsort().tolist()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, nargs="*", default=[], help="run folders, for the table in bfloat16")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {"environment": environment({"device": "cpu"}), "random models": random_models(), "bfloat16": []}
    console = Console(width=220, soft_wrap=True)
    columns = [Column(what, no_wrap=True) for kind in KINDS for what in (f"{kind}: max", "mean", "rel")]
    title = "differences to the definition in float64: largest, mean, and relative to the effect"
    table = Table("model", "mode", "positions", "methods", *columns, title=title, box=box.SIMPLE, pad_edge=False)
    for row in results["random models"]:
        numbers = [f"{number:.0e}" for kind in KINDS for number in row[kind]]
        table.add_row(row["model"], row["mode"], row["positions"], row["methods"], *numbers)
    console.print(table)
    for ckpt in options.ckpt:
        rows = bfloat16(ckpt)
        results["bfloat16"] += rows
        shares = ("products", "products, of the standard error", "engine", "definition")
        table = Table("head", "mean effect", *shares, title=f"bfloat16, relative error of mean effects: {ckpt.name}")
        for row in rows:
            table.add_row(row["head"], f"{row['mean effect']:+.2e}", *(f"{row[name]:.3%}" for name in shares))
        console.print(table)
    if options.json is not None:
        options.json.write_text(to_json(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
