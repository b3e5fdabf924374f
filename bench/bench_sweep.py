"""The sweep engine against its definition and TransformerLens: every head alone, zero ablation, losses and effects.

TransformerLens is no dependency; lens_sweep.py says how to install it. It and the definition run the whole model once
for each head. "sliced" gathers the wanted rows of the residual stream before it unembeds them, as a careful user does.

The cases in bfloat16 on a CPU: ours is what `--dtype auto` takes, products of bfloat16 with float32 streams, and packs
its weights in the time; TransformerLens computes in bfloat16, whose effects are too far off to be compared, and in
float32. All have the same weights, numbers of bfloat16; the reference is our engine in float32.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import harness
import lens_sweep
import torch
from baselines import module_or_none
from harness import Candidate, Case, Inputs, Maker, Options
from torch import Tensor

NAME = "sweep"
MEMORY = 2 << 30  # the engine's budget in bytes on a CPU, weights aside
GPU_SHARE = 0.4  # and on a GPU, of what was free there at first: three sets of inputs and the definition need some too
# An effect is a difference of losses that are some 30 times as large. In bfloat16 the definition is 3% (root mean
# square) from what it is in float32 with the same weights, and the engine 1.5%, at sizes like these on a CPU.
HALF_TOLERANCE = 6e-2
PRODUCTS_TOLERANCE = 1e-2  # of products of bfloat16 it is 0.3%
PATTERN_PRESERVING, FULL = "pattern-preserving", "full"


@dataclass(frozen=True)
class Size:
    """A model and a batch: layers, C, H, T, V, B; with MLPs or attention-only."""

    name: str
    layers: int
    width: int
    heads: int
    context: int
    vocab: int
    batch: int
    mlp: bool = False

    @property
    def parameters(self) -> int:
        """Of the matrices and tables."""
        block = (12 if self.mlp else 4) * self.width**2
        return self.layers * block + (2 * self.vocab + self.context) * self.width

    def config(self) -> Any:
        """The model's `TransformerConfig`."""
        from icl_fast.models import TransformerConfig

        return TransformerConfig(
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            vocab=self.vocab,
            context=self.context,
            mlp=self.mlp,
            position="shortformer",
        )

    def __str__(self) -> str:
        shape = f"L={self.layers} C={self.width} H={self.heads} T={self.context} V={self.vocab} B={self.batch}"
        return f"{self.name}: {shape}{' MLP' if self.mlp else ''}"


A = Size("A", 2, 256, 8, 256, 4096, 8)
B = Size("B", 2, 768, 12, 512, 50257, 8)
C = Size("C", 4, 256, 8, 256, 4096, 8, mlp=True)
D = Size("D", 6, 768, 12, 512, 50257, 8, mlp=True)
E = Size("E", 2, 768, 12, 512, 65536, 100)  # the paper's model; a hundredth of its 10,000 examples


def cases(options: Options) -> list[Case]:
    found = [
        case(A, "all", options),
        case(A, "paper", options),
        case(C, "all", options, rounds=3),
        case(C, "all", options, mode=FULL, rounds=3),
        case(B, "paper", options, rounds=2),
        case(B, "all", options, rounds=1),
    ]
    if options.device == "cpu":
        found += [
            products_case(A, "all", options),
            products_case(A, "paper", options),
            products_case(B, "paper", options, rounds=2),
            products_case(B, "all", options, rounds=1),
        ]
    if options.device == "cuda":
        dtypes = (torch.bfloat16, torch.float32)
        found = [
            *(case(E, positions, options, dtype=dtype) for dtype in dtypes for positions in ("all", "paper")),
            *found,
            case(D, "all", options),
        ]
    return found


def case(
    size: Size,
    positions: str,
    options: Options,
    mode: str = PATTERN_PRESERVING,
    rounds: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """One sweep.

    Args:
        size: of the model and the batch.
        positions: "all", or "paper": a random one in each example, and 50 and 500 scaled to the context.
        options: of the run.
        mode: an ablation mode's name.
        rounds: see `Case`; on CUDA two.
        dtype: of the model.
    """
    headline = size == E or (size == A and options.device == "cpu")
    if options.quick:
        size = replace(size, layers=2, width=16, heads=2, context=12, vocab=23, batch=2)
    frozen, whole = mode == PATTERN_PRESERVING, positions == "all"
    rounds = rounds if options.device == "cpu" else 2
    rows = size.context if whole else 3
    no_model, no_lens = missing(), missing() or lens_sweep.missing()

    def transformer_lens(sliced: bool) -> Callable[[Inputs], Any]:
        return lambda x: lens_sweep.sweep(x.lens, x.inputs, x.targets, x.rows, sliced=sliced, freeze=frozen)

    # in bfloat16 it rounds so much more that its effects are 9% (root mean square) from the definition's
    right = dtype == torch.float32
    planned = None if no_model else plan(size, rows, mode, options.device, dtype)
    no_kernel = harness.not_built("frozen_attention", options.device)
    candidates = [
        Candidate("ours", lambda x: engine(x, size, mode), missing=no_model or no_kernel),
        # at few rows it is the same call as at all of them: its peak memory is measured there
        Candidate("TransformerLens", transformer_lens(sliced=False), compare=right, memory=whole, missing=no_lens),
        Candidate("TransformerLens sliced", transformer_lens(sliced=True), compare=right, missing=no_lens),
        Candidate("reference", lambda x: definition(x, mode), memory=rounds != 1, missing=no_model),
    ]
    return Case(
        shape=f"{size} {positions} {mode}",
        dtype=dtype,
        make=lambda maker: Inputs() if no_model else make(maker, size, positions, with_lens=not no_lens),
        candidates=[c for c in candidates if not (whole and c.name.endswith("sliced"))],
        flops=0.0 if planned is None else planned.flops * size.batch / planned.examples,
        bytes=float(dtype.itemsize * size.parameters + 4 * (1 + size.layers * size.heads) * size.batch * rows),
        rounds=rounds,
        headline=headline,
        sets=1,
        tolerance=HALF_TOLERANCE if dtype == torch.bfloat16 else None,
    )


def products_case(size: Size, positions: str, options: Options, rounds: int | None = None) -> Case:
    """One sweep with products of bfloat16; see the module's docstring."""
    like = case(size, positions, options, rounds=rounds)
    if options.quick:
        size = replace(size, layers=2, width=16, heads=2, context=12, vocab=23, batch=2)
    no_model, no_lens = missing(), missing() or lens_sweep.missing()
    sliced = positions != "all"

    def prepare(maker: Maker) -> Inputs:
        narrow = make(maker, size, positions, with_lens=not no_lens)
        model = copy.deepcopy(narrow.model).float()
        lens32 = None if no_lens else lens_sweep.to_transformer_lens(model)
        return Inputs(**{**vars(narrow), "model": model, "lens32": lens32})

    def lens(name: str) -> Callable[[Inputs], Any]:
        return lambda x: lens_sweep.sweep(getattr(x, name), x.inputs, x.targets, x.rows, sliced=sliced, freeze=True)

    from icl_fast.measure.ablation.exactness import LEAST_SHARE

    planned = plan(size, size.context if positions == "all" else 3, PATTERN_PRESERVING, "cpu")
    of = " sliced" if sliced else ""
    candidates = [
        Candidate(
            "ours",
            lambda x: engine(x, size, PATTERN_PRESERVING, rounded=planned.carried_share >= LEAST_SHARE),
            missing=no_model,
        ),
        Candidate(f"TransformerLens{of}", lens("lens"), compare=False, missing=no_lens),
        Candidate(f"TransformerLens{of} float32", lens("lens32"), missing=no_lens),
        Candidate("reference", lambda x: engine(x, size, PATTERN_PRESERVING), missing=no_model),
    ]
    return replace(
        like,
        dtype=torch.bfloat16,
        make=lambda maker: Inputs() if no_model else prepare(maker),
        candidates=candidates,
        tolerance=PRODUCTS_TOLERANCE,
    )


def missing() -> str:
    """Why there are no models here; empty if there are."""
    return "" if module_or_none("icl_fast.measure") else "icl_fast.measure needs packages that are not here"


@cache
def memory(device: str) -> int:
    """The engine's budget in bytes."""
    if device == "cuda" and torch.cuda.is_available():
        return int(GPU_SHARE * torch.cuda.mem_get_info()[0])
    return MEMORY


def plan(size: Size, rows: int, mode: str, device: str, dtype: torch.dtype = torch.float32) -> Any:
    """The engine's schedule. Imported here: without the engine's packages the bench says so and goes on."""
    from icl_fast.measure.ablation.modes import AblationMode
    from icl_fast.measure.ablation.names import parse_ablations
    from icl_fast.measure.ablation.schedule import make_schedule

    config = size.config()
    return make_schedule(
        config,
        examples=size.batch,
        context=size.context,
        rows=rows,
        ablations=parse_ablations("all", config),
        mode=AblationMode.parse(mode),
        memory=memory(device),
        itemsize=dtype.itemsize,
        device=device,
    )


def engine(x: Inputs, size: Size, mode: str, *, rounded: bool = False) -> tuple[Tensor, Tensor]:
    """The engine, planning included, and with `rounded` products the packing of weights."""
    from icl_fast.measure.ablation.engine import ablation_effects
    from icl_fast.measure.ablation.modes import AblationMode
    from icl_fast.measure.ablation.products import Products

    schedule = plan(size, x.rows.shape[1], mode, x.rows.device.type, x.model.embed.weight.dtype)
    parsed, products = AblationMode.parse(mode), Products(x.model, rounded=rounded)
    whole = []
    for start in range(0, size.batch, schedule.examples):
        chunk = slice(start, start + schedule.examples)
        inputs = x.inputs[chunk], x.targets[chunk], x.rows[chunk]
        whole.append(ablation_effects(x.model, *inputs, x.ablations, parsed, schedule=schedule, products=products))
    bases, effects = zip(*whole, strict=True)
    return torch.cat(bases), torch.cat(effects, dim=1)


def definition(x: Inputs, mode: str) -> tuple[Tensor, Tensor]:
    """By interventions; its losses are those of the fused `linear_cross_entropy`."""
    from icl_fast.measure.ablation.definition import ablated_losses
    from icl_fast.measure.ablation.modes import AblationMode

    base, *ablated = ablated_losses(x.model, x.inputs, x.targets, x.rows, x.ablations, AblationMode.parse(mode))
    return base, torch.stack(ablated) - base


def make(maker: Maker, size: Size, positions: str, with_lens: bool) -> Inputs:
    """A model whose heads matter, so that effects stand well above rounding: peaked attention, large outputs."""
    from icl_fast.measure.ablation.names import parse_ablations
    from icl_fast.measure.ablation.positions import parse_positions
    from icl_fast.models import Transformer

    config = size.config()
    with torch.device(maker.device):
        model = Transformer(config).to(maker.dtype).requires_grad_(False)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:  # LayerNorms' gains and biases, MLPs' biases
            weight.copy_(("norm" in name and name.endswith("weight")) + maker.normal(*weight.shape, scale=0.1))
        elif name in ("embed.weight", "position.weight"):
            weight.copy_(maker.normal(*weight.shape))
        else:
            weight.copy_(maker.normal(*weight.shape, scale=1.5 * weight.shape[1] ** -0.5))
    tokens = maker.below(size.vocab, size.batch, size.context + 1)
    everywhere = torch.arange(size.context, device=maker.device).expand(size.batch, -1)
    chosen = parse_positions("paper", size.context).rows(1 + maker.below(size.context, size.batch))
    return Inputs(
        model=model,
        lens=lens_sweep.to_transformer_lens(model) if with_lens else None,
        inputs=tokens[:, :-1].contiguous(),
        targets=tokens[:, 1:].contiguous(),
        rows=everywhere if positions == "all" else chosen,
        ablations=parse_ablations("all", config),
    )


if __name__ == "__main__":
    sys.exit(harness.main(NAME, cases, __file__))
