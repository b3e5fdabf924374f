"""Ablations of one model as numbers: the plan, the parts that a chunk of examples gives, and the Dataset they make."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.measure.ablation import (
    AblationMode,
    Replacement,
    ablated_losses,
    mean_activations,
    replacement_sites,
)
from icl_fast.measure.plan import Positions, examples_at_a_time, parse_memory, parse_positions
from icl_fast.measure.targets import Target, parse_targets
from icl_fast.models import Transformer, TransformerConfig

UNABLATED = "none"


@dataclass(frozen=True)
class SweepPlan:
    """All that decides a sweep's result. Two sweeps with equal plans give equal bits on one machine."""

    mode: str
    preserve: tuple[str, ...]
    preserve_heads: tuple[tuple[int, int], ...] | None
    replacement: Replacement
    ablations: tuple[Target, ...]
    positions: Positions
    examples: int
    chunk: int
    evaluation: str

    @property
    def ablation_mode(self) -> AblationMode:
        return AblationMode(self.preserve, self.preserve_heads)

    def as_json(self) -> dict[str, Any]:
        """Plain data, equal for equal plans."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


@dataclass(frozen=True)
class EvaluationTokens:
    """What is evaluated on: inputs and targets [N,T], a 1-based random position per example [N], an identity."""

    inputs: Tensor
    targets: Tensor
    random_position: Tensor
    digest: str


def make_plan(
    config: TransformerConfig,
    evaluation: EvaluationTokens,
    *,
    mode: str = "pattern-preserving",
    heads: str = "all",
    positions: str | Sequence[int] = "paper",
    replacement: Replacement = "zero",
    preserve_heads: str | None = None,
    icl_window: int = 1,
    memory: str | int = "2GiB",
) -> SweepPlan:
    """Check everything that a user may ask of a sweep and fix it.

    Raises:
        InputError: any of the arguments is not understood, is not in this model, or does not fit the memory.
    """
    if replacement not in ("zero", "mean"):
        raise InputError(f"replacement: {replacement!r} is neither zero nor mean")
    count, context = evaluation.inputs.shape
    if count == 0:
        raise InputError("examples: there is nothing to evaluate on; give at least 1 example")
    chosen = None
    if preserve_heads is not None:
        chosen = tuple(sorted({head for target in parse_targets(preserve_heads, config) for head in target.heads}))
    ablation_mode = AblationMode.parse(mode, chosen)
    ablations = tuple(parse_targets(heads, config))
    where = parse_positions(positions, context, icl_window)
    rows = len(where.listed) + where.example
    recorded = [*ablation_mode.sites(config), *(replacement_sites(ablations) if replacement == "mean" else [])]
    fitting = examples_at_a_time(config, context, rows, recorded, parse_memory(memory))
    return SweepPlan(
        mode=mode,
        preserve=ablation_mode.preserve,
        preserve_heads=ablation_mode.heads,
        replacement=replacement,
        ablations=ablations,
        positions=where,
        examples=count,
        chunk=min(fitting, count),
        evaluation=evaluation.digest,
    )


@dataclass
class Part:
    """The sums of one chunk of examples of one snapshot; index 0 of A+1 is the un-ablated model."""

    sums: np.ndarray  # float64 [A+1, P] of the losses
    squares: np.ndarray  # float64 [A+1, P] of the squared losses
    effect_squares: np.ndarray  # float64 [A+1, P] of the squared differences to the un-ablated losses
    score_squares: np.ndarray  # float64 [A+1] of the examples' ICL scores, 0 without the score's positions
    score_effect_squares: np.ndarray  # float64 [A+1] of their differences to the un-ablated ones
    example_loss: np.ndarray  # float32 [A+1, n], or [A+1, 0]


def snapshot_parts(
    model: Transformer, evaluation: EvaluationTokens, plan: SweepPlan, wanted: Sequence[int] | None = None
) -> Iterator[tuple[int, Part]]:
    """The parts of one snapshot by their index, in order: all, or only the `wanted` ones."""
    device = model.embed.weight.device
    starts = range(0, plan.examples, plan.chunk)
    wanted = range(len(starts)) if wanted is None else wanted
    if not wanted:
        return
    chunks = [slice(start, min(start + plan.chunk, plan.examples)) for start in starts]
    means = None
    if plan.replacement == "mean":
        pieces = (evaluation.inputs[chunk].to(device) for chunk in chunks)
        with torch.no_grad():
            means = mean_activations(model, pieces, replacement_sites(plan.ablations))
    for index in wanted:
        chunk = chunks[index]
        rows = plan.positions.rows(evaluation.random_position[chunk]).to(device)
        inputs, targets = evaluation.inputs[chunk].to(device), evaluation.targets[chunk].to(device)
        listed = len(plan.positions.listed)
        part: dict[str, list[np.ndarray]] = {field.name: [] for field in fields(Part)}
        base: tuple[Tensor, Tensor] | None = None
        for losses in ablated_losses(model, inputs, targets, rows, plan.ablations, plan.ablation_mode, means):
            wide = losses[:, :listed].double().cpu()
            scores = plan.positions.scores(wide)
            base = (wide, scores) if base is None else base
            part["sums"].append(wide.sum(0).numpy())
            part["squares"].append(wide.square().sum(0).numpy())
            part["effect_squares"].append((wide - base[0]).square().sum(0).numpy())
            part["score_squares"].append(scores.square().sum().numpy())
            part["score_effect_squares"].append((scores - base[1]).square().sum().numpy())
            example = losses[:, -1] if plan.positions.example else losses[:0, 0]
            part["example_loss"].append(example.float().cpu().numpy())
        yield index, Part(**{name: np.stack(values) for name, values in part.items()})


def assemble(
    parts: Sequence[Sequence[Part]], plan: SweepPlan, steps: Sequence[int], tokens: Sequence[int]
) -> xr.Dataset:
    """One Dataset of all snapshots' parts (see `ablate` for what it holds)."""

    def total(name: str) -> np.ndarray:
        return np.stack([sum(getattr(part, name) for part in of_one) for of_one in parts])

    count = plan.examples
    mean = total("sums") / count
    effect = mean - mean[:, :1]

    def standard_error(squares: np.ndarray, means: np.ndarray) -> np.ndarray:
        scatter = np.clip(squares / count - means**2, 0, None)
        return np.sqrt(scatter / (count - 1)) if count > 1 else np.full_like(scatter, np.nan)

    nats = {"units": "nats per token"}
    names = [UNABLATED, *(target.name for target in plan.ablations)]
    single = [target.heads[0] if len(target.heads) == 1 and not target.embed else (-1, -1) for target in plan.ablations]
    dims = ("snapshot", "ablation", "position")
    dataset = xr.Dataset(
        {
            "position_loss": (dims, mean, nats | {"long_name": "mean loss by context position"}),
            "position_loss_sem": (dims, standard_error(total("squares"), mean), nats),
            "effect_sem": (
                dims,
                standard_error(total("effect_squares"), effect),
                nats
                | {"long_name": "standard error of position_loss minus that of ablation 'none', paired by example"},
            ),
        },
        coords={
            "snapshot": ("snapshot", np.asarray(steps, dtype=np.int64), {"long_name": "optimizer step"}),
            "tokens": ("snapshot", np.asarray(tokens, dtype=np.int64), {"long_name": "training tokens seen"}),
            "ablation": ("ablation", names, {"long_name": "what was removed; 'none': nothing"}),
            "layer": ("ablation", [-1, *(layer for layer, _ in single)], {"long_name": "-1: not a single head"}),
            "head": ("ablation", [-1, *(head for _, head in single)], {"long_name": "-1: not a single head"}),
            "position": ("position", np.asarray(plan.positions.listed), {"long_name": "context position, 1-based"}),
        },
        attrs={"plan": json.dumps(plan.as_json()), "source": "Olsson et al. 2022, Data Collection (2)"},
    )
    if plan.positions.example:
        loss = np.stack([np.concatenate([part.example_loss for part in of_one], axis=1) for of_one in parts])
        dataset["loss"] = (
            ("snapshot", "ablation", "example"),
            loss,
            nats | {"long_name": "loss at one random position per example"},
        )
    if plan.positions.has_score:
        early, late = (
            dataset["position_loss"].sel(position=list(at)).mean("position") for at in plan.positions.of_score
        )
        score = (late - early).values
        definition = "mean loss at positions {} to {} minus at {} to {}".format(
            *(at[end] for at in reversed(plan.positions.of_score) for end in (0, -1))
        )
        dataset["icl_score"] = (dims[:2], score, nats | {"long_name": definition})
        dataset["icl_score_sem"] = (dims[:2], standard_error(total("score_squares"), score), nats)
        effect = score - score[:, :1]
        dataset["icl_effect_sem"] = (
            dims[:2],
            standard_error(total("score_effect_squares"), effect),
            nats | {"long_name": "standard error of icl_score minus that of ablation 'none', paired by example"},
        )
    return dataset


def ablate(
    model: Transformer,
    tokens: Tensor,
    targets: Tensor | None = None,
    *,
    mode: str = "pattern-preserving",
    heads: str = "all",
    positions: str | Sequence[int] = "all",
    replacement: Replacement = "zero",
    preserve_heads: str | None = None,
    icl_window: int = 1,
    random_position: Tensor | None = None,
    memory: str | int = "2GiB",
) -> xr.Dataset:
    """Losses of a model with heads removed, one ablation after the other, by definition (two passes each).

    Args:
        model: the model.
        tokens: [N,T] token ids. Without `targets`, every token is predicted from those before it: T-1 positions.
        targets: [N,T] what is to be predicted at each position of `tokens`.
        mode: `full`, `pattern-preserving` (Olsson et al. 2022), `value-`, `key-`, `query-preserving`, `direct`
            (patterns and values), or any subset such as `pattern+k`: what the second pass takes from the first.
        heads: which ablations, as `icl-fast ablate --heads`: `all`, `0.3`, `1.*`, `*`, `0.3+1.2`, `~0.3`, `embed`, …
        positions: `all`, `paper`, or 1-based context positions.
        replacement: a removed result becomes `zero`, or its `mean` over all examples and positions.
        preserve_heads: only these heads' activations are preserved; default all.
        icl_window: how many positions around each of the ICL score's two are averaged (odd; the paper: 1).
        random_position: [N] 1-based position per example for `loss`; default drawn with a fixed seed.
        memory: what the activations of one pass may take, such as `2GiB`; the weights come on top.

    Returns:
        Dataset with dims (ablation, position, example): `position_loss` with its standard error `position_loss_sem` and
        that of its difference to the whole model's, paired by example, `effect_sem`; `icl_score`, `icl_score_sem`,
        `icl_effect_sem` (where the score's positions are there); `loss` (for `all` and `paper`). Ablation "none" is the
        whole model; the effect of one is its value minus that. All in nats.

    Raises:
        InputError: shapes that disagree, or any argument not understood or not in this model.
    """
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise InputError(f"tokens must be integers [N,T], got {tokens.dtype} {list(tokens.shape)}")
    if targets is None:
        tokens, targets = tokens[:, :-1], tokens[:, 1:]
    if targets.shape != tokens.shape:
        raise InputError(f"targets must be {list(tokens.shape)} as tokens, got {list(targets.shape)}")
    if tokens.numel() == 0:
        raise InputError("tokens: nothing to predict; give at least one example of two tokens")
    if random_position is None:
        random_position = torch.randint(
            1, tokens.shape[1] + 1, (len(tokens),), generator=torch.Generator().manual_seed(0)
        )
    elif random_position.shape != tokens.shape[:1] or not bool(
        ((random_position >= 1) & (random_position <= tokens.shape[1])).all()
    ):
        raise InputError(f"random_position must be [{len(tokens)}] with values from 1 to {tokens.shape[1]}")
    evaluation = EvaluationTokens(tokens, targets, random_position, "given")
    plan = make_plan(
        model.config,
        evaluation,
        mode=mode,
        heads=heads,
        positions=positions,
        replacement=replacement,
        preserve_heads=preserve_heads,
        icl_window=icl_window,
        memory=memory,
    )
    parts = [part for _, part in snapshot_parts(model, evaluation, plan)]
    return assemble([parts], plan, [0], [0]).isel(snapshot=0, drop=True).drop_vars("tokens", errors="ignore")
