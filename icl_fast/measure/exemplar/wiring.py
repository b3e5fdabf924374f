"""Which first-layer heads which last-layer heads read, and how: the wiring of an exemplar model (Singh 2025, C.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from icl_fast.arguments import finite_number, whole_number
from icl_fast.errors import InputError
from icl_fast.files import atomic_write
from icl_fast.measure.ablation.modes import MODES
from icl_fast.measure.exemplar.answers import METRICS
from icl_fast.measure.exemplar.measured_model import MeasuredModel, SecondPass, only_head, without_heads
from icl_fast.measure.heads.circuits import LayerWeights, composition_of
from icl_fast.measure.of_model import as_stated, require_plain
from icl_fast.models import ExemplarModel, ExemplarTransformer
from icl_fast.models.blocks import layer_norm
from icl_fast.models.clamps import Head
from icl_fast.models.plain import model_of

PRESERVE = {name: MODES[name] for name in ("value-preserving", "pattern-preserving")}
KINDS = {
    "single": "one writer removed",
    "single-pair": "all writers removed but one",
}

_MAP = ("kind", "preserve", "writer", "reader", "member")
WIRING_MAP: dict[str, tuple[str, ...]] = {  # of `wiring_map`: name -> dims
    **{name: (name,) for name in (*_MAP[:-1], "matrix")},
    **{metric: _MAP for metric in METRICS},
    **{f"{metric}_alone": _MAP[3:] for metric in METRICS},
    **{name: ("matrix", *_MAP[2:]) for name in ("composition", "composition_folded")},
}


def wiring_map(measured: MeasuredModel, *, writers: int = 0, readers: int = -1) -> xr.Dataset:
    """How one head of an earlier layer serves one head of a later layer, the others of that layer removed (Fig C.3).

    With values preserved what is measured goes by way of patterns (the match), with patterns preserved by way of
    values (the copy); preserved are those of a pass in which nothing is removed.

    Args:
        writers, readers: the two layers; negative ones count from the last. Other layers keep all heads.

    Returns:
        The metrics of `StrategyMetrics`, each `[kind, preserve, writer, reader, member]` with the kinds "single" (that
        writer removed; Fig C.3 left is its difference from "alone") and "single-pair" (only that writer kept; middle),
        and as `<metric>_alone` `[reader, member]`: no writer removed. `composition` `[matrix, writer, reader, member]`:
        composition scores of q, k and v (right), as the thesis defines them; `composition_folded`: norms folded in.

    Raises:
        InputError: layers that are not one before the other.
    """
    config = measured.model.config
    layers, count = config.layers, config.heads
    writers, readers = whole_number("writers", writers), whole_number("readers", readers)
    if not (-layers <= writers < layers and -layers <= readers < layers and writers % layers < readers % layers):
        raise InputError(f"writers {writers}, readers {readers}: must be two of {layers} layers, the first one earlier")
    writers, readers = writers % layers, readers % layers
    alone = [only_head(config, readers, reader) for reader in range(count)]
    left = {
        "single": [without_heads(config, [(writers, head)]) for head in range(count)],
        "single-pair": [only_head(config, writers, head) for head in range(count)],
    }
    passes = [SecondPass(heads) for heads in alone]
    passes += [
        SecondPass(kept * heads, preserve=preserve)
        for kind in KINDS
        for preserve in PRESERVE.values()
        for kept in left[kind]
        for heads in alone
    ]
    means = measured.second_pass_means(passes)
    shape = (len(KINDS), len(PRESERVE), count, count, measured.model.members)
    found = xr.Dataset(
        coords={
            "kind": list(KINDS),
            "preserve": list(PRESERVE),
            "writer": [f"{writers}.{head}" for head in range(count)],
            "reader": [f"{readers}.{head}" for head in range(count)],
            "matrix": ["q", "k", "v"],
        },
        attrs={"evaluator": measured.evaluator.name},
    )
    for name in METRICS:
        values = getattr(means, name).cpu().numpy()
        found[name] = _MAP, values[count:].reshape(shape)
        found[f"{name}_alone"] = _MAP[3:], values[:count]
    for variable, folded in (("composition", False), ("composition_folded", True)):
        scores = composition_scores(measured.model, folded=folded)
        between = np.stack([scores[name][:, writers, :, readers].cpu().numpy() for name in "qkv"])
        found[variable] = ("matrix", "member", "writer", "reader"), between
        found[variable] = found[variable].transpose("matrix", *_MAP[2:])
    return found


def remove_sets(measured: MeasuredModel, sets: Mapping[str, Sequence[Head]]) -> xr.Dataset:
    """Sets of heads removed, values or patterns preserved, everything else active (table C.3).

    Returns:
        The metrics of `StrategyMetrics`, each `[set, preserve, member]`.

    Raises:
        InputError: no set, or a head that the model does not have.
    """
    if not sets:
        raise InputError("sets: none given")
    passes = [
        SecondPass(without_heads(measured.model.config, heads), preserve=preserve)
        for heads in sets.values()
        for preserve in PRESERVE.values()
    ]
    means = measured.second_pass_means(passes)
    shape = (len(sets), len(PRESERVE), measured.model.members)
    variables = {name: getattr(means, name).cpu().numpy().reshape(shape) for name in METRICS}
    dims = ("set", "preserve", "member")
    return xr.Dataset(
        {name: (dims, values) for name, values in variables.items()},
        coords={"set": list(sets), "preserve": list(PRESERVE)},
        attrs={"evaluator": measured.evaluator.name},
    )


def previous_token_heads(previous_token: Tensor, least: float = 0.5) -> list[Head]:
    """The first layer's previous-token heads, of `[L,H]`, one member's `AttentionMetrics.previous_token`.

    The thesis names them "by inspecting attention patterns" (4.3.3); here labels attend to the exemplar before them
    with a weight of `least` or more.

    Raises:
        InputError: a `least` that is no finite number.
    """
    finite_number("least", least)
    return [(0, head) for head, weight in enumerate(previous_token[0].tolist()) if weight >= least]


def save_wiring(found: xr.Dataset, path: str | Path) -> Path:
    """Write every array, and the names along its dims as `dim:<name>`, into an .npz file; it appears whole or not.

    A name without that ending gets it.

    Raises:
        InputError: the disk is full or the folder not writable.
    """
    path = Path(path)
    target = path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")
    arrays: dict[str, Any] = {str(name): values.values for name, values in found.data_vars.items()}
    arrays |= {f"dim:{name}": np.asarray(values.values, np.str_) for name, values in found.coords.items()}
    arrays |= {f"dims of {name}": np.array(values.dims, np.str_) for name, values in found.data_vars.items()}
    with atomic_write(target) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
    return target


@as_stated()
def composition_scores(model: ExemplarModel, *, folded: bool = True) -> dict[str, Tensor]:
    """Composition scores of every member from its weights: "q", "k" and "v", `[P,L,H,L,H]` float64.

    Args:
        folded: with the norms' gain and centring in the weights, as `icl_fast.measure.heads.composition_scores`; else
            of the weights as they are (Singh 2025, C.3).

    Raises:
        InputError: a model with hooks or other changes, which its weights say nothing of.
    """
    model = model_of(ExemplarTransformer, model)
    require_plain(model, "composition_scores")
    members = [composition_of(_layer_weights(model, member, folded)) for member in range(model.members)]
    return {name: torch.stack([scores[name] for scores in members]) for name in "qkv"}


def _layer_weights(model: ExemplarTransformer, member: int, folded: bool) -> list[LayerWeights]:
    layers = []
    for block in model.blocks:
        attention, gain = block.attention, layer_norm(block.norm1).weight[member].double()
        q, k, v = (
            linear.weight[member].double().view(model.config.heads, -1, model.config.width).mT
            for linear in (attention.q, attention.k, attention.v)
        )  # [H,C,D]
        o = attention.out.weight[member].double().T.view(model.config.heads, -1, model.config.width)  # [H,D,C]
        if folded:
            q, k, v = (gain[:, None] * weight for weight in (q, k, v))
            q, k, v = (weight - weight.mean(1, keepdim=True) for weight in (q, k, v))
            o = o - o.mean(-1, keepdim=True)
        layers.append(LayerWeights(q, k, v, o))
    return layers
