"""Many training steps of small attention-only exemplar models in one call of a CPU kernel: forward, backward, Adam."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.models import Clamps
from icl_fast.models.positions import position_angles, sinusoids
from icl_fast.ops import _backend

POSITIONS = ("learned", "sinusoidal", "rotary", "none")
MOST_PAIRS, MOST_LAYERS, MOST_WIDTH = 16, 2, 256
SHARED = (
    "embed_exemplar.weight",
    "embed_exemplar.bias",
    "embed_label.weight",
    "position",
    "final_norm.weight",
    "final_norm.bias",
    "unembed.weight",
    "unembed.bias",
)  # Slot in csrc/cpu/exemplar_work.h
PER_LAYER = ("norm1.weight", "norm1.bias", *(f"attention.{part}.weight" for part in ("q", "k", "v", "out")))


@dataclass(frozen=True)
class Weights:
    """What is trained, and Adam's memory of it: float32 `[P,...]`, contiguous, updated in place.

    Attributes:
        parameters: by the names of `ExemplarTransformer.named_parameters()`; they may be the model's own.
        first_moments, second_moments: the same names and shapes.
        step: how many updates the moments have had.
    """

    parameters: Mapping[str, Tensor]
    first_moments: Mapping[str, Tensor]
    second_moments: Mapping[str, Tensor]
    step: int


@dataclass(frozen=True)
class Batches:
    """The sequences of S steps, each of B sequences for each of P members.

    Attributes:
        features: `[K,E,F]` float32, contiguous, of every exemplar of every class.
        classes, exemplars: `[S,P,B,n+1]` int64, which exemplars the sequences have; the last one is the query.
        labels: `[S,P,B,n]` int64.
        target: `[S,P,B]` int64, the query's label.
    """

    features: Tensor
    classes: Tensor
    exemplars: Tensor
    labels: Tensor
    target: Tensor


@dataclass(frozen=True)
class Architecture:
    """What the shapes of the weights do not say of the models.

    Attributes:
        heads: H, of every layer.
        position: `learned`, `sinusoidal`, `rotary` or `none`.
        outputs: `[P]` int64, how many labels each member tells apart.
        clamps: what is forced in each member.
        rotary_base, sinusoid_base, norm_eps: as in `ExemplarConfig`.
    """

    heads: int
    position: str
    outputs: Tensor
    clamps: Clamps
    rotary_base: float = 10_000.0
    norm_eps: float = 1e-5
    sinusoid_base: float = 10_000.0


@dataclass(frozen=True)
class Optimizer:
    """Adam's settings.

    Attributes:
        learning_rates: `[S]` float64.
        trainable: by name, `[P]` bool: where it is False a member's parameter and its moments stay as they are.
        l2: by name, the coefficient of the sum of squares of that parameter in the loss.
        betas, eps: as in `torch.optim.Adam`.
    """

    learning_rates: Tensor
    trainable: Mapping[str, Tensor] = field(default_factory=dict)
    l2: Mapping[str, float] = field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


def exemplar_steps_supported(
    *,
    layers: int,
    width: int,
    heads: int,
    pairs: int,
    position: str,
    mlp: bool = False,
    attention_bias: bool = False,
    encoder: str = "linear",
    architecture: str = "transformer",
) -> bool:
    """Whether `exemplar_steps` trains such a model here: the kernels are built, and the shape is one of theirs.

    Transformers of one or two attention-only layers without biases, up to 256 wide, exemplars embedded by one matrix,
    1 to 16 pairs, any position; any number of features, labels, examples and members.
    """
    fits = 1 <= layers <= MOST_LAYERS and 1 <= width <= MOST_WIDTH and 1 <= pairs <= MOST_PAIRS
    whole = heads >= 1 and width % heads == 0 and (position != "rotary" or width // heads % 2 == 0)
    plain = architecture == "transformer" and not mlp and not attention_bias and encoder == "linear"
    return _backend.compiled() and fits and whole and position in POSITIONS and plain


@torch.no_grad()
def exemplar_steps(
    weights: Weights, batches: Batches, architecture: Architecture, optimizer: Optimizer, *, threads: int = 0
) -> Tensor:
    """Train P attention-only exemplar models for S steps, each on its own sequences, in place; CPU only.

    What is computed is `icl_fast.models.ExemplarTransformer` (Singh 2025, 4.2.1; clamps 4.4.1) and `torch.optim.Adam`,
    to float32 rounding. A member's bits depend neither on the other members, nor on the number of threads, nor on how
    steps are cut into calls. Numbers below 1e-38 count as 0, which torch does not do by itself: moments of rare labels
    fade to such numbers; a weight differs by less than 1e-30 for it.

    Args:
        threads: at most so many; 0: as many as torch uses.

    Returns:
        `[S,P]` float32: mean cross-entropy in nats before each update, without the l2 terms.

    Raises:
        InputError: names, shapes, dtypes, devices or numbers that do not fit; a shape that `exemplar_steps_supported`
            refuses.
        RuntimeError: the kernels were not built.
    """
    _backend.module()
    shape = _Shape(weights.parameters, batches, architecture)
    _check_weights(weights, shape)
    _check_batches(batches, shape)
    _check_architecture(architecture, shape)
    _check_optimizer(optimizer, shape)
    if threads < 0:
        raise InputError(f"exemplar_steps: threads must not be negative, got {threads}")
    losses = batches.features.new_empty(shape.steps, shape.members)
    if losses.numel() == 0:
        return losses
    slots = (*SHARED, *(f"blocks.{layer}.{name}" for layer in range(shape.layers) for name in PER_LAYER))
    groups = (weights.parameters, weights.first_moments, weights.second_moments)
    addresses = [[group[name].data_ptr() if name in shape.names else 0 for group in groups] for name in slots]
    trainable = torch.ones(len(slots), shape.members, dtype=torch.bool)
    for name, tensor in optimizer.trainable.items():
        trainable[slots.index(name)] = tensor
    clamps = architecture.clamps
    _backend.run(
        "exemplar_steps",
        "cpu",
        {"losses": losses},
        {
            "parameters": torch.tensor(addresses),
            "features": batches.features,
            "classes": batches.classes,
            "exemplars": batches.exemplars,
            "labels": batches.labels,
            "target": batches.target,
            "learning_rates": optimizer.learning_rates,
            "outputs": architecture.outputs,
            "previous_token": clamps.previous_token,
            "first_layer": clamps.first_layer,
            "match": clamps.match,
            "copy": clamps.copy,
            "no_previous_token": clamps.no_previous_token,
            "heads_scale": clamps.heads,
            "temperature": clamps.temperature,
            "trainable": trainable,
            "l2": torch.tensor([optimizer.l2.get(name, 0.0) for name in slots], dtype=torch.float32),
            **_position_tables(architecture, shape),
        },
        steps=shape.steps,
        members=shape.members,
        batch=shape.batch,
        pairs=shape.pairs,
        exemplars_per_class=shape.exemplars,
        feature_count=shape.features,
        label_count=shape.labels,
        width=shape.width,
        heads=architecture.heads,
        layers=shape.layers,
        first_step=weights.step,
        position_kind={"learned": 1, "sinusoidal": 2}.get(architecture.position, 0),
        norm_eps=architecture.norm_eps,
        beta1=optimizer.betas[0],
        beta2=optimizer.betas[1],
        eps=optimizer.eps,
        num_threads=threads or torch.get_num_threads(),
    )
    return losses


class _Shape:
    """The sizes, and the shape of every parameter that a model of these sizes has."""

    def __init__(self, parameters: Mapping[str, Tensor], batches: Batches, architecture: Architecture) -> None:
        features, labels, position = batches.features, batches.labels, architecture.position
        for name, tensor, ndim, dims in (
            ("features", features, 3, "[K,E,F]"),
            ("labels", labels, 4, "[S,P,B,n]"),
        ):
            if tensor.ndim != ndim:
                raise InputError(f"exemplar_steps: {name} must be {dims}, got {list(tensor.shape)}")
        self.classes, self.exemplars, self.features = features.shape
        self.steps, self.members, self.batch, self.pairs = labels.shape
        if min(self.members, self.batch, self.features) < 1:
            raise InputError(
                f"exemplar_steps: labels {list(labels.shape)} and features {list(features.shape)}: there must be at "
                "least one member, example and feature"
            )
        if position not in POSITIONS:
            raise InputError(f"exemplar_steps: position {position!r}: must be one of {', '.join(POSITIONS)}")
        embedding = parameters.get("embed_label.weight")
        if embedding is None or embedding.ndim != 3:
            raise InputError("exemplar_steps: parameters: must have 'embed_label.weight' [P,V,C]")
        self.labels, self.width = embedding.shape[1:]
        self.layers = 2 if any(name.startswith("blocks.1.") for name in parameters) else 1
        self.tokens = 2 * self.pairs + 1
        self.heads = architecture.heads
        if not exemplar_steps_supported(
            layers=self.layers, width=self.width, heads=self.heads, pairs=self.pairs, position=position
        ):
            raise InputError(
                f"exemplar_steps: width {self.width}, {self.heads} heads, {self.pairs} pairs, position {position}: "
                f"must be up to {MOST_WIDTH} wide, heads that divide it (rotary: into even parts), "
                f"1 to {MOST_PAIRS} pairs"
            )
        layers = [f"blocks.{layer}.{name}" for layer in range(self.layers) for name in PER_LAYER]
        self.names = {name for name in (*SHARED, *layers) if name != "position" or position == "learned"}
        _check_names("parameters", parameters, self.names)

    def of(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter."""
        width, labels = self.width, self.labels
        special = {
            "embed_exemplar.weight": (width, self.features),
            "embed_label.weight": (labels, width),
            "position": (self.tokens, width),
            "unembed.weight": (labels, width),
            "unembed.bias": (labels,),
        }
        matrix = (width, width) if ".attention." in name else (width,)
        return (self.members, *special.get(name, matrix))


def _check_weights(weights: Weights, shape: _Shape) -> None:
    for what in ("first_moments", "second_moments"):
        _check_names(what, getattr(weights, what), shape.names)
    for name in sorted(shape.names):
        for what in ("parameters", "first_moments", "second_moments"):
            tensor = getattr(weights, what)[name]
            _check(f"{what}[{name!r}]", tensor, shape.of(name), torch.float32)
            if not tensor.is_contiguous():
                raise InputError(f"exemplar_steps: {what}[{name!r}] is updated in place, so it must be contiguous")
    if weights.step < 0:
        raise InputError(f"exemplar_steps: step must not be negative, got {weights.step}")


def _check_batches(batches: Batches, shape: _Shape) -> None:
    _check("features", batches.features, (shape.classes, shape.exemplars, shape.features), torch.float32)
    if not batches.features.is_contiguous():
        raise InputError(
            "exemplar_steps: features must be contiguous; a copy in every call would cost more than the steps"
        )
    sequences = (shape.steps, shape.members, shape.batch)
    for name, sizes, count in (
        ("classes", (*sequences, shape.pairs + 1), shape.classes),
        ("exemplars", (*sequences, shape.pairs + 1), shape.exemplars),
        ("labels", (*sequences, shape.pairs), shape.labels),
        ("target", sequences, shape.labels),
    ):
        _check(name, getattr(batches, name), sizes, torch.int64)
        _check_range(name, getattr(batches, name), 0, count - 1)


def _check_architecture(architecture: Architecture, shape: _Shape) -> None:
    rotary_base, norm_eps, clamps = architecture.rotary_base, architecture.norm_eps, architecture.clamps
    sinusoid_base = architecture.sinusoid_base
    if not rotary_base > 1 or not sinusoid_base > 1 or not norm_eps > 0:
        raise InputError(
            f"exemplar_steps: rotary_base {rotary_base}, sinusoid_base {sinusoid_base} and norm_eps {norm_eps}: must "
            "be above 1, and positive"
        )
    members = (shape.members,)
    _check("outputs", architecture.outputs, members, torch.int64)
    _check_range("outputs", architecture.outputs, 1, shape.labels)
    head, both = (*members, shape.heads), (*members, shape.layers, shape.heads)
    for name, sizes, dtype in (
        ("previous_token", head, torch.bool),
        ("first_layer", members, torch.bool),
        ("match", head, torch.bool),
        ("copy", members, torch.int64),
        ("no_previous_token", members, torch.bool),
        ("heads", both, torch.float32),
        ("temperature", both, torch.float32),
    ):
        _check(f"clamps.{name}", getattr(clamps, name), sizes, dtype)
    _check_range("clamps.copy", clamps.copy, -1, shape.heads - 1)
    if not bool((clamps.temperature > 0).all()) or not bool(clamps.heads.isfinite().all()):
        raise InputError("exemplar_steps: clamps: temperature must be positive, heads finite")
    if shape.layers == 1 and bool(clamps.first_layer.any()):
        raise InputError(
            "exemplar_steps: clamps.first_layer replaces the layer before another one; the model has only one"
        )


def _check_optimizer(optimizer: Optimizer, shape: _Shape) -> None:
    rates, betas, eps = optimizer.learning_rates, optimizer.betas, optimizer.eps
    _check("learning_rates", rates, (shape.steps,), torch.float64)
    if not bool(rates.isfinite().all()):
        raise InputError(f"exemplar_steps: learning_rates must be finite, got {rates.tolist()}")
    if not all(0 <= beta < 1 for beta in betas) or not eps > 0:
        raise InputError(f"exemplar_steps: betas {betas} and eps {eps}: must be in [0, 1), and positive")
    for what, by_name in (("trainable", optimizer.trainable), ("l2", optimizer.l2)):
        if unknown := sorted(set(by_name) - shape.names):
            raise InputError(f"exemplar_steps: {what}: {unknown[0]!r} is not a parameter of the model")
    for name, tensor in optimizer.trainable.items():
        _check(f"trainable[{name!r}]", tensor, (shape.members,), torch.bool)
    for name, coefficient in optimizer.l2.items():
        if not 0 <= coefficient < float("inf"):
            raise InputError(f"exemplar_steps: l2[{name!r}] must be finite and not negative, got {coefficient}")


def _check_names(what: str, tensors: Mapping[str, Tensor], names: set[str]) -> None:
    if missing := sorted(names - set(tensors)):
        raise InputError(f"exemplar_steps: {what}: {missing[0]!r} is missing")
    if unknown := sorted(set(tensors) - names):
        raise InputError(f"exemplar_steps: {what}: has {unknown[0]!r}, which such a model does not have")


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device.type != "cpu":
        raise InputError(
            f"exemplar_steps: {name} must be {str(dtype).removeprefix('torch.')} {list(shape)} on the CPU, got "
            f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"
        )


def _check_range(name: str, tensor: Tensor, low: int, high: int) -> None:
    if tensor.numel() == 0:
        return
    lowest, highest = (int(end) for end in tensor.aminmax())
    if lowest < low or highest > high:
        raise InputError(f"exemplar_steps: {name} must be in {low}..{high}, got {lowest if lowest < low else highest}")


def _position_tables(architecture: Architecture, shape: _Shape) -> dict[str, Tensor | None]:
    """Sinusoids `[T,C]`, cosines and sines of rotations `[T,D/2]`; None where the position is another."""
    positions = cos = sin = None
    if architecture.position == "sinusoidal":
        positions = sinusoids(shape.tokens, shape.width, architecture.sinusoid_base, precision=torch.float64)
    elif architecture.position == "rotary":
        width, base = shape.width // shape.heads, architecture.rotary_base
        angles = position_angles(shape.tokens, width, base, precision=torch.float64)
        cos, sin = angles.cos(), angles.sin()
    return {"positions": positions, "cos": cos, "sin": sin}
