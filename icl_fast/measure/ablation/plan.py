"""What a sweep will do: its options checked against a model and an evaluation set, and fixed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from icl_fast.data import EvaluationSet
from icl_fast.errors import InputError
from icl_fast.measure.ablation.costs import PassSize
from icl_fast.measure.ablation.definition import preserved_sites
from icl_fast.measure.ablation.means import replacement_sites
from icl_fast.measure.ablation.memory import definition_examples, parse_memory
from icl_fast.measure.ablation.modes import AblationMode
from icl_fast.measure.ablation.names import Ablation, parse_ablations, parse_heads
from icl_fast.measure.ablation.options import AUTO, BFLOAT16_PRODUCTS, DTYPES, AblationOptions, Engine, Replacement
from icl_fast.measure.ablation.positions import Positions, parse_positions
from icl_fast.measure.ablation.schedule import Schedule, make_schedule
from icl_fast.models import Preservable, TransformerConfig

MOST_PARTS = 16  # of one snapshot: files that an interrupted sweep leaves, and looks at when it goes on


@dataclass(frozen=True)
class SweepPlan:
    """All that decides a sweep's result. Two sweeps with equal plans give equal bits on one machine.

    The names of the fields, and of those of `Ablation` and `Positions`, are those of the JSON in a store's attributes.
    """

    mode: str
    preserve: tuple[Preservable, ...]
    preserve_heads: tuple[tuple[int, int], ...] | None
    replacement: Replacement
    ablations: tuple[Ablation, ...]
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
    def rounds_products(self) -> bool:
        """Whether operands of products are rounded, and nothing else."""
        return self.dtype == BFLOAT16_PRODUCTS

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
    options: AblationOptions,
    *,
    device: str = "cpu",
    whole_logits: bool = False,
) -> SweepPlan:
    """Check everything that a user may ask of a sweep and fix it.

    Args:
        config: of the model.
        evaluation: what the losses are measured on.
        options: what is asked for; where they leave it open, positions are `paper` and the dtype is float32.
        device: `cpu` or `cuda`.
        whole_logits: whether the model gives its logits at all positions, as one that was changed does.

    Raises:
        InputError: any of the options is not understood, is not in this model, or does not fit the memory.
    """
    if options.replacement not in ("zero", "mean"):
        raise InputError(f"replacement: {options.replacement!r} is neither zero nor mean")
    count, context = evaluation.inputs.shape
    if count == 0:
        raise InputError("examples: there is nothing to evaluate on; give at least 1 example")
    preserve_heads = None
    if options.preserve_heads is not None:
        preserve_heads = parse_heads(options.preserve_heads, config, "preserve_heads")
    mode = AblationMode.parse(options.mode, preserve_heads)
    ablations = tuple(parse_ablations(options.heads, config))
    asked = "paper" if options.positions is None else options.positions
    positions = parse_positions(asked, context, options.icl_window, options.icl_positions)
    if options.engine not in ("fast", "definition"):
        raise InputError(f"engine: {options.engine!r} is neither fast nor definition")
    dtype = "float32" if options.dtype is None else options.dtype
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputError(f"dtype: {dtype!r} is none of {', '.join((*DTYPES, AUTO))}")
    if dtype == BFLOAT16_PRODUCTS and (device != "cpu" or options.engine != "fast"):
        where = "on a CPU; on CUDA take bfloat16" if device != "cpu" else "of engine fast; take float32"
        raise InputError(f"dtype: {dtype} are {where}")
    plan = SweepPlan(
        mode=options.mode,
        preserve=mode.preserve,
        preserve_heads=mode.heads,
        replacement=options.replacement,
        ablations=ablations,
        positions=positions,
        examples=count,
        chunk=count,
        evaluation=evaluation.digest,
        engine=options.engine,
        dtype=dtype,
        memory=parse_memory(options.memory),
        device=device,
    )
    if plan.engine == "fast":
        return replace(plan, chunk=plan.schedule(config, context).examples)
    recorded = preserved_sites(mode, config)
    if plan.replacement == "mean":
        recorded += replacement_sites(ablations)
    size = PassSize(config, context, positions.rows_per_example, DTYPES[dtype].itemsize)
    return replace(plan, chunk=min(definition_examples(size, recorded, plan.memory, whole_logits), count))
