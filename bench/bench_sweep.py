"""The sweep engine against its definition and TransformerLens: every head alone, zero ablation, losses and effects.

TransformerLens is no dependency; lens_sweep.py says how to install it. It and the definition run the whole model once
for each head. "sliced" gathers the wanted rows of the residual stream before it unembeds them, as a careful user does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import harness
import lens_sweep
import torch
from baselines import module_or_none
from harness import Candidate, Case, Inputs, Maker, Options
from torch import Tensor

NAME = "sweep"
MEMORY = "2GiB"  # the engine's budget, weights aside
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
    if options.device == "cuda":
        found += [case(D, "all", options), case(E, "all", options), case(E, "paper", options)]
    return found


def case(
    size: Size, positions: str, options: Options, mode: str = PATTERN_PRESERVING, rounds: int | None = None
) -> Case:
    """One sweep.

    Args:
        size: of the model and the batch.
        positions: "all", or "paper": a random one in each example, and 50 and 500 scaled to the context.
        options: of the run.
        mode: an ablation mode's name.
        rounds: see `Case`; on CUDA no sweep takes so long that it matters.
    """
    if options.quick:
        size = replace(size, layers=2, width=16, heads=2, context=12, vocab=23, batch=2)
    frozen, whole = mode == PATTERN_PRESERVING, positions == "all"
    rounds = rounds if options.device == "cpu" else None
    rows = size.context if whole else 3
    no_model, no_lens = missing(), missing() or lens_sweep.missing()

    def transformer_lens(sliced: bool) -> Callable[[Inputs], Any]:
        return lambda x: lens_sweep.sweep(x.lens, x.inputs, x.targets, x.rows, sliced=sliced, freeze=frozen)

    no_kernel = harness.not_built("frozen_attention", options.device)
    candidates = [
        Candidate("ours", lambda x: engine(x, mode), missing=no_model or no_kernel),
        # at few rows it is the same call as at all of them: its peak memory is measured there
        Candidate("TransformerLens", transformer_lens(sliced=False), memory=whole, missing=no_lens),
        Candidate("TransformerLens sliced", transformer_lens(sliced=True), missing=no_lens),
        Candidate("reference", lambda x: definition(x, mode), memory=rounds != 1, missing=no_model),
    ]
    return Case(
        shape=f"{size} {positions} {mode}",
        dtype=torch.float32,
        make=lambda maker: Inputs() if no_model else make(maker, size, positions, with_lens=not no_lens),
        candidates=[c for c in candidates if not (whole and c.name.endswith("sliced"))],
        flops=necessary_flops(size, rows, frozen),
        bytes=4.0 * (size.parameters + (1 + size.layers * size.heads) * size.batch * rows),
        rounds=rounds,
    )


def missing() -> str:
    """Why there are no models here; empty if there are."""
    return "" if module_or_none("icl_fast.measure") else "icl_fast.measure needs packages that are not here"


def engine(x: Inputs, mode: str) -> tuple[Tensor, Tensor]:
    """The engine, planning included. Imported here: without it the other candidates run all the same."""
    from icl_fast.measure.ablation import AblationMode
    from icl_fast.measure.engine import ablation_effects
    from icl_fast.measure.schedule import make_schedule

    (n, length), parsed = x.inputs.shape, AblationMode.parse(mode)
    plan = make_schedule(
        x.model.config,
        examples=n,
        context=length,
        rows=x.rows.shape[1],
        ablations=x.ablations,
        mode=parsed,
        memory=MEMORY,
        dtype=torch.float32,
    )
    base, effects = ablation_effects(x.model, x.inputs, x.targets, x.rows, x.ablations, parsed, plan=plan)
    return base, effects


def definition(x: Inputs, mode: str) -> tuple[Tensor, Tensor]:
    """By interventions; its losses are those of the fused `linear_cross_entropy`."""
    from icl_fast.measure.ablation import AblationMode, ablated_losses

    base, *ablated = ablated_losses(x.model, x.inputs, x.targets, x.rows, x.ablations, AblationMode.parse(mode))
    return base, torch.stack(ablated) - base


def make(maker: Maker, size: Size, positions: str, with_lens: bool) -> Inputs:
    """A model whose heads matter, so that effects stand well above rounding: peaked attention, large outputs."""
    from icl_fast.measure.plan import parse_positions
    from icl_fast.measure.targets import parse_targets
    from icl_fast.models import Transformer, TransformerConfig

    config = TransformerConfig(
        layers=size.layers,
        width=size.width,
        heads=size.heads,
        vocab=size.vocab,
        context=size.context,
        mlp=size.mlp,
        position="shortformer",
    )
    model = Transformer(config).to(maker.device).requires_grad_(False)
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
        ablations=parse_targets("all", config),
    )


def necessary_flops(size: Size, rows: int, frozen: bool) -> float:
    """Of a sweep that computes once what is equal, in delta form, with the last layer's heads at low rank (`unembed`).

    Raises:
        ValueError: rows are few, and the model is not of two layers of attention.
    """
    n, c, h, t = size.batch, size.width, size.heads, size.context
    projection = 2.0 * n * t * c * c  # of all tokens, C x C
    mix = 1.0 * n * t * t * c  # scores, or patterns times values, of all heads: half of each square is masked
    mlp = 8 * projection if size.mlp else 0.0
    layer = 4 * projection + 2 * mix + mlp
    if rows == t:
        again = 2 * projection + mix + mlp if frozen else layer  # in every layer above the one ablated
        removals = size.layers if size.mlp else size.layers - 1  # each: what every head wrote, and the MLP without it
        attention = size.layers * layer + h * sum(range(size.layers)) * again + removals * (projection + h * mlp)
    elif size.layers == 2 and frozen and not size.mlp:
        projection_at_rows, mix_at_rows = projection * rows / t, 1.0 * n * rows * t * c
        last = 2 * projection + 2 * projection_at_rows + 2 * mix_at_rows  # keys and values of all tokens
        # what a head below adds to a row is a sum over sources of its z (width D), then taken through V and O
        each = mix_at_rows + (1 + 1 / h) * projection_at_rows
        attention = layer + projection + last + h * each
    else:
        raise ValueError(f"no count of operations for {rows} rows of {size}")
    return attention + unembed_flops(size, n * rows)


def unembed_flops(size: Size, rows: int) -> float:
    """Of the logits at `rows` rows in all, whole and ablated.

    Without a head of the last layer of an attention-only model they are either a product of their own, or a rank-D
    update of the shared ones, for which every head's output matrix goes through the unembedding first.
    """
    product, heads = 2.0 * rows * size.width * size.vocab, size.layers * size.heads
    if size.mlp:
        return (1 + heads) * product
    low_rank = product + 2.0 * size.width**2 * size.vocab
    return (1 + heads - size.heads) * product + min(size.heads * product, low_rank)


if __name__ == "__main__":
    sys.exit(harness.main(NAME, cases, __file__))
