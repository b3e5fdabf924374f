"""What every measurement of a text model does before it measures: it takes the model out of wrappers and settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch

from icl_fast.errors import InputError
from icl_fast.models import ExemplarModel, Transformer
from icl_fast.models.plain import model_of, why_not_plain

Measure = TypeVar("Measure", bound=Callable[..., Any])


@contextmanager
def as_stated() -> Iterator[None]:
    """No gradients and no autocast: what is measured has the dtype that is stated, whatever surrounds the call."""
    with torch.no_grad(), without_autocast():
        yield


@contextmanager
def without_autocast() -> Iterator[None]:
    """What surrounds the call casts nothing in it."""
    with ExitStack() as settings:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                settings.enter_context(torch.autocast(device, enabled=False))
        yield


def measures_model(measure: Measure) -> Measure:
    """Makes a function of a `Transformer` take wrapped ones too, and run `as_stated`."""

    @wraps(measure)
    def measured(model: Transformer, *args: Any, **keywords: Any) -> Any:
        with as_stated():
            return measure(model_of(Transformer, model), *args, **keywords)

    return measured  # type: ignore[return-value]


def measures_weights(measure: Measure) -> Measure:
    """As `measures_model`, of a function that reads weights: it refuses a model that is more than they say."""

    @wraps(measure)
    def measured(model: Transformer, *args: Any, **keywords: Any) -> Any:
        require_plain(model, measure.__name__)
        return measure(model, *args, **keywords)

    return measures_model(measured)  # type: ignore[return-value]


def require_plain(model: Transformer | ExemplarModel, what: str) -> None:
    """Raises InputError unless config and weights say all that a model computes."""
    if reason := why_not_plain(model):
        raise InputError(f"model: {reason}, which {what} would leave out; undo it, or make it part of the weights")
