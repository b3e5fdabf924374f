"""How ablations are computed fast: which method for which, and how many examples and ablations at a time.

The methods, of which each ablation takes the cheapest that is exact for it (docs/design.md, "Ablations, fast and
exact"):
- "low rank": heads of the last attention layer of an attention-only model, through `head_ablation_cross_entropy`;
- "source sums": a 2-layer attention-only model at few positions, patterns frozen; see `source_sums.py`;
- "delta": patterns frozen; what the ablation removes is carried through the layers; see `delta.py`;
- "rerun": whatever else; the layers above the first removed head run again; see `rerun.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from icl_fast.measure.ablation.costs import Costs, Method, PassSize, Stage
from icl_fast.measure.ablation.memory import WORK_BYTES, base_bytes, example_bytes, too_little, variant_bytes
from icl_fast.measure.ablation.modes import AblationMode
from icl_fast.measure.ablation.names import Ablation
from icl_fast.models import TransformerConfig

# On a CPU more activations at a time than this gain nothing: products are large already, and what is larger comes fresh
# from the system at every step. But all rows of a chunk share one pass over the unembedding, so there should be some.
ENOUGH_BYTES, ENOUGH_ROWS = 192 << 20, 32


@dataclass(frozen=True)
class Schedule:
    """The ablations of one model and set of positions, cut into work that fits a memory budget.

    Attributes:
        methods: of each ablation, in their order.
        first_layers: of each ablation, the first layer at which something is removed (-1: the embedding).
        examples: how many are computed together.
        variants: how many of the ablations that need activations of their own are computed together.
        rows: positions per example whose losses are wanted.
        context: T.
        stages: the work for one chunk of `examples` examples and all ablations.
        bytes: what the activations of one chunk take at their peak, estimated.
    """

    methods: tuple[Method, ...]
    first_layers: tuple[int, ...]
    examples: int
    variants: int
    rows: int
    context: int
    stages: tuple[Stage, ...]
    bytes: int

    @property
    def flops(self) -> float:
        """Of one chunk."""
        return sum(stage.flops for stage in self.stages)

    @property
    def carried_share(self) -> float:
        """How much of the work is in stages whose products may be rounded, 0 to 1."""
        return sum(stage.flops for stage in self.stages if stage.carried) / self.flops

    def of(self, *methods: Method) -> list[int]:
        """The ablations of these methods, those that start in the lowest layer first."""
        chosen = [index for index, method in enumerate(self.methods) if method in methods]
        return sorted(chosen, key=lambda index: self.first_layers[index])

    def waves(self) -> list[list[int]]:
        """The ablations that need activations of their own, in the groups that are computed together."""
        order = self.of("delta", "source sums") + self.of("rerun")
        return [order[start : start + self.variants] for start in range(0, len(order), self.variants)]


def make_schedule(
    config: TransformerConfig,
    *,
    examples: int,
    context: int,
    rows: int,
    ablations: Sequence[Ablation],
    mode: AblationMode,
    memory: int,
    itemsize: int = 4,
    device: str = "cpu",
) -> Schedule:
    """Choose methods and chunks.

    Args:
        config: of the model.
        examples: how many there are in all.
        context: T.
        rows: positions per example whose losses are wanted.
        ablations: what is removed.
        mode: what is preserved.
        memory: bytes for activations; the weights come on top.
        itemsize: bytes of a number (4 for float32).
        device: "cpu" or "cuda".

    Raises:
        InputError: not even one example and one ablation fit the memory.
    """
    size = PassSize(config, context, rows, itemsize, device)
    costs = Costs(size, mode)
    methods = [_method(ablation, mode, size, costs) for ablation in ablations]
    budget = memory - min(WORK_BYTES, memory // 2)
    allowed = budget
    if device == "cpu":
        allowed = min(budget, max(ENOUGH_BYTES, -(-ENOUGH_ROWS // rows) * example_bytes(size, methods)))
    if (heads := methods.count("low rank")) and not costs.low_rank_pays(
        heads, min(examples, allowed // example_bytes(size, methods))
    ):
        dense = _full_rank_method(mode, config)
        methods = [dense if method == "low rank" else method for method in methods]
    together, variants = allowed // example_bytes(size, methods), len(methods) - methods.count("low rank")
    if together < 1:  # one example, then, and perhaps not all ablations at once
        shared = example_bytes(size, [method for method in methods if method == "low rank"])
        most = max((variant_bytes(size, method) for method in methods), default=0)
        if budget < shared + most:
            raise too_little(size, shared + most + WORK_BYTES, memory)
        together, variants = 1, min(variants, (budget - shared) // max(1, most))
    together = -(-examples // -(-examples // min(together, examples)))  # chunks of like size
    largest = sorted((variant_bytes(size, method) for method in methods), reverse=True)[:variants]
    variants = max(1, variants)
    return Schedule(
        methods=tuple(methods),
        first_layers=tuple(ablation.first_layer for ablation in ablations),
        examples=together,
        variants=variants,
        rows=rows,
        context=context,
        stages=costs.stages(methods, ablations, together, variants),
        bytes=together * (base_bytes(size) + sum(largest)) + WORK_BYTES,
    )


def _method(ablation: Ablation, mode: AblationMode, size: PassSize, costs: Costs) -> Method:
    """The cheapest method that is exact for one ablation."""
    config = size.config
    last = config.layers - 1
    # what the formulas of these two say: LayerNorms before attention and nothing else that is not linear
    layer_norms = config.norm == "layer" and config.norm_place == "before" and not config.mlp
    if not ablation.embed and all(layer == last for layer, _ in ablation.heads) and not config.mlp:
        low_rank = len(ablation.heads) == 1 and layer_norms and config.logit_cap is None
        return "low rank" if low_rank else _full_rank_method(mode, config)
    # without the embedding little of a stream is left, and x - d would be a difference of nearly equal numbers
    if ablation.embed or not _carries(mode, config):
        return "rerun"
    two_layers = config.layers == 2 and layer_norms and config.kv == config.heads
    if two_layers and size.few and mode.preserved_values == "none":
        rank = len(ablation.heads_of(0)) * config.d_head
        if costs.source_sum_flops(rank) < costs.delta_layer_flops(1):
            return "source sums"
    return "delta"


def _full_rank_method(mode: AblationMode, config: TransformerConfig) -> Method:
    """Of heads of the last layer at full rank: they only start there, so that every way does the same."""
    return "delta" if _carries(mode, config) else "rerun"


def _carries(mode: AblationMode, config: TransformerConfig) -> bool:
    """Whether what an ablation removes can be carried through the layers: patterns are frozen, and every nonlinearity
    on the way has a difference that is exact (clipped values, SoLU and capped logits have none)."""
    linear = config.qkv_clip is None and config.logit_cap is None
    return linear and config.activation not in ("solu", "solu_plain") and mode.freezes_patterns(config)
