"""A TransformerLens HookedTransformer: its state dict, and its config in the same file or in a config.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.files import read_json
from icl_fast.models.config import TransformerConfig, parse_transformer_config
from icl_fast.models.foreign.checkpoint import (
    CONFIG,
    Checkpoint,
    FoundWeights,
    Layout,
    Names,
    match_weights,
    named_tensors,
    one,
    place,
    read_safetensors,
    read_torch,
)
from icl_fast.models.foreign.family_fields import Fields, understood
from icl_fast.models.foreign.lens_fields import DECIDES_NOTHING, hooked_transformer

SUFFIXES = (".pt", ".pth", ".safetensors")
_BUFFERS = (".mask", ".IGNORE", ".rotary_sin", ".rotary_cos")


def is_lens_config(values: Any) -> bool:
    """Whether plain data look like the config of a HookedTransformer."""
    return isinstance(values, dict) and {"n_layers", "d_model", "n_ctx"} <= values.keys()


def is_lens_file(path: Path) -> bool:
    """Whether a file is torch's, and a HookedTransformer's config is beside or above it, or else inside."""
    if path.suffix not in (".pt", ".pth"):
        return False
    try:
        config = _config_near(path)
        return is_lens_config(read_json(config, "model") if config else _read(path)[0])
    except InputError:
        return False


def _config_near(file: Path) -> Path | None:
    folders = (file.parent, file.parent.parent)
    return next((path for folder in folders if (path := folder / CONFIG).is_file()), None)


def _check_heads(weight: Tensor, heads: int, *shape: int) -> None:
    # rows of another number of heads would fit too, and be another model
    if weight.shape != (heads, *shape):
        raise ValueError(f"has other heads than {heads}")


def _by_head(heads: Callable[[TransformerConfig], int]) -> Layout:
    """Queries, keys or values [H*D,C] as [H,C,D]."""

    def split(weight: Tensor, config: TransformerConfig) -> Tensor:
        _check_heads(weight, heads(config), config.width, config.d_head)
        return weight.transpose(1, 2).flatten(0, 1)

    def join(weight: Tensor, config: TransformerConfig) -> Tensor:
        return weight.view(-1, config.d_head, config.width).transpose(1, 2)

    return one(split, join)


def _results(weight: Tensor, config: TransformerConfig) -> Tensor:
    _check_heads(weight, config.heads, config.d_head, config.width)
    return weight.flatten(0, 1).T


def _results_by_head(weight: Tensor, config: TransformerConfig) -> Tensor:
    return weight.T.reshape(config.heads, config.d_head, config.width)


def _flat(bias: Tensor, config: TransformerConfig) -> Tensor:
    _check_heads(bias, len(bias), config.d_head)
    return bias.flatten()


def _zeros(biases: Sequence[Tensor]) -> None:
    if any(bias.any() for bias in biases):
        # theirs is added to the product of both projections, which no option of our model does
        raise ValueError("holds numbers that are not 0, which is not understood where the MLP is gated")


def _split_gated(bias: Tensor, _: TransformerConfig) -> list[Tensor]:
    _zeros([bias])
    return [torch.zeros_like(bias), torch.zeros_like(bias)]


def _join_gated(biases: Sequence[Tensor], _: TransformerConfig) -> Tensor:
    _zeros(biases)
    return biases[0]


_TRANSPOSED = one(lambda weight, _: weight.T, lambda weight, _: weight.T)
_QUERIES, _KEYS = _by_head(lambda config: config.heads), _by_head(lambda config: config.kv)
_RESULTS = one(_results, _results_by_head)
_BIASES = one(_flat, lambda bias, config: bias.view(-1, config.d_head))
_GATE_BIAS, _UP_BIAS = Layout(_split_gated, _join_gated).each(2)

NAMES: Names = {
    "embed.weight": "embed.W_E",
    "position.weight": "pos_embed.W_pos",
    "final_norm.weight": "ln_final.w",
    "final_norm.bias": "ln_final.b",
    "unembed.weight": ("unembed.W_U", _TRANSPOSED),
    "unembed.bias": "unembed.b_U",
    **{
        f"{ours}.{kind}": f"blocks.{{}}.{theirs}.{kind[0]}"
        for ours, theirs in {
            "norm1": "ln1",
            "norm2": "ln2",
            "after1": "ln1_post",
            "after2": "ln2_post",
            "attention.q_norm": "attn.q_norm",
            "attention.k_norm": "attn.k_norm",
            "mlp.1.norm": "mlp.ln",
        }.items()
        for kind in ("weight", "bias")
    },
    "attention.q.weight": ("blocks.{}.attn.W_Q", _QUERIES),
    "attention.q.bias": ("blocks.{}.attn.b_Q", _BIASES),
    "attention.k.weight": ("blocks.{}.attn.W_K", _KEYS),
    "attention.k.bias": ("blocks.{}.attn.b_K", _BIASES),
    "attention.v.weight": ("blocks.{}.attn.W_V", _KEYS),
    "attention.v.bias": ("blocks.{}.attn.b_V", _BIASES),
    "attention.out.weight": ("blocks.{}.attn.W_O", _RESULTS),
    "attention.out.bias": "blocks.{}.attn.b_O",
    "mlp.0.weight": ("blocks.{}.mlp.W_in", _TRANSPOSED),
    "mlp.0.bias": "blocks.{}.mlp.b_in",
    "mlp.2.weight": ("blocks.{}.mlp.W_out", _TRANSPOSED),
    "mlp.2.bias": "blocks.{}.mlp.b_out",
    "mlp.gate.weight": ("blocks.{}.mlp.W_gate", _TRANSPOSED),
    "mlp.gate.bias": ("blocks.{}.mlp.b_in", _GATE_BIAS),
    "mlp.up.weight": ("blocks.{}.mlp.W_in", _TRANSPOSED),
    "mlp.up.bias": ("blocks.{}.mlp.b_in", _UP_BIAS),
    "mlp.down.weight": ("blocks.{}.mlp.W_out", _TRANSPOSED),
    "mlp.down.bias": "blocks.{}.mlp.b_out",
}
GROUPED: Names = {
    f"attention.{part}.{kind}": (f"blocks.{{}}.attn._{letter}_{part.upper()}", layout)
    for part in "kv"
    for kind, letter, layout in (("weight", "W", _KEYS), ("bias", "b", _BIASES))
}


class LensCheckpoint(Checkpoint):
    """A folder with a config.json and one file of weights, or such a file with a config inside, beside or above it."""

    kind = "HookedTransformer (TransformerLens)"

    def __init__(self, path: Path) -> None:
        self.source = f"model {path}"
        file = _only_file(path) if path.is_dir() else path
        self.files = [file]
        values, self._theirs = _read(file)
        source = self.source
        if values is None:
            config = _config_near(file)
            if config is None:
                raise InputError(f"{source}: holds no config of its own, and no {CONFIG} lies beside it or above")
            values, source = read_json(config, "model"), f"model {config}"
            if not is_lens_config(values):
                raise InputError(f"{source}: is not the config of a HookedTransformer (n_layers, d_model, n_ctx)")
        fields = Fields(values, source)
        with understood(source):
            shape = hooked_transformer(fields, self._theirs)
        fields.check_all_read(DECIDES_NOTHING)
        self.config = parse_transformer_config(shape, source)

    def weights(self, names: Iterable[str]) -> FoundWeights:
        names_of_theirs = NAMES | GROUPED if "blocks.0.attn._W_K" in self._theirs else NAMES
        places = {name: place(names_of_theirs, name) for name in names}
        return match_weights(places, self._theirs, self.config, self.source, passed_over=_BUFFERS)


def _only_file(folder: Path) -> Path:
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    final = [path for path in found if path.stem == "model_final"] or found
    if len(final) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputError(f"model {folder}: has to hold one file of weights ({', '.join(SUFFIXES)}), not {names}")
    return final[0]


def _read(file: Path) -> tuple[dict[str, Any] | None, Mapping[str, Tensor]]:
    """The config in a file, if it has one, and its weights."""
    if file.suffix == ".safetensors":
        return None, read_safetensors(file)
    values = read_torch(file)
    config = next((values[key] for key in ("cfg", "config") if is_lens_config(values.get(key))), None)
    inner = next((values[key] for key in ("state_dict", "model_state_dict", "model") if key in values), None)
    return config, named_tensors(values if inner is None else inner, file)
