"""How a sweep's ablations are computed: which method for which, how many at a time, and what that costs.

The methods, of which each ablation takes the cheapest that is exact for it (DESIGN 5):
- "low rank": heads of the last attention layer of an attention-only model, through `head_ablation_cross_entropy`;
- "source sums": a 2-layer attention-only model at few positions, patterns frozen; see `source_sums.py`;
- "delta": patterns frozen; what the ablation removes is carried through the layers; see `delta.py`;
- "rerun": whatever else; the layers above the first removed head run again; see `rerun.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from icl_fast.errors import InputError
from icl_fast.measure.ablation.definition import AblationMode
from icl_fast.measure.ablation.names import Target
from icl_fast.models import TransformerConfig

Method = Literal["low rank", "source sums", "delta", "rerun"]
METHODS: tuple[Method, ...] = ("low rank", "source sums", "delta", "rerun")
# On a CPU more activations at a time than this gain nothing: products are large already, and what is larger comes fresh
# from the system at every step. But all rows of a chunk share one pass over the unembedding, so there should be some.
ENOUGH_BYTES, ENOUGH_ROWS = 192 << 20, 32
LOSS_BYTES = 96 << 20  # most that a loss op asks for itself, weights and activations aside


@dataclass(frozen=True)
class Stage:
    """A step of the computation for one chunk of examples, with the work that cannot be avoided in it.

    Attributes:
        flops: floating-point operations of its matrix products, two to a multiply-add, causal halves counted once.
        bytes: what it reads and writes at least.
    """

    name: str
    variants: int
    flops: float
    bytes: float


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
    ablations: Sequence[Target],
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
    costs = _Costs(config, context, rows, itemsize, mode)
    methods = [costs.method(target, mode) for target in ablations]
    room = memory - min(LOSS_BYTES, memory // 2)
    if device == "cpu":
        room = min(room, max(ENOUGH_BYTES, -(-ENOUGH_ROWS // rows) * costs.example_bytes(methods)))
    if (heads := methods.count("low rank")) and not costs.low_rank_pays(
        heads, min(examples, room // costs.example_bytes(methods))
    ):
        dense = costs.last_layer_method(mode)
        methods = [dense if method == "low rank" else method for method in methods]
    alone = [method for method in methods if method == "low rank"]
    together, variants = room // costs.example_bytes(methods), len(methods) - len(alone)
    if together < 1:  # one example, then, and perhaps not all ablations at once
        room = memory - min(LOSS_BYTES, memory // 2)
        shared, most = costs.example_bytes(alone), max(map(costs.variant_bytes, methods), default=0)
        if room < shared + most:
            raise InputError(
                f"memory: one example of {context} tokens needs about {(shared + most + LOSS_BYTES) / 2**20:.0f} MiB, "
                f"the budget is {memory / 2**20:.0f} MiB"
            )
        together, variants = 1, min(variants, (room - shared) // max(1, most))
    together = -(-examples // -(-examples // min(together, examples)))  # chunks of like size
    first_layers = tuple(target.first_layer for target in ablations)
    alive = sorted(methods, key=costs.variant_bytes, reverse=True)[:variants]
    return Schedule(
        methods=tuple(methods),
        first_layers=first_layers,
        examples=together,
        variants=max(1, variants),
        rows=rows,
        context=context,
        stages=costs.stages(methods, first_layers, ablations, together, max(1, variants)),
        bytes=together * costs.example_bytes(alive) + LOSS_BYTES,
    )


class _Costs:
    """Work and memory of one model at one set of positions."""

    def __init__(self, config: TransformerConfig, context: int, rows: int, itemsize: int, mode: AblationMode) -> None:
        self.config, self.context, self.rows, self.itemsize = config, context, rows, itemsize
        self.few = rows < context
        self.values_change = mode_values(mode) != "preserved"
        self.inner = config.heads * config.d_head
        mlp = config.mlp_ratio * config.width if config.mlp else 0
        self.hidden = mlp

    def variant_bytes(self, method: Method) -> int:
        """Activations of one example and ablation, beside those of the run without ablation."""
        rows = self.itemsize * self.rows * 2 * self.config.width + 8 * self.rows
        if method == "low rank":
            return self.itemsize * self.rows * self.config.d_head + 8 * self.rows
        if method == "source sums":  # the results that are removed, and what the rows' patterns become
            return self.itemsize * 4 * self.context * self.config.d_head + rows
        # what is removed, its norm's output, values, their weighted sums, copies of these; hidden layers of the MLP
        stream = self.context * (3 * self.config.width + 3 * self.inner + 3 * self.hidden)
        return self.itemsize * stream + rows

    def example_bytes(self, methods: Sequence[Method]) -> int:
        """Activations of one example with all these ablations at once."""
        config = self.config
        base = self.context * (6 * config.width + 8 * self.inner + 2 * self.hidden) + self.rows * 4 * config.width
        if self.few:  # patterns of the rows, as they are and weighted
            base += 4 * config.heads * self.rows * self.context
        return self.itemsize * base + sum(map(self.variant_bytes, methods))

    def method(self, target: Target, mode: AblationMode) -> Method:
        last = self.config.layers - 1
        if not self.config.mlp and not target.embed and all(layer == last for layer, _ in target.heads):
            return "low rank" if len(target.heads) == 1 else self.last_layer_method(mode)
        # without the embedding little of a stream is left, and x - d would be a difference of nearly equal numbers
        if target.embed or not freezes_patterns(mode, self.config):
            return "rerun"
        two_layers = self.config.layers == 2 and not self.config.mlp
        if two_layers and self.few and mode_values(mode) == "ablated":
            rank = len(target.heads_of(0)) * self.config.d_head
            if self._source_sum_flops(rank) < self._delta_layer_flops(1):
                return "source sums"
        return "delta"

    def last_layer_method(self, mode: AblationMode) -> Method:
        """Of heads of the last layer at full rank: they only start there, so that every way does the same."""
        return "delta" if freezes_patterns(mode, self.config) else "rerun"

    def low_rank_flops(self, heads: int, examples: int) -> float:
        """Of all these heads, beside the losses of the whole model."""
        c, v, rank = self.config.width, self.config.vocab, heads * self.config.d_head
        return 2.0 * v * (rank * c + examples * self.rows * rank)

    def dense_flops(self, variants: int, examples: int) -> float:
        """Of the losses of all these variants."""
        return 2.0 * variants * examples * self.rows * self.config.width * self.config.vocab

    def low_rank_pays(self, heads: int, examples: int) -> bool:
        """Whether there are enough rows: a low rank is prepared once for the whole vocabulary."""
        return self.low_rank_flops(heads, examples) < self.dense_flops(heads, examples)

    def _attention_flops(self, queries: int) -> float:
        """Scores, or weighted sums, of all heads of an example."""
        pairs = queries * self.context if self.few and queries == self.rows else self.context * (self.context + 1) / 2
        return 2.0 * pairs * self.inner

    def _source_sum_flops(self, rank: int) -> float:
        """Of one example and variant, in the last layer (see source_sums.py)."""
        config = self.config
        pairs = config.heads * self.rows * self.context
        scalars = 2.0 * self.context * rank * rank
        return scalars + 2.0 * pairs * (rank + config.d_head) + 2.0 * self.rows * config.heads * rank * config.d_head

    def _delta_layer_flops(self, layer: int) -> float:
        """Of one example and variant: a layer that it goes through."""
        config = self.config
        c, inner, t = config.width, self.inner, self.context
        if self.few and layer == config.layers - 1:
            summed = min(  # values first, or sums over positions first
                2.0 * t * c * inner + self._attention_flops(self.rows),
                2.0 * config.heads * self.rows * t * c + 2.0 * self.rows * c * inner,
            )
            t = self.rows
        else:
            summed = 2.0 * t * c * inner + self._attention_flops(t)
        mlp = 4.0 * t * config.mlp_ratio * c * c if config.mlp else 0.0
        return (summed + 2.0 * t * inner * c if self.values_change else 0.0) + mlp

    def _rerun_layer_flops(self) -> float:
        c, inner, t = self.config.width, self.inner, self.context
        mlp = 4.0 * t * self.config.mlp_ratio * c * c if self.config.mlp else 0.0
        return 8.0 * t * c * inner + 2 * self._attention_flops(t) + mlp

    def _base_flops(self) -> float:
        """Of one example: the run of the whole model, up to the unembedding."""
        config = self.config
        whole = self._rerun_layer_flops()
        if not self.few:
            return config.layers * whole
        t, r, c, inner = self.context, self.rows, self.config.width, self.inner
        mlp = 4.0 * r * config.mlp_ratio * c * c if config.mlp else 0.0
        last = 4.0 * t * c * inner + 4.0 * r * c * inner + 2 * self._attention_flops(r) + mlp
        return (config.layers - 1) * whole + last

    def stages(
        self,
        methods: Sequence[Method],
        first_layers: Sequence[int],
        ablations: Sequence[Target],
        examples: int,
        variants: int,
    ) -> tuple[Stage, ...]:
        config, n = self.config, examples
        c, v, size = config.width, config.vocab, self.itemsize
        stream = float(n * self.context * c * size)
        weights = float(v * c * size)
        count = {method: methods.count(method) for method in METHODS}
        passes = max(1, -(-(len(methods) - count["low rank"]) // variants))
        found = [Stage("base pass", 1, passes * n * self._base_flops(), passes * config.layers * 12 * stream)]
        for layer in range(config.layers):
            for method in ("delta", "rerun"):
                through = sum(m == method and first < layer for m, first in zip(methods, first_layers, strict=True))
                starting = sum(m == method and first == layer for m, first in zip(methods, first_layers, strict=True))
                each = self._delta_layer_flops(layer) if method == "delta" else self._rerun_layer_flops()
                rank = sum(
                    len(target.heads_of(layer)) * config.d_head
                    for target, m, first in zip(ablations, methods, first_layers, strict=True)
                    if m == method and first == layer
                )
                flops = n * (through * each + 2.0 * self.context * rank * c)
                if config.mlp:
                    flops += n * starting * 4.0 * self.context * config.mlp_ratio * c * c
                if through + starting:
                    traffic = (8 * through + 2 * starting) * stream
                    found.append(Stage(f"layer {layer}, {method}", through + starting, flops, traffic))
        if count["source sums"]:
            flops = sum(
                n * self._source_sum_flops(len(target.heads_of(0)) * config.d_head)
                for target, method in zip(ablations, methods, strict=True)
                if method == "source sums"
            )
            shared = n * 2.0 * self.context * c * self.inner  # what the norm's scalars need of the stream
            traffic = count["source sums"] * 4.0 * n * config.heads * self.rows * self.context * size
            found.append(Stage("layer 1, source sums", count["source sums"], flops + shared, traffic))
        base = 2.0 * n * self.rows * c * v
        if count["low rank"]:
            heads = count["low rank"]
            flops = base + self.low_rank_flops(heads, n)
            found.append(Stage("losses, low rank", heads, flops, weights + heads * n * self.rows * c * size))
        rest = len(methods) - count["low rank"]
        if rest or not count["low rank"]:
            flops = passes * base + self.dense_flops(rest, n)
            found.append(Stage("losses", rest, flops, passes * weights + rest * n * self.rows * c * size))
        return tuple(found)


def freezes_patterns(mode: AblationMode, config: TransformerConfig) -> bool:
    """Whether every head's pattern is that of the run without ablation."""
    every = {(layer, head) for layer in range(config.layers) for head in range(config.heads)}
    frozen = "pattern" in mode.preserve or {"q", "k"} <= set(mode.preserve)
    return frozen and (mode.heads is None or every <= set(mode.heads))


def mode_values(mode: AblationMode) -> Literal["ablated", "some", "preserved"]:
    """Which values are those of the run without ablation: of no head, of some, of all."""
    if "v" not in mode.preserve:
        return "ablated"
    return "preserved" if mode.heads is None else "some"
