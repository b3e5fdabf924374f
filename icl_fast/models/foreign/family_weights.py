"""What other people's models call each of our weights, and how it is laid out there.

Names are without `.weight` and `.bias`; `{}` is the layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from icl_fast.models.config import TransformerConfig
from icl_fast.models.foreign.checkpoint import Layout, Names


def _transposed(weight: Tensor, _: TransformerConfig) -> Tensor:
    return weight.T if weight.ndim == 2 else weight


def _plus_one(weight: Tensor, _: TransformerConfig) -> Tensor:
    return weight.float() + 1  # in their code the gain is 1 + weight, in float32


def _third(index: int) -> Layout:
    """Queries, keys or values of a matrix [C,3C] of all three (GPT-2)."""

    def layout(weight: Tensor, config: TransformerConfig) -> Tensor:
        return _transposed(weight.chunk(3, dim=-1)[index], config)

    return layout


def _of_heads(index: int) -> Layout:
    """Queries, keys or values of a matrix [3C,C] that has them head by head (GPT-NeoX)."""

    def layout(weight: Tensor, config: TransformerConfig) -> Tensor:
        by_head = weight.view(config.heads, 3, config.d_head, *weight.shape[1:])
        return by_head[:, index].flatten(0, 1)

    return layout


def _rows(index: int) -> Layout:
    """Queries, keys or values of a matrix of all three, one below the other (Phi-3)."""

    def layout(weight: Tensor, config: TransformerConfig) -> Tensor:
        shared = config.kv * config.d_head
        return torch.split(weight, [config.heads * config.d_head, shared, shared])[index]

    return layout


def _half(index: int) -> Layout:
    def layout(weight: Tensor, _: TransformerConfig) -> Tensor:
        return weight.chunk(2)[index]

    return layout


DECODER: Names = {
    "embed": "embed_tokens",
    "final_norm": "norm",
    "unembed": "lm_head",
    "norm1": "layers.{}.input_layernorm",
    "norm2": "layers.{}.post_attention_layernorm",
    "attention.q": "layers.{}.self_attn.q_proj",
    "attention.k": "layers.{}.self_attn.k_proj",
    "attention.v": "layers.{}.self_attn.v_proj",
    "attention.out": "layers.{}.self_attn.o_proj",
    "attention.q_norm": "layers.{}.self_attn.q_norm",
    "attention.k_norm": "layers.{}.self_attn.k_norm",
    "mlp.gate": "layers.{}.mlp.gate_proj",
    "mlp.up": "layers.{}.mlp.up_proj",
    "mlp.down": "layers.{}.mlp.down_proj",
}
AFTER: Names = {"after1": "layers.{}.post_attention_layernorm", "after2": "layers.{}.post_feedforward_layernorm"}
GEMMA: Names = DECODER | {
    name: (str(DECODER[name]), _plus_one)
    for name in ("final_norm", "norm1", "norm2", "attention.q_norm", "attention.k_norm")
}
GEMMA_BOTH: Names = (
    GEMMA
    | {name: (str(theirs), _plus_one) for name, theirs in AFTER.items()}
    | {"norm2": ("layers.{}.pre_feedforward_layernorm", _plus_one)}
)
PHI: Names = DECODER | {
    "final_norm": "final_layernorm",
    "attention.out": "layers.{}.self_attn.dense",
    "mlp.0": "layers.{}.mlp.fc1",
    "mlp.2": "layers.{}.mlp.fc2",
}
PHI3: Names = DECODER | {
    "attention.q": ("layers.{}.self_attn.qkv_proj", _rows(0)),
    "attention.k": ("layers.{}.self_attn.qkv_proj", _rows(1)),
    "attention.v": ("layers.{}.self_attn.qkv_proj", _rows(2)),
    "mlp.gate": ("layers.{}.mlp.gate_up_proj", _half(0)),
    "mlp.up": ("layers.{}.mlp.gate_up_proj", _half(1)),
}
GPT_NEOX: Names = {
    "embed": "embed_in",
    "final_norm": "final_layer_norm",
    "unembed": "embed_out",
    "norm1": "layers.{}.input_layernorm",
    "norm2": "layers.{}.post_attention_layernorm",
    "attention.out": "layers.{}.attention.dense",
    "mlp.0": "layers.{}.mlp.dense_h_to_4h",
    "mlp.2": "layers.{}.mlp.dense_4h_to_h",
    "attention.q": ("layers.{}.attention.query_key_value", _of_heads(0)),
    "attention.k": ("layers.{}.attention.query_key_value", _of_heads(1)),
    "attention.v": ("layers.{}.attention.query_key_value", _of_heads(2)),
}
_GPT: Names = {
    "embed": "wte",
    "position": "wpe",
    "final_norm": "ln_f",
    "unembed": "lm_head",
    "norm1": "h.{}.ln_1",
    "norm2": "h.{}.ln_2",
}
GPT2: Names = _GPT | {
    "attention.q": ("h.{}.attn.c_attn", _third(0)),
    "attention.k": ("h.{}.attn.c_attn", _third(1)),
    "attention.v": ("h.{}.attn.c_attn", _third(2)),
    "attention.out": ("h.{}.attn.c_proj", _transposed),
    "mlp.0": ("h.{}.mlp.c_fc", _transposed),
    "mlp.2": ("h.{}.mlp.c_proj", _transposed),
}
GPTJ: Names = _GPT | {
    "attention.q": "h.{}.attn.q_proj",
    "attention.k": "h.{}.attn.k_proj",
    "attention.v": "h.{}.attn.v_proj",
    "attention.out": "h.{}.attn.out_proj",
    "mlp.0": "h.{}.mlp.fc_in",
    "mlp.2": "h.{}.mlp.fc_out",
}
GPT_NEO: Names = _GPT | {
    "attention.q": "h.{}.attn.attention.q_proj",
    "attention.k": "h.{}.attn.attention.k_proj",
    "attention.v": "h.{}.attn.attention.v_proj",
    "attention.out": "h.{}.attn.attention.out_proj",
    "mlp.0": "h.{}.mlp.c_fc",
    "mlp.2": "h.{}.mlp.c_proj",
}
