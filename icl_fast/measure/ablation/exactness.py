"""How exact a sweep's effects are, measured on a sample of its own data against float64; and the dtype `auto`."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass, replace

import torch
import xarray as xr

from icl_fast.data import EvaluationSet
from icl_fast.measure.ablation.options import AUTO, CANDIDATES, DTYPES, AblationOptions
from icl_fast.measure.ablation.plan import SweepPlan, make_plan
from icl_fast.measure.ablation.sums import PartSums
from icl_fast.measure.store import json_attribute
from icl_fast.memory import check_fits
from icl_fast.models import Transformer, TransformerConfig
from icl_fast.ops import _backend

ATTRIBUTE = "exactness"  # of a store
LOSSES = 512  # of the sample, for each ablation: so many positions of so many examples
FEWEST_EXAMPLES, MOST_EXAMPLES = 4, 32
LEAST_SHARE = 0.5  # of a sweep's work, for rounding of products to pay
OF_EFFECT, OF_SEM = 0.003, 0.01  # what an error may be, of an effect above its standard error and of another


@dataclass(frozen=True)
class Exactness:
    """Errors of mean effects on a sample: the first examples, at positions evenly spread over those of the sweep.

    Attributes:
        dtype: what was measured.
        step: of the snapshot; None: there are no snapshots.
        examples: of the sample.
        positions: of each.
        effect: by the ablation's name, its mean effect in float64, in nats.
        sem: its standard error over the sample's losses.
        error: what the mean effect in `dtype` is from it.
    """

    dtype: str
    step: int | None
    examples: int
    positions: int
    effect: dict[str, float]
    sem: dict[str, float]
    error: dict[str, float]

    @property
    def exact(self) -> bool:
        """Whether every error is within 0.3% of the effect where that is above its standard error, else within 1% of
        the standard error: what a head does that does nothing has no relative error to speak of.
        """

        def limit(effect: float, sem: float) -> float:
            return OF_SEM * sem if effect <= sem else OF_EFFECT * effect  # of a single loss sem is NaN

        return all(abs(self.error[name]) <= limit(abs(self.effect[name]), self.sem[name]) for name in self.effect)

    @property
    def of_effects(self) -> float:
        """The largest error relative to its effect, of effects above their standard error; 0 where there are none."""
        above = [name for name in self.effect if abs(self.effect[name]) > self.sem[name]]
        return max((abs(self.error[name] / self.effect[name]) for name in above), default=0.0)

    @property
    def of_sems(self) -> float:
        """The largest error relative to the standard error of its effect."""
        pairs = [(abs(self.error[name]), self.sem[name]) for name in self.effect]
        return max((error / sem if sem else float(error > 0) for error, sem in pairs), default=0.0)

    def __str__(self) -> str:
        """What is said of it."""
        where = "" if self.step is None else f" of step {self.step}"
        return (
            f"{self.dtype}: on {self.examples} examples{where}, {self.positions} positions each, mean effects are "
            f"within {self.of_sems:.2%} of their standard errors of float64's, and those that exceed theirs within "
            f"{self.of_effects:.3%} of themselves"
        )

    def as_json(self) -> str:
        """For the attributes of a store."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, results: xr.Dataset) -> Exactness | None:
        """What was measured of these results; None: nothing was."""
        found = json_attribute(results, ATTRIBUTE)
        return cls(**found) if found else None


def measure_exactness(
    model: Transformer, evaluation: EvaluationSet, plan: SweepPlan, step: int | None = None
) -> Exactness:
    """Errors of a plan's effects on a sample of its data.

    Args:
        model: its weights, of any dtype, on the plan's device.
        evaluation: what the plan is for.
        plan: of any dtype.
        step: of the snapshot that the model is of.

    Raises:
        InputError: no memory for a copy of the model in float64.
    """
    if model.blocks.stream is None and model.device.type == "cpu":
        weights = sum(weight.numel() for weight in model.parameters())
        check_fits(8 * weights, "dtype auto or check, with a copy of the model in float64")
    given = min(plan.positions.rows_per_example, evaluation.inputs.shape[1])  # of all positions the random one is one
    rows = min(given, LOSSES // FEWEST_EXAMPLES)
    count = min(plan.examples, max(FEWEST_EXAMPLES, min(MOST_EXAMPLES, LOSSES // rows)))
    sample = EvaluationSet(
        evaluation.inputs[:count], evaluation.targets[:count], evaluation.random_position[:count], evaluation.digest
    )
    spread = plan.positions.rows(sample.random_position)[:, torch.linspace(0, given - 1, rows).long()]

    def effects(dtype: str, memory: int) -> torch.Tensor:
        part = replace(plan, dtype=dtype, memory=memory, examples=count, chunk=min(plan.chunk, count))
        own = copy.deepcopy(model).to(DTYPES[dtype])
        return PartSums(own, sample, part).effects(slice(0, count), spread)[1].flatten(1)  # [A,n*R]

    truth = effects("float64", 2 * plan.memory)
    error = (effects(plan.dtype, plan.memory) - truth).mean(1)
    sem = truth.std(1) / truth.shape[1] ** 0.5

    def by_name(values: torch.Tensor) -> dict[str, float]:
        return dict(zip((ablation.name for ablation in plan.ablations), values.tolist(), strict=True))

    return Exactness(plan.dtype, step, count, rows, by_name(truth.mean(1)), by_name(sem), by_name(error))


def _candidate(config: TransformerConfig, evaluation: EvaluationSet, options: AblationOptions, device: str) -> str:
    """What `auto` takes if it is exact."""
    safe, fast = CANDIDATES[device]
    if options.engine != "fast" or (device == "cpu" and _backend.bfloat16_unit() is None):
        return safe
    plan = make_plan(config, evaluation, replace(options, dtype=fast), device=device)
    schedule = plan.schedule(config, evaluation.inputs.shape[1])
    return safe if plan.rounds_products and schedule.carried_share < LEAST_SHARE else fast


def chosen_dtype(
    model: Transformer,
    evaluation: EvaluationSet,
    options: AblationOptions,
    *,
    device: str,
    step: int | None = None,
    measure: bool = False,
) -> tuple[AblationOptions, Exactness | None]:
    """The options with `auto` decided, and what was measured for it.

    Args:
        model: its weights, on the device.
        evaluation: what the losses are measured on.
        options: what is asked.
        device: `cpu` or `cuda`.
        step: of the snapshot that the model is of.
        measure: whether the errors are measured also where there is nothing to decide.
    """
    asked = options.dtype
    if asked == AUTO:
        options = replace(options, dtype=_candidate(model.config, evaluation, options, device))
    if not measure and (asked != AUTO or options.dtype == CANDIDATES[device][0]):
        return options, None
    plan = make_plan(model.config, evaluation, options, device=device)
    found = measure_exactness(model, evaluation, plan, step)
    return (replace(options, dtype=CANDIDATES[device][0]) if asked == AUTO and not found.exact else options), found
