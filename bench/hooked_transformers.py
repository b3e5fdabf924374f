"""The ablation sweep of a Llama-like model of transformers, as its users write one: a hooked run for every head.

Patterns are recorded in one run with eager attention. In every other run eager attention is patched: it multiplies the
recorded pattern with the values and computes no score; a hook before the output projection zeroes a head's result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class HookedSweep:
    """The runs of one batch.

    Attributes:
        losses: of the whole model at the rows, [n,R].
    """

    def __init__(self, model: Any, inputs: Tensor, targets: Tensor, rows: Tensor) -> None:
        """
        Args:
            model: a `LlamaForCausalLM` with eager attention.
            inputs: [n,T] token ids.
            targets: [n,T] the tokens to predict.
            rows: [n,R] 0-based positions whose losses are wanted.
        """
        self.model, self.inputs, self.rows = model, inputs, rows
        self.targets = targets.gather(1, rows)
        self.width = model.model.layers[0].self_attn.head_dim
        whole = model(inputs, output_attentions=True, output_hidden_states=True, use_cache=False)
        self.patterns, self.streams = whole.attentions, whole.hidden_states
        positions = torch.arange(inputs.shape[1])[None]
        self.rotary = model.model.rotary_emb(self.streams[0], position_ids=positions)
        self.losses = self._losses(whole.logits)

    def without(self, layer: int, head: int) -> Tensor:
        """Losses without a head, [n,R]: the whole model again."""
        with self._patched(layer, head):
            return self._losses(self.model(self.inputs, use_cache=False).logits)

    def without_from_layer(self, layer: int, head: int) -> Tensor:
        """The same with more care: from the recorded stream before the layer, logits at the rows alone."""
        stream = self.streams[layer]
        with self._patched(layer, head):
            for block in self.model.model.layers[layer:]:
                stream = block(stream, position_embeddings=self.rotary)
        wanted = stream.gather(1, self.rows[..., None].expand(-1, -1, stream.shape[2]))
        return self._cross_entropy(self.model.lm_head(self.model.model.norm(wanted)))

    @contextmanager
    def _patched(self, layer: int, head: int) -> Iterator[None]:
        from transformers.models.llama import modeling_llama

        eager = modeling_llama.eager_attention_forward

        def frozen(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
            value = modeling_llama.repeat_kv(value, module.num_key_value_groups)
            return torch.matmul(self.patterns[module.layer_idx], value).transpose(1, 2).contiguous(), None

        def zero(_: Any, given: tuple[Tensor]) -> None:
            given[0][..., head * self.width : (head + 1) * self.width] = 0

        hook = self.model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(zero)
        modeling_llama.eager_attention_forward = frozen
        try:
            yield
        finally:
            modeling_llama.eager_attention_forward = eager
            hook.remove()

    def _losses(self, logits: Tensor) -> Tensor:
        if self.rows.shape[1] < logits.shape[1]:
            logits = logits.gather(1, self.rows[..., None].expand(-1, -1, logits.shape[2]))
        return self._cross_entropy(logits)

    def _cross_entropy(self, logits: Tensor) -> Tensor:
        """Of logits [n,R,V], [n,R]."""
        return F.cross_entropy(logits.flatten(0, 1), self.targets.flatten(), reduction="none").view_as(self.targets)
