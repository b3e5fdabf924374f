"""Ablations of one model as numbers: the plan, the parts that a chunk of examples gives, and the Dataset they make."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from icl_fast.data import EvaluationSet
from icl_fast.errors import InputError
from icl_fast.measure.ablation.definition import (
    AblationMode,
    Replacement,
    ablated_losses,
    mean_activations,
    replacement_sites,
)
from icl_fast.measure.ablation.engine import ablation_effects
from icl_fast.measure.ablation.names import Target, parse_targets
from icl_fast.measure.ablation.plan import DTYPES, Positions, examples_at_a_time, parse_memory, parse_positions
from icl_fast.measure.ablation.schedule import Schedule, make_schedule
from icl_fast.models import Transformer, TransformerConfig

UNABLATED = "none"
MOST_PARTS = 16  # of one snapshot: files that an interrupted sweep leaves, and looks at when it goes on

Engine = Literal["fast", "definition"]


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
    engine: Engine
    dtype: str
    memory: int
    device: str

    @property
    def ablation_mode(self) -> AblationMode:
        return AblationMode(self.preserve, self.preserve_heads)

    @property
    def parts(self) -> list[slice]:
        """The examples of each part, whole chunks."""
        chunks = -(-self.examples // self.chunk)
        step = self.chunk * -(-chunks // MOST_PARTS)
        return [slice(start, min(start + step, self.examples)) for start in range(0, self.examples, step)]

    def schedule(self, config: TransformerConfig, context: int) -> Schedule:
        """How the fast engine computes it."""
        return make_schedule(
            config,
            examples=self.examples,
            context=context,
            rows=min(context, self.positions.rows_per_example),
            ablations=self.ablations,
            mode=self.ablation_mode,
            memory=self.memory,
            itemsize=DTYPES[self.dtype].itemsize,
            device=self.device,
        )

    def as_json(self) -> dict[str, Any]:
        """Plain data, equal for equal plans."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def make_plan(
    config: TransformerConfig,
    evaluation: EvaluationSet,
    *,
    mode: str = "pattern-preserving",
    heads: str = "all",
    positions: str | Sequence[int] = "paper",
    replacement: Replacement = "zero",
    preserve_heads: str | None = None,
    icl_window: int = 1,
    memory: str | int = "2GiB",
    engine: Engine = "fast",
    dtype: str = "float32",
    device: str = "cpu",
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
    if engine not in ("fast", "definition"):
        raise InputError(f"engine: {engine!r} is neither fast nor definition")
    if dtype not in DTYPES:
        raise InputError(f"dtype: {dtype!r} is none of {', '.join(DTYPES)}")
    plan = SweepPlan(
        mode=mode,
        preserve=ablation_mode.preserve,
        preserve_heads=ablation_mode.heads,
        replacement=replacement,
        ablations=ablations,
        positions=where,
        examples=count,
        chunk=count,
        evaluation=evaluation.digest,
        engine=engine,
        dtype=dtype,
        memory=parse_memory(memory),
        device=device,
    )
    if engine == "fast":
        return replace(plan, chunk=plan.schedule(config, context).examples)
    recorded = [*ablation_mode.sites(config), *(replacement_sites(ablations) if replacement == "mean" else [])]
    itemsize = DTYPES[dtype].itemsize
    fitting = examples_at_a_time(config, context, where.rows_per_example, recorded, plan.memory, itemsize)
    return replace(plan, chunk=min(fitting, count))


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
    model: Transformer, evaluation: EvaluationSet, plan: SweepPlan, wanted: Sequence[int] | None = None
) -> Iterator[tuple[int, Part]]:
    """The parts of one snapshot by their index, in order: all, or only the `wanted` ones."""
    parts = plan.parts
    wanted = range(len(parts)) if wanted is None else wanted
    if not wanted:
        return
    means = None
    if plan.replacement == "mean":
        device = model.embed.weight.device
        pieces = (evaluation.inputs[chunk].to(device) for chunk in _chunks(slice(0, plan.examples), plan.chunk))
        with torch.no_grad():
            means = mean_activations(model, pieces, replacement_sites(plan.ablations))
    schedule = plan.schedule(model.config, evaluation.inputs.shape[1]) if plan.engine == "fast" else None
    for index in wanted:
        chunks = _chunks(parts[index], plan.chunk)
        yield index, total([_part(model, evaluation, plan, chunk, means, schedule) for chunk in chunks])


def _chunks(examples: slice, size: int) -> list[slice]:
    return [slice(start, min(start + size, examples.stop)) for start in range(examples.start, examples.stop, size)]


def _part(
    model: Transformer,
    evaluation: EvaluationSet,
    plan: SweepPlan,
    chunk: slice,
    means: dict[str, Tensor] | None,
    schedule: Schedule | None,
) -> Part:
    """The sums of one chunk, by the fast engine's schedule or by definition."""
    device = model.embed.weight.device
    inputs, targets = evaluation.inputs[chunk].to(device), evaluation.targets[chunk].to(device)
    rows = plan.positions.rows(evaluation.random_position[chunk]).to(device)
    if schedule is not None:
        base, effects = ablation_effects(
            model, inputs, targets, rows, plan.ablations, plan.ablation_mode, means, schedule=schedule
        )
        base, effects = base.double().cpu(), effects.double().cpu()
    else:
        runs = ablated_losses(model, inputs, targets, rows, plan.ablations, plan.ablation_mode, means)
        base, *ablated = [losses.double().cpu() for losses in runs]
        effects = torch.stack(ablated) - base if ablated else base.new_empty(0, *base.shape)
    effects = torch.cat((base.new_zeros(1, *base.shape), effects))  # [A+1,n,R]
    losses, listed = base + effects, len(plan.positions.listed)
    scores, score_effects = (
        torch.stack([plan.positions.scores(of_one[:, :listed]) for of_one in x]) for x in (losses, effects)
    )
    return Part(
        sums=losses[:, :, :listed].sum(1).numpy(),
        squares=losses[:, :, :listed].square().sum(1).numpy(),
        effect_squares=effects[:, :, :listed].square().sum(1).numpy(),
        score_squares=scores.square().sum(1).numpy(),
        score_effect_squares=score_effects.square().sum(1).numpy(),
        example_loss=(losses[:, :, -1] if plan.positions.example else losses[:, :0, 0]).float().numpy(),
    )


def total(parts: Sequence[Part]) -> Part:
    """Several parts as one, added in their order."""
    sums: dict[str, np.ndarray] = {
        field.name: np.sum([getattr(part, field.name) for part in parts], axis=0)
        for field in fields(Part)
        if field.name != "example_loss"
    }
    return Part(**sums, example_loss=np.concatenate([part.example_loss for part in parts], axis=1))


def assemble(snapshots: Sequence[Part], plan: SweepPlan, steps: Sequence[int], tokens: Sequence[int]) -> xr.Dataset:
    """One Dataset of all snapshots, each whole (see `ablate` for what it holds)."""

    def total(name: str) -> np.ndarray:
        return np.stack([getattr(snapshot, name) for snapshot in snapshots])

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
        loss = total("example_loss")
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
    engine: Engine = "fast",
    dtype: str | None = None,
) -> xr.Dataset:
    """Losses of a model with heads removed, one ablation after the other.

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
        engine: `fast` (see `icl_fast.measure.ablation.schedule`), or the slow `definition`: two passes for every
            ablation.
        dtype: what is computed with: `float32`, `bfloat16`, `float16` or `float64`; default the model's own.

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
    evaluation = EvaluationSet(tokens, targets, random_position, "given")
    own = str(model.embed.weight.dtype).removeprefix("torch.")
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
        engine=engine,
        dtype=dtype or own,
        device=model.embed.weight.device.type,
    )
    if plan.dtype != own:
        model = copy.deepcopy(model).to(DTYPES[plan.dtype])
    whole = total([part for _, part in snapshot_parts(model, evaluation, plan)])
    return assemble([whole], plan, [0], [0]).isel(snapshot=0, drop=True).drop_vars("tokens", errors="ignore")
