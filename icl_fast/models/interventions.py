"""What can be recorded in a forward pass and what can be forced there.

A site is named by a string: `"embed"`, `"final_norm"`, `"logits"`, or `"<layer>.<name>"` with a 0-based layer and
a name of `LAYER_SITES`, such as `"1.pattern"`. The tensors at the sites:

    [B,T,C]    embed, resid_pre, attn_out, resid_mid, mlp_out, resid_post, final_norm; logits is [B,T,V]
    [B,H,T,D]  q, k, v (as attention sees them: after rotation and smear), z; head_out is [B,H,T,C]
    [B,H,T,T]  scores (scaled, before the causal mask), pattern; rows are queries

In models of P members B stands for P * B: examples of the first member, of the second, and so on.

What is recorded may be named by patterns: "*.pattern" is that of every layer, "1.*" every site of layer 1, "all" every
site that the model has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from icl_fast.arguments import listed, shown, whole_numbers
from icl_fast.errors import InputError

LAYER_SITES = [
    "resid_pre",
    "q",
    "k",
    "v",
    "scores",
    "pattern",
    "z",
    "head_out",
    "attn_out",
    "resid_mid",
    "mlp_out",
    "resid_post",
]  # in forward order
HEAD_SITES = frozenset(["q", "k", "v", "scores", "pattern", "z", "head_out"])
OUTER_SITES = ("embed", "final_norm", "logits")
Preservable = Literal["pattern", "q", "k", "v"]
# of a layer, what a second pass can take from a first one, in the order in which ablation modes name them
PRESERVABLE: tuple[Preservable, ...] = get_args(Preservable)
_Indices = tuple[int, ...] | None


class HasLayers(Protocol):
    """What of a model's config says which sites it has."""

    @property
    def layers(self) -> int:
        """Number of layers."""

    @property
    def mlp(self) -> bool:
        """Whether every layer has an MLP."""


def site(name: str, layer: int) -> str:
    """The name of a layer's site: `site("pattern", 1)` is `"1.pattern"`."""
    return f"{layer}.{name}"


def all_sites(config: HasLayers) -> list[str]:
    """Every site of such a model, in forward order."""
    local = [name for name in LAYER_SITES if config.mlp or name != "mlp_out"]
    return ["embed", *(site(name, layer) for layer in range(config.layers) for name in local), *OUTER_SITES[1:]]


def named_sites(record: str | Sequence[str], config: HasLayers) -> tuple[str, ...]:
    """The sites that names and patterns mean, each once: in the order of these, and within a pattern in forward order.

    Args:
        record: `all`, a site or a pattern such as `*.pattern` or `1.*`; or several of them.

    Raises:
        InputError: something else, a site that the model does not have, or a pattern that is none of its sites.
    """
    given = [record] if isinstance(record, str) else record
    if not isinstance(given, (list, tuple, set)) or not all(isinstance(name, str) for name in given):
        raise InputError(
            f"record: must be a list of sites, or one such as '1.z', '*.pattern' or all; got {shown(record)}"
        )
    found: dict[str, None] = {}
    for name in given:
        if "*" not in name and name != "all":
            check_site(name, config, "record")
            found[name] = None
            continue
        matching = [one for one in all_sites(config) if name == "all" or fnmatchcase(one, name)]
        if not matching:
            raise InputError(
                f"record: no site matches {name!r} in a model of {config.layers} layers; patterns are such as "
                f"'*.pattern' or '1.*', with a name of {', '.join(LAYER_SITES)}"
            )
        found.update(dict.fromkeys(matching))
    return tuple(found)


def check_site(name: str, config: HasLayers, argument: str) -> None:
    """Raise InputError unless `name` is a site of such a model."""
    layer, _, local = str(name).partition(".")
    known = name in OUTER_SITES or (
        local in LAYER_SITES and layer.isdecimal() and int(layer) < config.layers and layer == str(int(layer))
    )
    if not known:
        raise InputError(
            f"{argument}: no site {name!r} in a model of {config.layers} layers; sites are {', '.join(OUTER_SITES)} "
            f"and '<layer>.<name>' with a name of {', '.join(LAYER_SITES)}"
        )
    if local == "mlp_out" and not config.mlp:
        raise InputError(f"{argument}: site {name!r} does not exist in an attention-only model")


@dataclass(frozen=True, eq=False)
class Intervention:
    """What is forced at one site: zero, a given tensor, or a function of the value; wherever it holds.

    Make one with `Intervention.zero`, `.set` or `.apply`. It holds at the product of `heads`, `positions` and
    `examples` (0-based indices; None: all of them), and, if `mask` is given, only where that is true as well.
    For scores and patterns `positions` are query rows. Elsewhere the value passes through untouched, and
    gradients flow exactly where the value does: none reach what was replaced.

    A function may read earlier sites of the same pass besides (`reads`): it is given what went on from there.
    """

    site: str
    action: Literal["zero", "set", "apply"]
    value: Tensor | None = None
    function: Callable[..., Tensor] | None = None
    heads: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    examples: tuple[int, ...] | None = None
    mask: Tensor | None = None
    reads: tuple[str, ...] = ()

    @classmethod
    def zero(
        cls,
        site: str,
        *,
        heads: Iterable[int] | None = None,
        positions: Iterable[int] | None = None,
        examples: Iterable[int] | None = None,
        mask: Tensor | None = None,
    ) -> Intervention:
        """Force zeros."""
        return cls(site, "zero", None, None, *_indices(site, heads, positions, examples), mask)

    @classmethod
    def set(
        cls,
        site: str,
        value: Tensor,
        *,
        heads: Iterable[int] | None = None,
        positions: Iterable[int] | None = None,
        examples: Iterable[int] | None = None,
        mask: Tensor | None = None,
    ) -> Intervention:
        """Force `value`, which has exactly the site's shape (expand it yourself: nothing broadcasts silently)."""
        return cls(site, "set", value, None, *_indices(site, heads, positions, examples), mask)

    @classmethod
    def apply(
        cls,
        site: str,
        function: Callable[..., Tensor],
        *,
        reads: Iterable[str] = (),
        heads: Iterable[int] | None = None,
        positions: Iterable[int] | None = None,
        examples: Iterable[int] | None = None,
        mask: Tensor | None = None,
    ) -> Intervention:
        """Force `function(value, *read)`, which keeps the shape of the value.

        It is given the whole tensor at the site, and those at the earlier sites of `reads`.
        """
        if not callable(function):
            raise InputError(f"intervention at {site!r}: function must be one, got {shown(function)}")
        read = tuple(listed(f"intervention at {site!r}: reads", reads))
        return cls(site, "apply", None, function, *_indices(site, heads, positions, examples), mask, read)

    @property
    def everywhere(self) -> bool:
        """Whether it holds at the whole site."""
        return self.heads is None and self.positions is None and self.examples is None and self.mask is None

    def __call__(self, value: Tensor, *read: Tensor) -> Tensor:
        """The value at the site after this intervention, given the values at the sites that it reads.

        Raises:
            InputError: an index out of range, an empty selection, or a tensor of another shape than the site's.
        """
        where = self._where(value)
        new = self._new(value, *read)
        return new if where is None else torch.where(where, new, value)

    def _new(self, value: Tensor, *read: Tensor) -> Tensor:
        if self.action == "zero":
            return torch.zeros_like(value)
        if self.action == "set":
            new = self.value.to(value.dtype) if isinstance(self.value, Tensor) else self.value
        else:
            assert self.function is not None
            new = self._applied(value, read)
        if not isinstance(new, Tensor):
            raise InputError(f"intervention at {self.site!r}: must put a tensor there, got {shown(new)}")
        if new.shape != value.shape:
            raise InputError(
                f"intervention at {self.site!r}: the tensor has shape {list(new.shape)}, "
                f"the site {list(value.shape)}; give exactly that shape"
            )
        if new.device != value.device:
            raise InputError(
                f"intervention at {self.site!r}: the tensor is on {new.device}, the site on {value.device}"
            )
        return new.to(value.dtype)

    def _applied(self, value: Tensor, read: tuple[Tensor, ...]) -> Tensor:
        assert self.function is not None
        if torch.compiler.is_compiling() or value.is_inference():  # where changes are not counted
            return self.function(value.clone(), *(earlier.clone() for earlier in read))
        before = [tensor._version for tensor in (value, *read)]
        new = self.function(value, *read)
        if before != [tensor._version for tensor in (value, *read)]:
            raise InputError(
                f"intervention at {self.site!r}: its function changes what it is given, which others hold too; let it "
                "return a new tensor"
            )
        return new

    def _where(self, value: Tensor) -> Tensor | None:
        """A boolean mask that broadcasts against the site's tensor, or None: everywhere."""
        has_heads = self.site.partition(".")[2] in HEAD_SITES
        if self.heads is not None and not has_heads:
            raise InputError(f"intervention at {self.site!r}: heads were given, but this site has none")
        position_axis = 2 if has_heads else 1
        where: Tensor | None = None
        for name, indices, axis in (
            ("examples", self.examples, 0),
            ("heads", self.heads, 1),
            ("positions", self.positions, position_axis),
        ):
            if indices is None:
                continue
            _check_indices(indices, value.shape[axis], f"intervention at {self.site!r}: {name}")
            # tensor arithmetic, not `i in indices`: torch.compile makes ints that change symbolic and gets `in` wrong
            count = torch.arange(value.shape[axis], device=value.device)
            chosen = (count[:, None] == torch.tensor(indices, device=value.device)).any(-1)
            chosen = chosen.view([-1 if i == axis else 1 for i in range(value.ndim)])
            where = chosen if where is None else where & chosen
        if self.mask is not None:
            wanted = f"mask must be bool with the site's leading dimensions {list(value.shape)}"
            if not isinstance(self.mask, Tensor):
                raise InputError(f"intervention at {self.site!r}: {wanted}, got {shown(self.mask)}")
            if self.mask.dtype != torch.bool or self.mask.shape != value.shape[: self.mask.ndim]:
                raise InputError(
                    f"intervention at {self.site!r}: {wanted}, got {self.mask.dtype} {list(self.mask.shape)}"
                )
            mask = self.mask.view(*self.mask.shape, *[1] * (value.ndim - self.mask.ndim))
            where = mask if where is None else where & mask
        return where


@dataclass
class Taps:
    """One forward pass' interventions and recordings: called with every site's value, returns what goes on."""

    record: tuple[str, ...] = ()
    interventions: tuple[Intervention, ...] = ()
    recorded: dict[str, Tensor] = field(default_factory=dict)
    read: dict[str, Tensor] = field(default_factory=dict)  # what later interventions are given besides
    met: set[str] = field(default_factory=set)

    def __call__(self, name: str, value: Tensor) -> Tensor:
        self.met.add(name)
        for intervention in self.interventions:
            if intervention.site == name:
                value = intervention(value, *(self.read[earlier] for earlier in intervention.reads))
        if name in self.record:
            self.recorded[name] = value
        if any(name in intervention.reads for intervention in self.interventions):
            self.read[name] = value
        return value

    def done(self) -> dict[str, Tensor]:
        """What was recorded, after the pass.

        Raises:
            InputError: a site that is recorded, read or intervened on was not met: its module was replaced.
        """
        for name in (*self.record, *(name for i in self.interventions for name in (i.site, *i.reads))):
            if name not in self.met:
                raise InputError(
                    f"site {name!r} is nowhere in this pass: a module of the model was replaced by another"
                )
        return self.recorded

    def changes(self, name: str) -> bool:
        """Whether anything is forced at this site."""
        return any(name == i.site for i in self.interventions)

    def replaces(self, name: str) -> bool:
        """Whether the first intervention at this site replaces all of it, so that its value need not be computed."""
        first = next((i for i in self.interventions if i.site == name), None)
        return first is not None and first.action != "apply" and first.everywhere

    def wants(self, *names: str) -> bool:
        """Whether any of these sites is recorded, read or intervened on; if not, it need not be computed."""
        return any(
            name in self.record or any(name == i.site or name in i.reads for i in self.interventions) for name in names
        )


def make_taps(config: HasLayers, record: str | Sequence[str], interventions: Sequence[Intervention]) -> Taps:
    """Taps for one pass of such a model.

    Raises:
        InputError: a site that the model does not have, or one that is read before it is computed.
    """
    if not isinstance(interventions, (list, tuple, set)) or not all(
        isinstance(one, Intervention) for one in interventions
    ):
        raise InputError(f"interventions: must be a list of Intervention, got {shown(interventions)}")
    recorded = named_sites(record, config)
    for intervention in interventions:
        check_site(intervention.site, config, "interventions")
        for name in intervention.reads:
            check_site(name, config, "interventions")
            if _forward_order(name) >= _forward_order(intervention.site):
                raise InputError(
                    f"intervention at {intervention.site!r}: reads {name!r}, which is not before it; read earlier sites"
                )
    return Taps(recorded, tuple(interventions))


def check_any_batch(interventions: Sequence[Intervention], config: HasLayers) -> None:
    """Raise InputError unless such a model has their sites, and they hold for any number of examples."""
    make_taps(config, (), interventions)
    for intervention in interventions:
        for name in ("examples", "mask", "value"):
            if getattr(intervention, name) is not None:
                raise InputError(
                    f"intervention at {intervention.site!r}: {name} is for one size of batch, but batches of several "
                    "sizes are trained on and evaluated; use Intervention.apply with a function, or Intervention.zero"
                )


def _forward_order(name: str) -> tuple[int, int, int]:
    """Sorts sites as a forward pass meets them."""
    if name in OUTER_SITES:
        return (0 if name == "embed" else 2, 0, OUTER_SITES.index(name))
    layer, _, local = name.partition(".")
    return (1, int(layer), LAYER_SITES.index(local))


def _indices(
    site: str, heads: Iterable[int] | None, positions: Iterable[int] | None, examples: Iterable[int] | None
) -> tuple[_Indices, _Indices, _Indices]:
    where = f"intervention at {site!r}"
    return (
        _whole_numbers(f"{where}: heads", heads),
        _whole_numbers(f"{where}: positions", positions),
        _whole_numbers(f"{where}: examples", examples),
    )


def _whole_numbers(argument: str, values: Iterable[int] | None) -> _Indices:
    if values is None:
        return None
    indices = tuple(whole_numbers(argument, values))
    if len(set(indices)) < len(indices):
        raise InputError(f"{argument} holds a number twice: {shown(indices)}; once is enough")
    return indices


def _check_indices(indices: tuple[int, ...], size: int, argument: str) -> None:
    if not indices:
        raise InputError(f"{argument} is empty, which would do nothing; leave it out to mean all of them")
    for index in indices:
        if not 0 <= index < size:
            raise InputError(f"{argument} holds {index}, but there are {size} (0 to {size - 1})")
