"""exemplar_steps: many training steps of small attention-only exemplar models in one call: forward, backward, Adam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.ops import _backend

OP = "exemplar_steps"
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


class ClampTensors(Protocol):
    """The tensors of `icl_fast.models.Clamps`, which is one."""

    @property
    def previous_token(self) -> Tensor: ...
    @property
    def first_layer(self) -> Tensor: ...
    @property
    def match(self) -> Tensor: ...
    @property
    def copy(self) -> Tensor: ...
    @property
    def no_previous_token(self) -> Tensor: ...
    @property
    def heads(self) -> Tensor: ...
    @property
    def temperature(self) -> Tensor: ...


def exemplar_steps_supported(
    *, layers: int, width: int, heads: int, pairs: int, position: str, mlp: bool = False, encoder: str = "linear"
) -> bool:
    """Whether `exemplar_steps` trains such a model here: the kernels are built, and the shape is one of theirs.

    One or two attention-only layers up to 256 wide, exemplars embedded by one matrix, 1 to 16 pairs, any position; any
    number of features, labels, examples and members. Dropout, where there is any, is for the caller to refuse.
    """
    fits = 1 <= layers <= MOST_LAYERS and 1 <= width <= MOST_WIDTH and 1 <= pairs <= MOST_PAIRS
    whole = heads >= 1 and width % heads == 0 and (position != "rotary" or width // heads % 2 == 0)
    return _backend.compiled() and fits and whole and position in POSITIONS and not mlp and encoder == "linear"


@torch.no_grad()
def exemplar_steps(
    parameters: Mapping[str, Tensor],
    first_moments: Mapping[str, Tensor],
    second_moments: Mapping[str, Tensor],
    features: Tensor,
    classes: Tensor,
    exemplars: Tensor,
    labels: Tensor,
    target: Tensor,
    *,
    step: int,
    learning_rates: Tensor,
    heads: int,
    position: str,
    outputs: Tensor,
    clamps: ClampTensors,
    rotary_base: float = 10_000.0,
    norm_eps: float = 1e-5,
    trainable: Mapping[str, Tensor] | None = None,
    l2: Mapping[str, float] | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    threads: int = 0,
) -> Tensor:
    """Train P attention-only exemplar models for S steps, each on its own sequences, in place; CPU only.

    What is computed is `icl_fast.models.ExemplarTransformer` (Singh 2025, 4.2.1; clamps 4.4.1) and `torch.optim.Adam`,
    to float32 rounding. A member's bits depend neither on the other members, nor on the number of threads, nor on how
    steps are cut into calls. Numbers below 1e-38 count as 0, which torch does not do by itself: moments of rare labels
    fade to such numbers; a weight differs by less than 1e-30 for it.

    Args:
        parameters: float32 by the names of `ExemplarTransformer.named_parameters()`, `[P, ...]`; updated. They may be
            the model's own.
        first_moments, second_moments: Adam's, the same names and shapes; updated.
        features: `[K, E, F]` float32, of every exemplar of every class.
        classes, exemplars: `[S, P, B, n + 1]` int64, which exemplars the sequences have; the last one is the query.
        labels: `[S, P, B, n]` int64.
        target: `[S, P, B]` int64, the query's label.
        step: how many updates the moments have had.
        learning_rates: `[S]` float64.
        heads: H, of every layer.
        position: `learned`, `sinusoidal`, `rotary` or `none`.
        outputs: `[P]` int64, how many labels each member tells apart.
        clamps: what is forced in each member.
        rotary_base, norm_eps: as in `ExemplarConfig`.
        trainable: by name, `[P]` bool: where it is False a member's parameter and its moments stay as they are.
        l2: by name, the coefficient of the sum of squares of that parameter in the loss.
        betas, eps: Adam's.
        threads: at most so many; 0: as many as torch uses.

    Returns:
        `[S, P]` float32: mean cross-entropy in nats before each update, without the l2 terms.

    Raises:
        InputError: names, shapes, dtypes, devices or numbers that do not fit; a shape that
            `exemplar_steps_supported` refuses.
        RuntimeError: the kernels were not built.
    """
    _backend.module()
    shape = _Shape(parameters, features, classes, labels, heads, position)
    names = shape.names
    for what, given in (("first_moments", first_moments), ("second_moments", second_moments)):
        _check_names(what, given, names)
    for name in names:
        for what, given in (
            ("parameters", parameters),
            ("first_moments", first_moments),
            ("second_moments", second_moments),
        ):
            _check(f"{what}[{name!r}]", given[name], shape.of(name), torch.float32)
            if not given[name].is_contiguous():
                raise InputError(f"{OP}: {what}[{name!r}] is updated in place, so it must be contiguous")
    _check_numbers(step, rotary_base, norm_eps, betas, eps, threads)
    s, p, b, n = shape.steps, shape.members, shape.batch, shape.pairs
    _check("features", features, (shape.classes, shape.exemplars, shape.features), torch.float32)
    if not features.is_contiguous():
        raise InputError(f"{OP}: features must be contiguous; a copy in every call would cost more than the steps")
    for name, tensor, sizes, count in (
        ("classes", classes, (s, p, b, n + 1), shape.classes),
        ("exemplars", exemplars, (s, p, b, n + 1), shape.exemplars),
        ("labels", labels, (s, p, b, n), shape.labels),
        ("target", target, (s, p, b), shape.labels),
    ):
        _check(name, tensor, sizes, torch.int64)
        _check_range(name, tensor, 0, count - 1)
    _check("learning_rates", learning_rates, (s,), torch.float64)
    if not bool(learning_rates.isfinite().all()):
        raise InputError(f"{OP}: learning_rates must be finite, got {learning_rates.tolist()}")
    _check("outputs", outputs, (p,), torch.int64)
    _check_range("outputs", outputs, 1, shape.labels)
    forced = _forced(clamps, shape, heads)
    losses = features.new_empty(s, p)
    if losses.numel() == 0:
        return losses
    slots = (*SHARED, *(f"blocks.{layer}.{name}" for layer in range(shape.layers) for name in PER_LAYER))
    groups = (parameters, first_moments, second_moments)
    addresses = [[group[name].data_ptr() if name in names else 0 for group in groups] for name in slots]
    sinusoids, cos, sin = _position_tables(position, 2 * n + 1, shape.width, heads, rotary_base)
    _backend.run(
        OP,
        "cpu",
        {
            "losses": losses,
            "parameters": torch.tensor(addresses),
            "features": features,
            "classes": classes,
            "exemplars": exemplars,
            "labels": labels,
            "target": target,
            "learning_rates": learning_rates,
            "outputs": outputs,
            **forced,
            "trainable": _trainable(trainable, slots, names, p),
            "l2": _l2(l2, slots, names),
            "positions": sinusoids,
            "cos": cos,
            "sin": sin,
        },
        torch.float32,
        steps=s,
        members=p,
        batch=b,
        pairs=n,
        exemplars_per_class=shape.exemplars,
        feature_count=shape.features,
        label_count=shape.labels,
        width=shape.width,
        heads=heads,
        layers=shape.layers,
        first_step=step,
        position_kind={"learned": 1, "sinusoidal": 2}.get(position, 0),
        norm_eps=norm_eps,
        beta1=betas[0],
        beta2=betas[1],
        eps=eps,
        threads=threads or torch.get_num_threads(),
    )
    return losses


class _Shape:
    """The sizes, and the shape of every parameter that a model of these sizes has."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        features: Tensor,
        classes: Tensor,
        labels: Tensor,
        heads: int,
        position: str,
    ) -> None:
        for name, tensor, ndim, dims in (
            ("features", features, 3, "[K, E, F]"),
            ("classes", classes, 4, "[S, P, B, n + 1]"),
            ("labels", labels, 4, "[S, P, B, n]"),
        ):
            if tensor.ndim != ndim:
                raise InputError(f"{OP}: {name} must be {dims}, got {list(tensor.shape)}")
        self.classes, self.exemplars, self.features = features.shape
        self.steps, self.members, self.batch, self.pairs = labels.shape
        if min(self.members, self.batch, self.features) < 1:
            raise InputError(
                f"{OP}: labels {list(labels.shape)} and features {list(features.shape)}: there must be at least one "
                "member, example and feature"
            )
        if position not in POSITIONS:
            raise InputError(f"{OP}: position {position!r}: must be one of {', '.join(POSITIONS)}")
        embedding = parameters.get("embed_label.weight")
        if embedding is None or embedding.ndim != 3:
            raise InputError(f"{OP}: parameters: must have 'embed_label.weight' [P, V, C]")
        self.labels, self.width = embedding.shape[1:]
        self.layers = 2 if any(name.startswith("blocks.1.") for name in parameters) else 1
        self.tokens = 2 * self.pairs + 1
        if not exemplar_steps_supported(
            layers=self.layers, width=self.width, heads=heads, pairs=self.pairs, position=position
        ):
            raise InputError(
                f"{OP}: width {self.width}, {heads} heads, {self.pairs} pairs, position {position}: must be up to "
                f"{MOST_WIDTH} wide, heads that divide it (for rotary into even parts), 1 to {MOST_PAIRS} pairs"
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


def _check_names(what: str, given: Mapping[str, Tensor], names: set[str]) -> None:
    if missing := sorted(names - set(given)):
        raise InputError(f"{OP}: {what}: {missing[0]!r} is missing")
    if unknown := sorted(set(given) - names):
        raise InputError(f"{OP}: {what}: has {unknown[0]!r}, which such a model does not have")


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device.type != "cpu":
        raise InputError(
            f"{OP}: {name} must be {str(dtype).removeprefix('torch.')} {list(shape)} on the CPU, got "
            f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"
        )


def _check_range(name: str, tensor: Tensor, low: int, high: int) -> None:
    if tensor.numel() == 0:
        return
    lowest, highest = (int(end) for end in tensor.aminmax())
    if lowest < low or highest > high:
        raise InputError(f"{OP}: {name} must be in {low}..{high}, got {lowest if lowest < low else highest}")


def _check_numbers(
    step: int, rotary_base: float, norm_eps: float, betas: tuple[float, float], eps: float, threads: int
) -> None:
    if step < 0 or threads < 0:
        raise InputError(f"{OP}: step {step} and threads {threads}: must not be negative")
    if not all(0 <= beta < 1 for beta in betas) or not eps > 0:
        raise InputError(f"{OP}: betas {betas} and eps {eps}: must be in [0, 1), and positive")
    if not rotary_base > 1 or not norm_eps > 0:
        raise InputError(f"{OP}: rotary_base {rotary_base} and norm_eps {norm_eps}: must be above 1, and positive")


def _forced(clamps: ClampTensors, shape: _Shape, heads: int) -> dict[str, Tensor]:
    members = shape.members
    head, both = (members, heads), (members, shape.layers, heads)
    for name, sizes, dtype in (
        ("previous_token", head, torch.bool),
        ("first_layer", (members,), torch.bool),
        ("match", head, torch.bool),
        ("copy", (members,), torch.int64),
        ("no_previous_token", (members,), torch.bool),
        ("heads", both, torch.float32),
        ("temperature", both, torch.float32),
    ):
        _check(f"clamps.{name}", getattr(clamps, name), sizes, dtype)
    _check_range("clamps.copy", clamps.copy, -1, heads - 1)
    if not bool((clamps.temperature > 0).all()) or not bool(clamps.heads.isfinite().all()):
        raise InputError(f"{OP}: clamps: temperature must be positive, heads finite")
    if shape.layers == 1 and bool(clamps.first_layer.any()):
        raise InputError(f"{OP}: clamps.first_layer replaces the layer before another one; the model has only one")
    return {
        "previous_token": clamps.previous_token,
        "first_layer": clamps.first_layer,
        "match": clamps.match,
        "copy": clamps.copy,
        "no_previous_token": clamps.no_previous_token,
        "heads_scale": clamps.heads,
        "temperature": clamps.temperature,
    }


def _trainable(given: Mapping[str, Tensor] | None, slots: tuple[str, ...], names: set[str], members: int) -> Tensor:
    _check_known("trainable", given, names)
    table = torch.ones(len(slots), members, dtype=torch.bool)
    for name, tensor in (given or {}).items():
        _check(f"trainable[{name!r}]", tensor, (members,), torch.bool)
        table[slots.index(name)] = tensor
    return table


def _l2(given: Mapping[str, float] | None, slots: tuple[str, ...], names: set[str]) -> Tensor:
    _check_known("l2", given, names)
    for name, coefficient in (given or {}).items():
        if not 0 <= coefficient < float("inf"):
            raise InputError(f"{OP}: l2[{name!r}] must be finite and not negative, got {coefficient}")
    return torch.tensor([(given or {}).get(name, 0.0) for name in slots], dtype=torch.float32)


def _check_known(what: str, given: Mapping[str, object] | None, names: set[str]) -> None:
    if unknown := sorted(set(given or ()) - names):
        raise InputError(f"{OP}: {what}: {unknown[0]!r} is not a parameter of the model")


def _position_tables(
    position: str, tokens: int, width: int, heads: int, base: float
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Sinusoids `[T, C]`, cosines and sines of rotations `[T, D/2]`; None where the position is another."""
    if position == "sinusoidal":
        angles = _angles(tokens, width + width % 2, 10_000.0)
        return torch.cat((angles.sin(), angles.cos()), dim=-1)[:, :width], None, None
    if position == "rotary":
        angles = _angles(tokens, width // heads, base)
        return None, angles.cos(), angles.sin()
    return None, None, None


def _angles(tokens: int, width: int, base: float) -> Tensor:
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.outer(torch.arange(tokens, dtype=torch.float64), frequencies).float()
