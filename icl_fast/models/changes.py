"""What users do to modules after they were made, which whatever computes from their weights would leave out."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

# of a class what does not take part in computing
_HARMLESS = frozenset(["reset_parameters", "extra_repr", "device", "dtype"])
_SPECIAL = frozenset(["__call__", "__getattr__", "__getitem__", "__iter__"])


def original(module: nn.Module) -> nn.Module:
    """A module without the wrappers of torch.compile and of data parallelism."""
    *_, last = wrapping(module)
    return last


def wrapping(module: nn.Module) -> Iterator[nn.Module]:
    """The module as it is, and what is inside every wrapper of it."""
    inner: nn.Module | None = module
    while inner is not None:
        yield inner
        if isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = inner.module
        else:
            inner = inner._modules.get("_orig_mod")  # of torch.compile


def has_forward_hook(module: nn.Module) -> bool:
    """Whether calling it also calls what a user hooked to it."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def why_changed(module: nn.Module, kind: type[nn.Module], name: str, *, hooks: bool = True) -> str | None:
    """Why calling a module is not what its class makes of its weights; None: it is.

    Parametrized weights (`torch.nn.utils.parametrize`) are no change: whoever reads the weight gets what they make.

    Args:
        kind: the class that it should be of.
        name: what the answer calls it.
        hooks: whether forward hooks count.
    """
    if hooks and any(map(has_forward_hook, wrapping(module))):
        return f"{name} has a forward hook"
    module = original(module)
    if not isinstance(module, kind):
        found = type(module)
        theirs = found.__name__ if found.__name__ != kind.__name__ else f"{found.__module__}.{found.__name__}"
        return f"{name} is a {theirs}, no {kind.__name__}"
    own = _methods(kind) & {*vars(module), *(name for cls in _mro_above(type(module), kind) for name in vars(cls))}
    if own:
        return f"{name} has a method {min(own)} of its own"
    return None


def why_unlike(module: nn.Module, made: nn.Module, name: str = "", *, hooks: bool = True) -> str | None:
    """Why a module, or one inside it, is not like one that was just made; None: they differ in their weights alone.

    Args:
        made: a module of the same configuration, on any device.
        name: where it is in the model; empty: it is the model.
        hooks: whether forward hooks count.
    """
    called = name or "the model"
    if reason := why_changed(module, type(made), called, hooks=hooks):
        return reason
    module = original(module)
    if module.extra_repr() != made.extra_repr():
        return f"{called} is not as configured ({module.extra_repr()}; configured: {made.extra_repr()})"
    parts, made_parts = _parts(module), _parts(made)
    if parts.keys() != made_parts.keys():
        return f"{called} has other parts than configured ({', '.join(sorted(parts.keys() ^ made_parts.keys()))})"
    weights, made_weights = _weights(module), _weights(made)
    if more := sorted(weights - made_weights):
        return f"{called} has weights of its own ({', '.join(more)})"
    for weight in sorted(made_weights):
        found, expected = getattr(module, weight, None), getattr(made, weight)
        if found is None or found.shape != expected.shape:
            return f"{called} has no {weight} of the configured shape {list(expected.shape)}"
    reasons = (
        why_unlike(parts[part], made_part, f"{name}.{part}".lstrip("."), hooks=hooks)
        for part, made_part in made_parts.items()
    )
    return next((reason for reason in reasons if reason), None)


def _parts(module: nn.Module) -> dict[str, nn.Module]:
    leave = "parametrizations" if is_parametrized(module) else None
    return {name: part for name, part in module.named_children() if name != leave}


def _weights(module: nn.Module) -> set[str]:
    held = {**module._parameters, **module._buffers}
    names = {name for name, weight in held.items() if weight is not None}
    if is_parametrized(module):
        names |= dict(module.get_submodule("parametrizations").named_children()).keys()
    return names


def _mro_above(kind: type, base: type) -> list[type]:
    """The classes between a class and one that it is derived from, which is left out."""
    return list(kind.__mro__[: kind.__mro__.index(base)])


def _methods(kind: type[nn.Module]) -> set[str]:
    """The names that take part in computing, of all that a module class defines."""
    names = {name for cls in _mro_above(kind, nn.Module) for name in vars(cls) if not name.startswith("__")}
    return (names - _HARMLESS) | _SPECIAL
