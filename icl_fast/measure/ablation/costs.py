"""What computing ablations costs: floating-point operations and memory traffic, by method and stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from icl_fast.measure.ablation.modes import AblationMode
from icl_fast.measure.ablation.names import Ablation
from icl_fast.models import TransformerConfig

Method = Literal["low rank", "source sums", "delta", "rerun"]
METHODS: tuple[Method, ...] = ("low rank", "source sums", "delta", "rerun")


@dataclass(frozen=True)
class PassSize:
    """How large a pass over one example is.

    Attributes:
        config: of the model.
        context: T.
        rows: R, positions whose losses are wanted.
        itemsize: bytes of a number (4 for float32).
        device: "cpu" or "cuda".
    """

    config: TransformerConfig
    context: int
    rows: int
    itemsize: int
    device: str = "cpu"

    @property
    def few(self) -> bool:
        """Whether the last layer computes some positions only."""
        return self.rows < self.context

    @property
    def inner(self) -> int:
        """H*D, the width of all heads side by side."""
        return self.config.heads * self.config.d_head

    @property
    def shared(self) -> int:
        """KV*D, the width of all keys, or all values, side by side."""
        return self.config.kv * self.config.d_head

    @property
    def hidden(self) -> int:
        """The MLP's width; 0 without one."""
        return self.config.hidden_width


@dataclass(frozen=True)
class Stage:
    """A step of the computation for one chunk of examples, with the work that cannot be avoided in it.

    Attributes:
        name: such as `layer 1, delta`.
        variants: how many ablations go through it.
        flops: floating-point operations of its matrix products, two to a multiply-add, causal halves counted once.
        bytes: what it reads and writes at least.
        carried: whether its products are of what was removed, so that they may be rounded.
    """

    name: str
    variants: int
    flops: float
    bytes: float
    carried: bool = False


class Costs:
    """Floating-point operations of one size of pass and one mode."""

    def __init__(self, size: PassSize, mode: AblationMode) -> None:
        self.config, self.context, self.rows, self.itemsize = size.config, size.context, size.rows, size.itemsize
        self.few, self.inner, self.shared = size.few, size.inner, size.shared
        self.values_change = mode.preserved_values != "all"

    def low_rank_flops(self, heads: int, examples: int) -> float:
        """The losses of ablating each of these heads at low rank, beside those of the whole model."""
        c, v, rank = self.config.width, self.config.vocab, heads * self.config.d_head
        return 2.0 * v * (rank * c + examples * self.rows * rank)

    def dense_flops(self, variants: int, examples: int) -> float:
        """The losses of all these variants."""
        return 2.0 * variants * examples * self.rows * self.config.width * self.config.vocab

    def low_rank_pays(self, heads: int, examples: int) -> bool:
        """Whether there are enough rows: a low rank is prepared once for the whole vocabulary."""
        return self.low_rank_flops(heads, examples) < self.dense_flops(heads, examples)

    def source_sum_flops(self, rank: int) -> float:
        """One example and ablation of heads with `rank` numbers a position, in the last layer (see source_sums.py)."""
        config = self.config
        pairs = config.heads * self.rows * self.context
        scalars = 2.0 * self.context * rank * rank
        return scalars + 2.0 * pairs * (rank + config.d_head) + 2.0 * self.rows * config.heads * rank * config.d_head

    def delta_layer_flops(self, layer: int) -> float:
        """One example and ablation that goes through a layer in delta form (see delta.py)."""
        c, inner, t, r = self.config.width, self.inner, self.context, self._rows_of(layer)
        summed = 2.0 * t * c * self.shared + self._attention_flops(r)
        if r < t:  # values first, or sums over positions first
            summed = min(summed, 2.0 * self.config.heads * r * t * c + 2.0 * r * c * inner)
        return (summed + 2.0 * r * inner * c if self.values_change else 0.0) + r * self._mlp_flops

    def start_flops(self, layer: int, heads: int) -> float:
        """One example and ablation in the layer of its first removed heads: what they had written, and the MLP."""
        r = self._rows_of(layer)
        return r * (2.0 * heads * self.config.d_head * self.config.width + self._mlp_flops)

    def _rows_of(self, layer: int) -> int:
        """At how many positions a layer's results are computed."""
        return self.rows if layer == self.config.layers - 1 else self.context

    def run_layer_flops(self, layer: int) -> float:
        """One example: a layer run, of the whole model or of an ablated one."""
        c, t, r = self.config.width, self.context, self._rows_of(layer)
        projections = 2.0 * c * (t * (self.inner + 2 * self.shared) + r * self.inner)
        return projections + 2 * self._attention_flops(r) + r * self._mlp_flops

    @property
    def _mlp_flops(self) -> float:
        """One position: the MLP's two projections, or three where it is gated; 0 without an MLP."""
        return (6.0 if self.config.gated else 4.0) * self.config.hidden_width * self.config.width

    def _attention_flops(self, queries: int) -> float:
        """One example: the scores, or the weighted sums, of all heads."""
        pairs = queries * self.context if self.few and queries == self.rows else self.context * (self.context + 1) / 2
        return 2.0 * pairs * self.inner

    def stages(
        self, methods: Sequence[Method], ablations: Sequence[Ablation], examples: int, variants: int
    ) -> tuple[Stage, ...]:
        """The stages of one chunk.

        Args:
            methods: of each ablation.
            ablations: what is removed.
            examples: of the chunk.
            variants: how many of the ablations that need activations of their own are computed together.
        """
        config, n = self.config, examples
        c, v, size = config.width, config.vocab, self.itemsize
        stream = float(n * self.context * c * size)
        weights = float(v * c * size)
        chosen: dict[Method, list[Ablation]] = {method: [] for method in METHODS}
        for ablation, method in zip(ablations, methods, strict=True):
            chosen[method].append(ablation)
        low_rank, source_sums = len(chosen["low rank"]), len(chosen["source sums"])
        passes = max(1, -(-(len(methods) - low_rank) // variants))
        base_flops = sum(map(self.run_layer_flops, range(config.layers)))
        found = [Stage("base pass", 1, passes * n * base_flops, passes * config.layers * 12 * stream)]
        for layer in range(config.layers):
            for method, each in (("delta", self.delta_layer_flops(layer)), ("rerun", self.run_layer_flops(layer))):
                starting = [ablation for ablation in chosen[method] if ablation.first_layer == layer]
                through = sum(ablation.first_layer < layer for ablation in chosen[method])
                starts = sum(self.start_flops(layer, len(ablation.heads_of(layer))) for ablation in starting)
                flops = n * (through * each + starts)
                if through or starting:
                    traffic = (8 * through + 2 * len(starting)) * stream
                    count = through + len(starting)
                    found.append(Stage(f"layer {layer}, {method}", count, flops, traffic, method == "delta"))
        if source_sums:
            ranks = (len(ablation.heads_of(0)) * config.d_head for ablation in chosen["source sums"])
            flops = sum(n * self.source_sum_flops(rank) for rank in ranks)
            shared = n * 2.0 * self.context * c * self.inner  # what the norm's scalars need of the stream
            traffic = source_sums * 4.0 * n * config.heads * self.rows * self.context * size
            found.append(Stage("layer 1, source sums", source_sums, flops + shared, traffic))
        base = 2.0 * n * self.rows * c * v
        if low_rank:
            flops = base + self.low_rank_flops(low_rank, n)
            found.append(Stage("losses, low rank", low_rank, flops, weights + low_rank * n * self.rows * c * size))
        rest = len(methods) - low_rank
        if rest or not low_rank:
            flops = passes * base + self.dense_flops(rest, n)
            traffic, carried = passes * weights + rest * n * self.rows * c * size, not chosen["rerun"]
            found.append(Stage("losses", rest, flops, traffic, carried))
        return tuple(found)
