"""A GGUF file (llama.cpp) as the Hugging Face model that it was made of.

Architectures whose tensors and metadata say all that a family's config.json says. Where they do not, llama.cpp has the
same default as the family; a family's choice that no GGUF file can tell (GPT-NeoX' activation) is the family's default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.models.config import RotaryScaling, TransformerConfig
from icl_fast.models.foreign.checkpoint import Checkpoint, FoundWeights, Names, match_weights, one, place
from icl_fast.models.foreign.families import FAMILIES
from icl_fast.models.foreign.family_fields import Fields, understood
from icl_fast.models.foreign.family_weights import HALVES, ROWS
from icl_fast.models.foreign.gguf_format import GGUFFile
from icl_fast.models.positions import stretched

_KEYS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.clamp_kqv": "clip_qkv",
    "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": "sliding_window_pattern",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "use_parallel_residual": "use_parallel_residual",
}
_GPT2_KEYS = {
    "block_count": "n_layer",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "context_length": "n_positions",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_SCALING = {
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
_DECIDES_NOTHING = ("rope.scaling.finetuned", "vocab_size")


def _unpermuted(weight: Tensor, config: TransformerConfig) -> Tensor:
    """Rows of queries or keys that lie as pairs (0,1), (2,3), ... of each head, as (0,D/2), (1,D/2+1), ... again."""
    pairs = weight.view(-1, config.d_head // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)


_NAMES: Names = {
    "embed": "token_embd",
    "position": "position_embd",
    "final_norm": "output_norm",
    "unembed": "output",
    "norm1": "blk.{}.attn_norm",
    "norm2": "blk.{}.ffn_norm",
    "after1": "blk.{}.post_attention_norm",
    "after2": "blk.{}.post_ffw_norm",
    "attention.q": "blk.{}.attn_q",
    "attention.k": "blk.{}.attn_k",
    "attention.v": "blk.{}.attn_v",
    "attention.out": "blk.{}.attn_output",
    "attention.q_norm": "blk.{}.attn_q_norm",
    "attention.k_norm": "blk.{}.attn_k_norm",
    "mlp.gate": "blk.{}.ffn_gate",
    "mlp.up": "blk.{}.ffn_up",
    "mlp.down": "blk.{}.ffn_down",
    "mlp.0": "blk.{}.ffn_up",
    "mlp.2": "blk.{}.ffn_down",
}
_PERMUTED: Names = {
    "attention.q": ("blk.{}.attn_q", one(_unpermuted)),
    "attention.k": ("blk.{}.attn_k", one(_unpermuted)),
}
_FUSED: Names = {f"attention.{part}": ("blk.{}.attn_qkv", ROWS[index]) for index, part in enumerate("qkv")}
_FUSED_GATE: Names = {"mlp.gate": ("blk.{}.ffn_up", HALVES[0]), "mlp.up": ("blk.{}.ffn_up", HALVES[1])}


Step = Callable[[dict[str, Any], GGUFFile], None]


def _heads(fields: dict[str, Any], _: GGUFFile) -> None:
    """A head's width, which the file may say several times; of queries and keys all of it is rotated."""
    width = fields.setdefault("head_dim", fields["hidden_size"] // fields["num_attention_heads"])
    for same in ("attention.value_length", "rope.dimension_count"):
        if fields.get(same) == width:
            del fields[same]


def _rotated_part(fields: dict[str, Any], _: GGUFFile) -> None:
    width = fields["hidden_size"] // fields["num_attention_heads"]
    fields["partial_rotary_factor"] = fields.pop("rope.dimension_count", width) / width


def _biases(fields: dict[str, Any], file: GGUFFile) -> None:
    fields |= {"attention_bias": "blk.0.attn_q.bias" in file, "mlp_bias": "blk.0.ffn_up.bias" in file}


def _llama3_scaling(fields: dict[str, Any], file: GGUFFile) -> None:
    """By what the frequencies are divided, [D/2]: of Llama 3 all but the factor is always the same."""
    if "rope_freqs.weight" not in file:
        return
    divisors = file["rope_freqs.weight"].double()
    base = float(fields.get("rope_theta", 10_000.0))
    scaling = RotaryScaling(kind="llama3", factor=max(float(divisors.max()), 1.0), original_context=8192)
    frequencies = base ** -(torch.arange(len(divisors), dtype=torch.float64) / len(divisors))
    scaled = stretched(frequencies, 2 * len(divisors), base, scaling)
    if not torch.allclose(frequencies / scaled, divisors, rtol=1e-4):
        raise InputError(f"model {file.path}: rope_freqs.weight is not understood; it is not the scaling of Llama 3")
    fields["rope_scaling"] = {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.original_context,
    }


def _query_scale(fields: dict[str, Any], _: GGUFFile) -> None:
    """That of Gemma 2 and 3, which no file says: llama.cpp knows that in the two of 27B it is not the head's width."""
    of_27b = fields["num_hidden_layers"] in (46, 62)
    of_width = fields["hidden_size"] // fields["num_attention_heads"]
    fields["query_pre_attn_scalar"] = of_width if of_27b else fields["head_dim"]


def _fixed_epsilon(fields: dict[str, Any], _: GGUFFile) -> None:
    if fields.get("layer_norm_eps") == 1e-5:  # OLMo's, which has no field
        del fields["layer_norm_eps"]


@dataclass(frozen=True)
class _Architecture:
    """One of llama.cpp's.

    Attributes:
        family: which of `FAMILIES` it is.
        steps: what completes the fields of a config.json that `keys` give.
        names: of our weights: where they are in the file, but for those that are where `_NAMES` has them.
        keys: of the metadata, with the fields that they are.
    """

    family: str
    steps: tuple[Step, ...] = (_heads,)
    names: Names = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=lambda: _KEYS)


_ARCHITECTURES = {
    "llama": _Architecture("llama", (_heads, _biases, _llama3_scaling), _PERMUTED),
    "qwen2": _Architecture("qwen2"),
    "qwen3": _Architecture("qwen3"),
    "gemma": _Architecture("gemma"),
    "gemma2": _Architecture("gemma2", (_heads, _query_scale)),
    "gemma3": _Architecture("gemma3_text", (_heads, _query_scale)),
    "olmo": _Architecture("olmo", (_heads, _fixed_epsilon), _PERMUTED),
    "olmo2": _Architecture("olmo2"),
    "phi2": _Architecture("phi", (_rotated_part,)),
    "phi3": _Architecture("phi3", names=_FUSED_GATE),
    "gptneox": _Architecture("gpt_neox", (_rotated_part,)),
    "gpt2": _Architecture("gpt2", (), keys=_GPT2_KEYS),
}


class GGUFCheckpoint(Checkpoint):
    """A GGUF file of one of the architectures that are known."""

    def __init__(self, path: Path) -> None:
        self.source, self.files, self.file = f"model {path}", [path], GGUFFile(path)
        name = self.file.metadata.get("general.architecture")
        if not isinstance(name, str) or name not in _ARCHITECTURES:
            known = ", ".join(_ARCHITECTURES)
            raise InputError(f"{self.source}: GGUF architecture {name!r} is not known; known are {known}")
        if self.file.metadata.get("split.count", 1) not in (0, 1):
            raise InputError(f"{self.source}: is one file of several; join them first (llama-gguf-split --merge)")
        self.kind, self._architecture = f"{name} (GGUF)", _ARCHITECTURES[name]
        with understood(self.source):
            fields = self._fields(f"{name}.")
        self.config = FAMILIES[self._architecture.family].config(Fields(fields, self.source))

    def _fields(self, prefix: str) -> dict[str, Any]:
        """The config.json that the metadata stand for; what has no place in it keeps its key, for it to be refused."""
        fields: dict[str, Any] = {"tie_word_embeddings": "output.weight" not in self.file}
        if "token_embd.weight" in self.file:
            fields["vocab_size"] = self.file.shape("token_embd.weight")[0]
        scaling: dict[str, Any] = {}
        for key, value in self.file.metadata.items():
            own = key.removeprefix(prefix)
            if own == key or own in _DECIDES_NOTHING:
                continue
            if own in _SCALING:
                scaling[_SCALING[own]] = value
            else:
                of_all = isinstance(value, list) and len(set(value)) == 1  # one for each layer
                fields[self._architecture.keys.get(own, own)] = value[0] if of_all else value
        if scaling.get("rope_type", "none") != "none":
            fields["rope_scaling"] = scaling
        if fields.get("sliding_window") == 0:  # so says the converter of Phi-4 that there is none
            del fields["sliding_window"]
        for step in self._architecture.steps:
            step(fields, self.file)
        return fields

    def weights(self, names: Iterable[str]) -> FoundWeights:
        table = _NAMES | self._architecture.names | (_FUSED if "blk.0.attn_qkv.weight" in self.file else {})
        places = {name: place(table, name) for name in names}
        return match_weights(places, self.file, self.config, self.source, passed_over=("rope_freqs.weight",))
