"""What a training on text will take, by arithmetic alone: operations, disk, memory, and the sweep after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from icl_fast.data import EvaluationSet
from icl_fast.errors import InputError
from icl_fast.measure.ablation.options import AblationOptions
from icl_fast.measure.ablation.plan import make_plan
from icl_fast.memory import in_units
from icl_fast.models import Transformer, TransformerConfig, parse_transformer_config
from icl_fast.notebook import table
from icl_fast.runs import TextRunConfig
from icl_fast.runs.snapshot_schedule import snapshot_steps

Parallel = Literal["ddp", "fsdp"]
_FLOAT = 4  # bytes of a float32: weights, gradients and moments, whatever the precision


@dataclass(frozen=True)
class Gpu:
    """What its maker's data sheet says, without sparsity.

    Attributes:
        bfloat16: floating-point operations a second, on tensor cores.
        float32: the same, beside them, as torch computes unless it is told otherwise.
        memory: bytes.
    """

    bfloat16: float
    float32: float
    memory: float


GPUS = {
    "a100": Gpu(312e12, 19.5e12, 80e9),
    "h100": Gpu(989e12, 67e12, 80e9),
    "h200": Gpu(989e12, 67e12, 141e9),
}


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank, at least: what is there throughout a step, and what the forward pass keeps for the backward.

    Attributes:
        weights: in float32; with fsdp a rank's share of them, and what is gathered at a time: embeddings, positions and
            unembedding, and up to two layers, one ahead of the other.
        gradients: of the same; with ddp also the buckets in which they travel.
        moments: AdamW's two, of a rank's share.
        activations: of the sequences that a rank takes at a time and, in bfloat16, copies of the weights that they were
            multiplied by. No logits: the loss holds none.
    """

    weights: float
    gradients: float
    moments: float
    activations: float

    @property
    def all(self) -> float:
        """Their sum."""
        return self.weights + self.gradients + self.moments + self.activations


@dataclass(frozen=True)
class TrainingPlan:
    """A training on text and the sweep of its snapshots, in numbers.

    Attributes:
        parameters: of the whole model.
        matrices: of those, in matrices of the layers: N of Kaplan et al. 2020, 2.1, "non-embedding parameters" of
            Olsson et al. 2022, Model Details. Biases, norms and position tables are not among them.
        multiplied: those that every token is multiplied by: the matrices, and the unembedding.
        tokens: trained on.
        attention_flops: scores and weighted values, of the keys that are seen: 12 D a key, head and token.
        snapshots: how many, the initial weights included.
        ablations: heads, each removed from every snapshot.
        examples: of the sweep.
        sweep_flops: of the sweep, as `icl-fast ablate --plan` counts them.
    """

    parameters: int
    matrices: int
    multiplied: int
    tokens: int
    attention_flops: float
    snapshots: int
    ablations: int
    examples: int
    sweep_flops: float

    @property
    def flops(self) -> float:
        """Of the training: 6 a multiplied parameter and token, forward 2 and backward 4 (Kaplan et al. 2020, 2.1)."""
        return 6.0 * self.multiplied * self.tokens + self.attention_flops

    @property
    def snapshot_bytes(self) -> int:
        """Of one snapshot, in float32."""
        return _FLOAT * self.parameters

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        facts = {
            "parameters": f"{self.parameters:,}, {self.matrices:,} of them in the layers' matrices",
            "tokens": f"{self.tokens:,}",
            "training": f"{self.flops:.3g} FLOP",
            "snapshots": f"{self.snapshots:,} of {in_units(self.snapshot_bytes)}",
            "to resume from": in_units(self.state_bytes),
            "sweep": f"{self.ablations} heads on {self.examples:,} examples: {self.sweep_flops:.3g} FLOP",
        }
        return table("Training, planned", facts)

    @property
    def state_bytes(self) -> int:
        """Of `optimizer.pt`: weights and two moments."""
        return 3 * _FLOAT * self.parameters


def plan_training(config: TextRunConfig, gpu: Gpu = GPUS["h100"]) -> TrainingPlan:
    """What `train` would do with this config, and `sweep` afterwards, on GPUs with that memory."""
    shape, training = _shape(config), config.training
    counts, tokens = _count(shape), training.steps * training.batch * shape.context
    snapshots = len(snapshot_steps(training.steps, config.snapshots))
    matrices, parameters = shape.layers * counts.layer_matrices, counts.all
    examples = config.data.evaluation_examples
    room = max(gpu.memory - _FLOAT * parameters, 2.0**31)
    text, options = _no_text(examples, config.data.evaluation_length), AblationOptions(memory=int(room))
    sweep = make_plan(shape, text, options, device="cuda")
    schedule = sweep.schedule(shape, config.data.evaluation_length)
    return TrainingPlan(
        parameters=parameters,
        matrices=matrices,
        multiplied=matrices + counts.unembedding,
        tokens=tokens,
        attention_flops=tokens * 12.0 * shape.d_head * _keys_seen(shape),
        snapshots=snapshots,
        ablations=len(sweep.ablations),
        examples=examples,
        sweep_flops=schedule.flops * -(-examples // sweep.chunk) * snapshots,
    )


def rank_memory(config: TextRunConfig, gpus: int, parallel: Parallel, *, checkpointed: bool) -> RankMemory:
    """What each rank needs.

    Args:
        gpus: as many ranks.
        checkpointed: whether of each layer only what it reads is kept, and the rest of one at a time computed again.

    Raises:
        InputError: the batch cannot be shared out.
    """
    shape = _shape(config)
    counts, split = _count(shape), gpus > 1 and parallel == "fsdp"
    tokens, size = _sequences(config, gpus) * shape.context, _item(config)
    if split:
        share, rest, layer = _FLOAT * counts.all / gpus, _FLOAT * counts.rest, size * counts.layer
        weights, gradients = share + rest + min(2, shape.layers) * layer, share + rest + layer
    else:
        share = weights = _FLOAT * counts.all
        gradients = share if gpus == 1 else 2 * share
    kept, masks, copies = tokens * _kept_bytes(shape, size), _mask_bytes(shape, size), 0
    if size < _FLOAT:
        copies = size * counts.unembedding
        kept += 0 if split else size * counts.layer_matrices
    if checkpointed:
        layers = kept + max(masks) + shape.layers * tokens * _FLOAT * shape.width
    else:
        layers = shape.layers * kept + sum(masks)
    last = tokens * ((_FLOAT + size) * shape.width + 2 * _FLOAT + 3 * _FLOAT + 2 * 8)  # final norm, loss, token ids
    return RankMemory(weights, gradients, 2 * share, layers + last + copies)


def logit_bytes(config: TextRunConfig, gpus: int) -> float:
    """What the logits of the sequences that a rank takes at a time would need."""
    return _item(config) * _sequences(config, gpus) * config.data.context * config.data.vocab


def _sequences(config: TextRunConfig, gpus: int) -> int:
    """That a rank takes at a time."""
    training, parts = config.training, gpus * config.training.accumulate
    if training.batch % parts:
        raise InputError(
            f"gpus: {gpus} x training.accumulate {training.accumulate} = {parts} parts, and training.batch "
            f"{training.batch} is no multiple of that; take other numbers"
        )
    return training.batch // parts


def _item(config: TextRunConfig) -> int:
    """Bytes of a number that is multiplied."""
    return 2 if config.training.precision == "bfloat16" else _FLOAT


def _shape(config: TextRunConfig) -> TransformerConfig:
    sizes = {"vocab": config.data.vocab, "context": config.data.context}
    return parse_transformer_config(config.model.model_dump() | sizes, source="data")


@dataclass(frozen=True)
class _Counts:
    """Parameters.

    Attributes:
        all: of the model.
        layer: of each layer.
        rest: of what is no layer.
        layer_matrices, unembedding: of what multiplies.
    """

    all: int
    layer: int
    rest: int
    layer_matrices: int
    unembedding: int


def _count(shape: TransformerConfig) -> _Counts:
    with torch.device("meta"):
        model = Transformer(shape.model_copy(update={"layers": 1, "windows": None}))  # all layers are as large
    (block,) = model.blocks
    layer, all_of_one = (sum(weights.numel() for weights in part.parameters()) for part in (block, model))
    matrices = sum(one.weight.numel() for one in block.modules() if isinstance(one, nn.Linear))
    rest = all_of_one - layer
    return _Counts(rest + shape.layers * layer, layer, rest, matrices, model.unembed.weight.numel())


def _keys_seen(shape: TransformerConfig) -> float:
    """By a token on average, over all heads of all layers: by position t it is t, or the window if that is less."""
    context, dense = shape.context, [[None] * shape.heads] * shape.layers
    windows = [context if w is None else min(w, context) for row in shape.windows or dense for w in row]
    return sum(w * (w + 1) / 2 + w * (context - w) for w in windows) / context


def _kept_bytes(shape: TransformerConfig, size: int) -> int:
    """Of a token and layer, what autograd keeps; norms are computed in float32 and what is multiplied in `size` bytes.

    The MLP's activation is taken to keep what it reads, as GELU, SiLU and ReLU do.
    """
    width, inner, hidden = shape.width, shape.heads * shape.d_head, shape.hidden_width
    norms = (_FLOAT * width + 2 * _FLOAT) * (2 if shape.mlp else 1)  # the stream, mean and deviation
    copies = 3 if size < _FLOAT else 2 if shape.position == "shortformer" else 1  # each projection casts its own
    attention = size * (copies * width + 4 * inner) + _FLOAT * shape.heads * (2 if shape.key == "smeared" else 1)
    if shape.key == "smeared" or any(len({*row}) > 1 for row in shape.windows or ()):
        attention += size * inner  # what heads wrote, once as it came and once side by side
    mlp = size * (width + (4 if shape.gated else 2) * hidden) if shape.mlp else 0
    return norms + attention + mlp


def _mask_bytes(shape: TransformerConfig, size: int) -> list[int]:
    """Of every layer: one mask for each of its windows."""
    narrow = [{w for w in row if w is not None and w < shape.context} for row in shape.windows or [[]] * shape.layers]
    return [size * len(windows) * shape.context**2 for windows in narrow]


def _no_text(examples: int, context: int) -> EvaluationSet:
    """An evaluation set of that shape, which takes no memory."""
    tokens = torch.zeros((), dtype=torch.int64).expand(examples, context)
    return EvaluationSet(tokens, tokens, tokens[:, 0], "")
