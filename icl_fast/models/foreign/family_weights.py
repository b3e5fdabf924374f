"""What other people's models call each of our weights, and how it is laid out there.

Names are without `.weight` and `.bias`; `{}` is the layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from icl_fast.models.config import TransformerConfig
from icl_fast.models.foreign.checkpoint import Layout, Names, one


def _turned(weight: Tensor, _: TransformerConfig) -> Tensor:
    return weight.T if weight.ndim == 2 else weight


def _split_columns(weight: Tensor, config: TransformerConfig) -> list[Tensor]:
    return [_turned(part, config) for part in weight.chunk(3, dim=-1)]


def _join_columns(parts: Sequence[Tensor], config: TransformerConfig) -> Tensor:
    return torch.cat([_turned(part, config) for part in parts], dim=-1)


def _split_heads(weight: Tensor, config: TransformerConfig) -> list[Tensor]:
    by_head = weight.view(config.heads, 3, config.d_head, *weight.shape[1:])
    return [part.flatten(0, 1) for part in by_head.unbind(1)]


def _join_heads(parts: Sequence[Tensor], config: TransformerConfig) -> Tensor:
    by_head = [part.reshape(config.heads, config.d_head, *part.shape[1:]) for part in parts]
    return torch.stack(by_head, dim=1).flatten(0, 2)


def _split_rows(weight: Tensor, config: TransformerConfig) -> Sequence[Tensor]:
    shared = config.kv * config.d_head
    return torch.split(weight, [config.heads * config.d_head, shared, shared])


def _join_rows(parts: Sequence[Tensor], _: TransformerConfig) -> Tensor:
    return torch.cat(list(parts))


TRANSPOSED = one(_turned, _turned)
# in their code the gain is 1 + weight, in float32
PLUS_ONE = one(lambda weight, _: weight.float() + 1, lambda gain, _: gain - 1)
COLUMNS = Layout(_split_columns, _join_columns).each(3)  # queries, keys, values as [C,3C] (GPT-2)
BY_HEAD = Layout(_split_heads, _join_heads).each(3)  # the three as [3C,C], head by head (GPT-NeoX)
ROWS = Layout(_split_rows, _join_rows).each(3)  # the three one below the other (Phi-3)
HALVES = Layout(lambda weight, _: weight.chunk(2), _join_rows).each(2)


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
    name: (str(DECODER[name]), PLUS_ONE)
    for name in ("final_norm", "norm1", "norm2", "attention.q_norm", "attention.k_norm")
}
GEMMA_BOTH: Names = (
    GEMMA
    | {name: (str(theirs), PLUS_ONE) for name, theirs in AFTER.items()}
    | {"norm2": ("layers.{}.pre_feedforward_layernorm", PLUS_ONE)}
)
PHI: Names = DECODER | {
    "final_norm": "final_layernorm",
    "attention.out": "layers.{}.self_attn.dense",
    "mlp.0": "layers.{}.mlp.fc1",
    "mlp.2": "layers.{}.mlp.fc2",
}
PHI3: Names = DECODER | {
    "attention.q": ("layers.{}.self_attn.qkv_proj", ROWS[0]),
    "attention.k": ("layers.{}.self_attn.qkv_proj", ROWS[1]),
    "attention.v": ("layers.{}.self_attn.qkv_proj", ROWS[2]),
    "mlp.gate": ("layers.{}.mlp.gate_up_proj", HALVES[0]),
    "mlp.up": ("layers.{}.mlp.gate_up_proj", HALVES[1]),
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
    "attention.q": ("layers.{}.attention.query_key_value", BY_HEAD[0]),
    "attention.k": ("layers.{}.attention.query_key_value", BY_HEAD[1]),
    "attention.v": ("layers.{}.attention.query_key_value", BY_HEAD[2]),
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
    "attention.q": ("h.{}.attn.c_attn", COLUMNS[0]),
    "attention.k": ("h.{}.attn.c_attn", COLUMNS[1]),
    "attention.v": ("h.{}.attn.c_attn", COLUMNS[2]),
    "attention.out": ("h.{}.attn.c_proj", TRANSPOSED),
    "mlp.0": ("h.{}.mlp.c_fc", TRANSPOSED),
    "mlp.2": ("h.{}.mlp.c_proj", TRANSPOSED),
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
