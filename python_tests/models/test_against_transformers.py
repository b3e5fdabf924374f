"""Our Transformer against Hugging Face's implementations of the same architectures, with copied random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icl_fast.models import Transformer, TransformerConfig

transformers = pytest.importorskip("transformers")

WIDTH, HEADS, LAYERS, VOCAB, CONTEXT = 24, 3, 2, 31, 64
SHAPE: dict[str, Any] = {"layers": LAYERS, "width": WIDTH, "heads": HEADS, "vocab": VOCAB, "context": CONTEXT}
Weights = dict[str, Tensor]


@dataclass
class Case:
    """One architecture: their model, our config of it, and how their weights (or gradients) are named by us."""

    theirs: nn.Module
    config: TransformerConfig
    rename: Callable[[Weights], Weights]


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Weights far from their initial values: no bias is 0, no gain is 1, logits of size 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if norm else noise * (0.25 if parameter.ndim == 2 else 0.3))


def linear(ours: str, theirs: str, w: Weights, *, transpose: bool = False) -> Weights:
    """A linear layer's or LayerNorm's weight and, where there is one, bias."""
    weight = w[f"{theirs}.weight"]
    bias = {f"{ours}.bias": w[f"{theirs}.bias"]} if f"{theirs}.bias" in w else {}
    return {f"{ours}.weight": weight.T if transpose else weight, **bias}


def gpt2(attention: str, **_: Any) -> Case:
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, tie_word_embeddings=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation=attention,
    )  # fmt: skip
    ours = TransformerConfig(
        **SHAPE, mlp=True, activation="gelu_tanh", position="learned", attention_bias=True, norm_eps=1e-5
    )

    def rename(w: Weights) -> Weights:
        out = {
            "embed.weight": w["transformer.wte.weight"],
            "position.weight": w["transformer.wpe.weight"],
            **linear("final_norm", "transformer.ln_f", w),
            "unembed.weight": w["lm_head.weight"],
        }
        for i in range(LAYERS):
            a, b = f"blocks.{i}", f"transformer.h.{i}"
            for n, part in enumerate("qkv"):  # GPT-2's Conv1D keeps its weights as [in, out]
                out[f"{a}.attention.{part}.weight"] = w[f"{b}.attn.c_attn.weight"].T.chunk(3)[n]
                out[f"{a}.attention.{part}.bias"] = w[f"{b}.attn.c_attn.bias"].chunk(3)[n]
            out |= linear(f"{a}.attention.out", f"{b}.attn.c_proj", w, transpose=True)
            out |= linear(f"{a}.mlp.0", f"{b}.mlp.c_fc", w, transpose=True)
            out |= linear(f"{a}.mlp.2", f"{b}.mlp.c_proj", w, transpose=True)
            out |= linear(f"{a}.norm1", f"{b}.ln_1", w) | linear(f"{a}.norm2", f"{b}.ln_2", w)
        return out

    return Case(transformers.GPT2LMHeadModel(config), ours, rename)


def gpt_neox(attention: str, *, fraction: float = 1.0, base: float = 10_000.0, biases: bool = True) -> Case:
    config = transformers.GPTNeoXConfig(
        vocab_size=VOCAB, max_position_embeddings=CONTEXT, hidden_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, intermediate_size=4 * WIDTH, hidden_act="gelu", use_parallel_residual=False,
        rotary_pct=fraction, rotary_emb_base=base, attention_bias=biases, tie_word_embeddings=False,
        attn_implementation=attention,
    )  # fmt: skip
    assert config.rope_parameters["partial_rotary_factor"] == fraction
    assert config.rope_parameters["rope_theta"] == base
    ours = TransformerConfig(
        **SHAPE, mlp=True, position="rotary", rotary_fraction=fraction, rotary_base=base, attention_bias=biases
    )

    def rename(w: Weights) -> Weights:
        out = {
            "embed.weight": w["gpt_neox.embed_in.weight"],
            **linear("final_norm", "gpt_neox.final_layer_norm", w),
            "unembed.weight": next(w[name] for name in ("embed_out.weight", "lm_head.weight") if name in w),
        }
        for i in range(LAYERS):
            a, b = f"blocks.{i}", f"gpt_neox.layers.{i}"
            for kind in ("weight", "bias") if biases else ("weight",):
                joined = w[f"{b}.attention.query_key_value.{kind}"]
                by_head = joined.view(HEADS, 3, WIDTH // HEADS, *joined.shape[1:])
                for n, part in enumerate("qkv"):
                    out[f"{a}.attention.{part}.{kind}"] = by_head[:, n].flatten(0, 1)
            out |= linear(f"{a}.attention.out", f"{b}.attention.dense", w)
            out |= linear(f"{a}.mlp.0", f"{b}.mlp.dense_h_to_4h", w) | linear(f"{a}.mlp.2", f"{b}.mlp.dense_4h_to_h", w)
            out |= linear(f"{a}.norm1", f"{b}.input_layernorm", w)
            out |= linear(f"{a}.norm2", f"{b}.post_attention_layernorm", w)
        return out

    return Case(transformers.GPTNeoXForCausalLM(config), ours, rename)


def gpt_j(attention: str, *, fraction: float = 1.0) -> Case:
    """Interleaved rotary. Its MLP runs beside the attention; with the MLP silenced that is our attention-only model."""
    config = transformers.GPTJConfig(
        vocab_size=VOCAB, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        rotary_dim=int(WIDTH // HEADS * fraction), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        attn_implementation=attention,
    )  # fmt: skip
    ours = TransformerConfig(
        **SHAPE, position="rotary", rotary_interleaved=True, rotary_fraction=fraction, unembed_bias=True
    )

    def rename(w: Weights) -> Weights:
        out = {"embed.weight": w["transformer.wte.weight"], **linear("final_norm", "transformer.ln_f", w)}
        out |= linear("unembed", "lm_head", w)
        for i in range(LAYERS):
            a, b = f"blocks.{i}", f"transformer.h.{i}"
            out |= linear(f"{a}.norm1", f"{b}.ln_1", w)
            for part in ("q", "k", "v", "out"):
                out |= linear(f"{a}.attention.{part}", f"{b}.attn.{part}_proj", w)
        return out

    return Case(transformers.GPTJForCausalLM(config), ours, rename)


def gpt_neo(attention: str, *, window: int) -> Case:
    """A dense layer, then one of local attention. Scores are unscaled there, so that our queries are sqrt(D) larger."""
    config = transformers.GPTNeoConfig(
        vocab_size=VOCAB, max_position_embeddings=CONTEXT, hidden_size=WIDTH, num_layers=LAYERS, num_heads=HEADS,
        attention_types=[[["global", "local"], 1]], window_size=window, activation_function="gelu_new",
        resid_dropout=0.0, embed_dropout=0.0, attention_dropout=0.0, tie_word_embeddings=False,
        attn_implementation=attention,
    )  # fmt: skip
    ours = TransformerConfig(
        **SHAPE, mlp=True, activation="gelu_tanh", position="learned", attention_bias=True,
        windows=[[None] * HEADS, [window] * HEADS],
    )  # fmt: skip

    def rename(w: Weights) -> Weights:
        out = {
            "embed.weight": w["transformer.wte.weight"],
            "position.weight": w["transformer.wpe.weight"],
            **linear("final_norm", "transformer.ln_f", w),
            "unembed.weight": w["lm_head.weight"],
        }
        for i in range(LAYERS):
            a, b = f"blocks.{i}", f"transformer.h.{i}"
            for part in "qkv":
                scale = (WIDTH / HEADS) ** 0.5 if part == "q" else 1.0
                out[f"{a}.attention.{part}.weight"] = w[f"{b}.attn.attention.{part}_proj.weight"] * scale
                out[f"{a}.attention.{part}.bias"] = torch.zeros(WIDTH)
            out |= linear(f"{a}.attention.out", f"{b}.attn.attention.out_proj", w)
            out |= linear(f"{a}.mlp.0", f"{b}.mlp.c_fc", w) | linear(f"{a}.mlp.2", f"{b}.mlp.c_proj", w)
            out |= linear(f"{a}.norm1", f"{b}.ln_1", w) | linear(f"{a}.norm2", f"{b}.ln_2", w)
        return out

    return Case(transformers.GPTNeoForCausalLM(config), ours, rename)


def paired(case: Case, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Transformer]:
    """Both models with the same random weights."""
    randomise(case.theirs)
    for name, parameter in case.theirs.named_parameters():
        if "gptj" in type(case.theirs).__name__.lower() and ".mlp.fc_out" in name:
            nn.init.zeros_(parameter)
    ours = Transformer(case.config)
    ours.load_state_dict(case.rename(dict(case.theirs.named_parameters())))  # strict: none missing, none left over
    return case.theirs.eval().to(dtype), ours.to(dtype)


CASES = [
    pytest.param(lambda: gpt2("eager"), id="gpt2-eager"),
    pytest.param(lambda: gpt2("sdpa"), id="gpt2-sdpa"),
    pytest.param(lambda: gpt_neox("eager"), id="neox-eager"),
    pytest.param(lambda: gpt_neox("sdpa"), id="neox-sdpa"),
    pytest.param(lambda: gpt_neox("eager", fraction=0.25), id="neox-quarter-eager"),
    pytest.param(lambda: gpt_neox("sdpa", fraction=0.25), id="neox-quarter-sdpa"),
    pytest.param(lambda: gpt_neox("sdpa", base=100.0, biases=False), id="neox-base-100-no-bias"),
    pytest.param(lambda: gpt_j("eager"), id="gptj"),
    pytest.param(lambda: gpt_j("eager", fraction=0.5), id="gptj-half"),
    pytest.param(lambda: gpt_neo("eager", window=5), id="neo-window-5"),
]
ALL_PATTERNS = [f"{layer}.pattern" for layer in range(LAYERS)]


def tokens_of(length: int) -> Tensor:
    return torch.randint(VOCAB, (2, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("length", [1, 2, 37, CONTEXT])
@pytest.mark.parametrize("case", CASES)
def test_logits(case: Callable[[], Case], length: int) -> None:
    theirs, ours = paired(case())
    tokens = tokens_of(length)
    with torch.no_grad():
        expected = theirs(tokens, use_cache=False).logits
        fused = ours(tokens)
        explicit, _ = ours(tokens, record=ALL_PATTERNS)
    assert expected.std() > 0.5  # else an absolute 1e-5 would say little
    torch.testing.assert_close(fused, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(explicit, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("record", [[], ALL_PATTERNS], ids=["fused", "explicit"])
def test_gradients(case: Callable[[], Case], record: list[str]) -> None:
    """Of the cross-entropy with respect to every weight."""
    made = case()
    theirs, ours = paired(made)
    tokens = tokens_of(19)
    targets = tokens_of(20)[:, 1:].reshape(-1)
    F.cross_entropy(theirs(tokens, use_cache=False).logits.flatten(0, 1), targets).backward()
    F.cross_entropy(ours(tokens, record=record)[0].flatten(0, 1), targets).backward()
    expected = made.rename({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    for name, parameter in ours.named_parameters():
        if isinstance(theirs, transformers.GPTNeoForCausalLM) and ".attention.q." in name:
            expected[name] = expected[name] / (WIDTH / HEADS)  # renaming multiplied where a gradient is divided
        if isinstance(theirs, transformers.GPTNeoForCausalLM) and name.endswith(("q.bias", "k.bias", "v.bias")):
            continue  # it has no such parameter
        # unless rotated, a key's bias moves all scores of a row alike: its true gradient is 0, both hold rounding only
        rounding = name.endswith("attention.k.bias") and made.config.position != "rotary"
        scale = 1.0 if rounding else expected[name].abs().max().item()
        assert parameter.grad is not None
        torch.testing.assert_close(
            parameter.grad, expected[name], rtol=0, atol=1e-5 * scale, msg=lambda m, n=name: n + m
        )


def test_gpt2_in_float64() -> None:
    """Where the other side rounds nothing to float32, agreement is to double precision."""
    theirs, ours = paired(gpt2("eager"), torch.float64)
    tokens = tokens_of(37)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens, use_cache=False).logits, rtol=0, atol=1e-12)


def test_attention_patterns() -> None:
    """The recorded patterns are those the other side returns."""
    theirs, ours = paired(gpt_neox("eager", fraction=0.25))
    tokens = tokens_of(23)
    with torch.no_grad():
        expected = theirs(tokens, use_cache=False, output_attentions=True).attentions
        _, recorded = ours(tokens, record=ALL_PATTERNS)
    for name, pattern in zip(ALL_PATTERNS, expected, strict=True):
        torch.testing.assert_close(recorded[name], pattern, rtol=0, atol=1e-6)
