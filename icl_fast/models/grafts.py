"""Models put together from the parts of two: what is taken from a donor, and what training freezes."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch

from icl_fast.errors import InputError
from icl_fast.models.exemplar_config import ExemplarShape
from icl_fast.models.exemplar_transformer import ExemplarTransformer


def parts(shape: ExemplarShape) -> tuple[str, ...]:
    """The parts of a model, in forward order; every parameter is in exactly one of them.

    "embed": exemplar and label embeddings, learned positions. "layer-1", "layer-2", ... (counted from 1, as in the
    names of the clamps): a layer's attention and MLP with the norms before them. "unembed": final norm, unembedding.
    """
    return ("embed", *(f"layer-{number}" for number in range(1, shape.layers + 1)), "unembed")


def part_of(parameter: str) -> str:
    """The part that a parameter of `ExemplarTransformer`, by its name, belongs to."""
    module, _, rest = parameter.partition(".")
    if module == "blocks":
        return f"layer-{int(rest.partition('.')[0]) + 1}"
    return "unembed" if module in ("final_norm", "unembed") else "embed"


def check_parts(shape: ExemplarShape, names: Iterable[str], argument: str = "parts") -> None:
    """Raise InputError unless all are parts of such a model."""
    known = parts(shape)
    for name in names:
        if name not in known:
            raise InputError(f"{argument}: no part {name!r}; a model of {shape.layers} layers has {', '.join(known)}")


def graft(model: ExemplarTransformer, donor: ExemplarTransformer, names: Iterable[str]) -> ExemplarTransformer:
    """A copy of the model with some parts of the donor (Singh 2025, 5.6.1: Fig 5.6b, c; C.5.1).

    "layer-2" and "unembed" from the end of training, into every snapshot: Fig 5.6b. "embed" and "layer-1" from one
    snapshot into all: Fig 5.6c. Of a donor of one member, every member gets the same.

    Args:
        names: of `parts`.

    Raises:
        InputError: an unknown part, a donor of other shapes, members or numbers of outputs.
    """
    names = set(names)
    check_parts(model.config, names)
    if donor.members not in (1, model.members):
        raise InputError(f"donor: has {donor.members} members; must have 1 or the model's {model.members}")
    if names & {"embed", "unembed"} and not bool((model.outputs == donor.outputs).all()):
        raise InputError(f"donor: has outputs {donor.outputs.tolist()}, the model {model.outputs.tolist()}")
    grafted, given = copy.deepcopy(model), dict(donor.named_parameters())
    with torch.no_grad():
        for name, parameter in grafted.named_parameters():
            if part_of(name) not in names:
                continue
            if name not in given or given[name].shape[1:] != parameter.shape[1:]:
                raise InputError(f"donor: its {name} does not fit the model's; graft between models of one shape")
            parameter.copy_(given[name].expand_as(parameter))
    return grafted
