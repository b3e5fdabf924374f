"""A run of the whole model, as it is: also with hooks, replaced modules and whatever else a user changed."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.models import Intervention, Transformer
from icl_fast.models.plain import why_not_plain


def run_model(
    model: Transformer, inputs: Tensor, *, record: Sequence[str] = (), interventions: Sequence[Intervention] = ()
) -> dict[str, Tensor]:
    """The recorded sites of a run over inputs [n,T].

    Raises:
        InputError: as the model does, or a changed model that does not take interventions.
    """
    if why_not_plain(model) is None:
        return model.hidden(inputs, record=record, interventions=interventions)[1]
    return _called(model, inputs, record, interventions)[1]


def run_logits(model: Transformer, inputs: Tensor, *, interventions: Sequence[Intervention] = ()) -> Tensor:
    """Logits [n,T,V] of a run over inputs [n,T].

    Raises:
        InputError: as `run_model`.
    """
    return _called(model, inputs, (), interventions)[0]


def run_losses(
    model: Transformer,
    inputs: Tensor,
    targets: Tensor,
    rows: Tensor | None = None,
    *,
    record: Sequence[str] = (),
    interventions: Sequence[Intervention] = (),
) -> tuple[Tensor, dict[str, Tensor]]:
    """Per-token losses of a run, and the recorded sites.

    Args:
        inputs: [n,T] token ids.
        targets: [n,R] the tokens to predict.
        rows: [n,R] 0-based positions that predict them; None: all, R = T.

    Returns:
        [n,R] losses in nats, float32 (float64 for a float64 model), and the sites.

    Raises:
        InputError: as `run_model`.
    """

    def chosen(stream: Tensor) -> Tensor:
        return stream if rows is None else stream.gather(1, rows[:, :, None].expand(-1, -1, stream.shape[-1]))

    if why_not_plain(model) is None:  # then logits need not be held
        hidden, sites = model.hidden(inputs, record=record, interventions=interventions)
        return model.token_losses(chosen(hidden), targets), sites
    logits, sites = _called(model, inputs, record, interventions)
    wide = chosen(logits).to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape), sites


def _called(
    model: Transformer, inputs: Tensor, record: Sequence[str], interventions: Sequence[Intervention]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits [n,T,V] and sites of a model that was changed: only a call of it runs all of it.

    Sites are recorded by interventions, which also shows whether a `forward` of the user's passes them on.
    """
    met: dict[str, Tensor | None] = {}

    def watching(name: str) -> Intervention:
        def keep(value: Tensor) -> Tensor:
            met[name] = value if name in record else None
            return value

        return Intervention.apply(name, keep)

    names = dict.fromkeys([*record, *(intervention.site for intervention in interventions)])
    try:
        inspect.signature(model.forward).bind(inputs, interventions=())
    except TypeError:
        raise InputError("model: its forward does not take interventions; let it pass them on") from None
    logits: Tensor = model(inputs, interventions=[*interventions, *map(watching, names)])
    if not isinstance(logits, Tensor) or logits.shape != (*inputs.shape, model.config.vocab):
        raise InputError(f"model: its forward must return logits {[*inputs.shape, model.config.vocab]}")
    if missing := [name for name in names if name not in met]:
        raise InputError(f"model: its forward does not pass interventions on (nothing came to {missing[0]!r})")
    return logits, {name: value for name in record if (value := met[name]) is not None}
