"""Parts of one exemplar model put into another (Singh 2025, 5.6, C.5.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from icl_fast.arguments import different_names, whole_number
from icl_fast.errors import InputError
from icl_fast.models.exemplar_model import ExemplarModel


def part_parameters(model: ExemplarModel, parts: Sequence[str]) -> list[str]:
    """The names of the parameters of some parts; of all if none is named.

    Args:
        parts: `embed` (exemplars, labels, positions), `layer-1`, `layer-2`, ..., `unembed` (the final norm too).

    Raises:
        InputError: a part that the model does not have, or that is named twice.
    """
    prefixes: dict[str, tuple[str, ...]] = {"embed": ("embed_", "position"), "unembed": ("final_norm.", "unembed.")}
    prefixes |= {f"layer-{layer + 1}": (f"blocks.{layer}.",) for layer in range(model.config.layers)}
    for part in different_names("parts", parts):
        if part not in prefixes:
            raise InputError(f"part {part}: must be one of {', '.join(sorted(prefixes))}")
    wanted = tuple(prefix for part in parts or prefixes for prefix in prefixes[part])
    return [name for name, _ in model.named_parameters() if name.startswith(wanted)]


@torch.no_grad()
def graft(
    model: ExemplarModel,
    donor: ExemplarModel,
    parts: Sequence[str],
    *,
    member: int = 0,
    donor_member: int = 0,
) -> None:
    """Put parts of a member of `donor` into a member of `model`, in place.

    Raises:
        InputError: an unknown part, no such member, or weights of other shapes.
    """
    for which, count, index in (("member", model.members, member), ("donor_member", donor.members, donor_member)):
        if not 0 <= whole_number(which, index) < count:
            raise InputError(f"{which} {index}: there are {count} (0 to {count - 1})")
    given = dict(donor.named_parameters())
    for name in part_parameters(model, parts):
        own = model.get_parameter(name)[member]
        other = given[name][donor_member] if name in given else None
        if other is None or other.shape != own.shape:
            shape = "missing" if other is None else list(other.shape)
            raise InputError(f"{name}: is {shape} in the donor, {list(own.shape)} in the model; graft other parts")
        own.copy_(other)
