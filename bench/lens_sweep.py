"""Our models in TransformerLens, and its ablation sweep as its users write one: a hooked run for every head.

    pip install transformer_lens==3.5.1

after torch, in an environment of its own: it brings about 40 packages (transformers, datasets, wandb, pyarrow). Later
versions have neither HookedTransformer nor shortformer positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from baselines import module_or_none
from torch import Tensor

PACKAGE = "transformer_lens"


def missing() -> str:
    """Why TransformerLens cannot run here; empty if it can."""
    package = module_or_none(PACKAGE)
    if package is None:
        return f"{PACKAGE} is not installed"
    return "" if hasattr(package, "HookedTransformer") else f"{PACKAGE} is too new: it has no HookedTransformer"


def to_transformer_lens(model: Any) -> Any:
    """A HookedTransformer of the same weights and function.

    Args:
        model: an icl_fast.Transformer with shortformer positions, plain keys, dense heads and affine LayerNorms. What
            has no bias there has a bias of zeros here: TransformerLens knows no layer without.

    Raises:
        ValueError: a model that TransformerLens cannot express.
    """
    config = model.config
    if config.position != "shortformer" or config.key != "plain" or config.windows or not config.norm_affine:
        raise ValueError(f"only shortformer positions, plain keys, dense heads and affine norms, not {config}")
    package = module_or_none(PACKAGE)
    lens = package.HookedTransformer(
        package.HookedTransformerConfig(
            n_layers=config.layers,
            d_model=config.width,
            n_heads=config.heads,
            d_head=config.d_head,
            d_mlp=config.mlp_ratio * config.width if config.mlp else None,
            n_ctx=config.context,
            d_vocab=config.vocab,
            attn_only=not config.mlp,
            act_fn={"gelu": "gelu", "gelu_tanh": "gelu_new"}[config.activation] if config.mlp else None,
            normalization_type="LN",
            eps=config.norm_eps,
            positional_embedding_type="shortformer",
            device=str(model.embed.weight.device),
            dtype=model.embed.weight.dtype,
            init_weights=False,
        )
    )
    weights = dict(_weights(model))
    with torch.no_grad():
        for name, parameter in lens.named_parameters():
            value = weights.pop(name, None)
            if value is None and ".b_" not in name:
                raise ValueError(f"TransformerLens has {name}, for which this model has nothing")
            parameter.copy_(torch.zeros(()) if value is None else value.reshape(parameter.shape))
    if weights:
        raise ValueError(f"TransformerLens has no {', '.join(weights)}")
    return lens.eval()


def _weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Every weight under its name there; its matrices map rows to the left, ours as torch.nn.Linear does."""
    heads, width = model.config.heads, model.config.width

    def norm(name: str, layer: Any) -> Iterator[tuple[str, Tensor]]:
        yield from ((f"{name}.w", layer.weight), (f"{name}.b", layer.bias))

    def linear(name: str, label: str, layer: Any, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield f"{name}.W_{label}", weight
        if layer.bias is not None:
            yield f"{name}.b_{label}", layer.bias

    yield "embed.W_E", model.embed.weight
    yield "pos_embed.W_pos", model.position.weight
    for index, block in enumerate(model.blocks):
        name = f"blocks.{index}"
        yield from norm(f"{name}.ln1", block.norm1)
        for label, layer in (("Q", block.attention.q), ("K", block.attention.k), ("V", block.attention.v)):
            yield from linear(f"{name}.attn", label, layer, layer.weight.view(heads, -1, width).transpose(1, 2))
        yield from linear(f"{name}.attn", "O", block.attention.out, block.attention.w_o)
        if block.mlp is not None:
            yield from norm(f"{name}.ln2", block.norm2)
            for label, layer in (("in", block.mlp[0]), ("out", block.mlp[2])):
                yield from linear(f"{name}.mlp", label, layer, layer.weight.T)
    yield from norm("ln_final", model.final_norm)
    yield from linear("unembed", "U", model.unembed, model.unembed.weight.T)


def sweep(
    lens: Any, inputs: Tensor, targets: Tensor, rows: Tensor, *, sliced: bool, freeze: bool
) -> tuple[Tensor, Tensor]:
    """Zero-ablate every head alone: patterns cached once, then one hooked run of the whole model for each head.

    Args:
        lens: a HookedTransformer.
        inputs: [n,T] token ids.
        targets: [n,T] the tokens to predict.
        rows: [n,R] 0-based positions whose losses are wanted.
        sliced: slice the residual stream to the rows before it is unembedded, instead of the losses at all positions.
        freeze: attention patterns are those of the un-ablated run.

    Returns:
        [n,R] un-ablated losses, and [A,n,R] what each ablation adds to them, layer by layer.
    """
    layers, heads = lens.cfg.n_layers, lens.cfg.n_heads
    patterns: dict[str, Tensor] = {}

    def losses(hooks: Sequence[tuple[str, Callable[..., Tensor | None]]]) -> Tensor:
        if not sliced:
            logits = lens.run_with_hooks(inputs, return_type="logits", fwd_hooks=hooks)
            return _cross_entropy(logits, targets).gather(1, rows)
        resid = lens.run_with_hooks(inputs, stop_at_layer=layers, fwd_hooks=hooks)
        chosen = resid.gather(1, rows[:, :, None].expand(-1, -1, resid.shape[-1]))
        return _cross_entropy(lens.unembed(lens.ln_final(chosen)), targets.gather(1, rows))

    def keep(pattern: Tensor, hook: Any) -> None:
        patterns[hook.name] = pattern

    def restore(pattern: Tensor, hook: Any) -> Tensor:
        return patterns[hook.name]

    def without(head: int) -> Callable[..., Tensor]:
        def zero(z: Tensor, hook: Any) -> Tensor:  # [n,T,H,D]
            z[:, :, head] = 0
            return z

        return zero

    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(layers)] if freeze else []
    base = losses([(name, keep) for name in names])
    frozen = [(name, restore) for name in names]
    every = [(f"blocks.{layer}.attn.hook_z", head) for layer in range(layers) for head in range(heads)]
    return base, torch.stack([losses([*frozen, (name, without(head))]) - base for name, head in every])


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Of logits [n,R,V], [n,R]."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
