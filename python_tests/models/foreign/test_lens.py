"""TransformerLens state dicts: logits against HookedTransformer's forward pass, written out from its definition."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.models.foreign import describe, foreign_config, is_foreign, load_foreign, weight_files

Weights = dict[str, Tensor]
Config = dict[str, Any]
SMALL: Config = {
    "n_layers": 2, "d_model": 12, "n_ctx": 20, "d_head": 4, "n_heads": 3, "d_vocab": 23, "act_fn": "gelu",
    "attn_only": False, "d_mlp": 16, "normalization_type": "LN", "positional_embedding_type": "standard",
}  # fmt: skip


def hooked_transformer(cfg: Config, w: Weights, tokens: Tensor) -> Tensor:
    """Logits [B,T,V], each head by itself."""
    kind, position = cfg.get("normalization_type", "LN"), cfg.get("positional_embedding_type", "standard")

    def norm(x: Tensor, name: str, kind: str | None = kind) -> Tensor:
        if kind is None:
            return x
        x = x - x.mean(-1, keepdim=True) if kind.startswith("LN") else x
        x = x / (x.square().mean(-1, keepdim=True) + cfg.get("eps", 1e-5)).sqrt()
        if kind.endswith("Pre"):
            return x
        return x * w[f"{name}.w"] + (w[f"{name}.b"] if kind == "LN" else 0)

    activations = {
        "gelu": F.gelu, "relu": F.relu, "silu": F.silu, "solu": lambda x: x * x.softmax(-1),
        "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    }  # fmt: skip
    resid, table = w["embed.W_E"][tokens], w.get("pos_embed.W_pos")
    added = None
    if table is not None:
        table = table[: tokens.shape[1]]
        resid, added = (resid, table) if position == "shortformer" else (resid + table, None)
    for layer in range(cfg["n_layers"]):
        at = f"blocks.{layer}"
        normed = norm(resid, f"{at}.ln1")
        attended = attention(cfg, w, layer, normed if added is None else normed + added, normed)
        if cfg.get("use_normalization_before_and_after"):
            attended = norm(attended, f"{at}.ln1_post")
        if cfg.get("attn_only"):
            resid = resid + attended
            continue
        normed = norm(resid if cfg.get("parallel_attn_mlp") else resid + attended, f"{at}.ln2")
        hidden = normed @ w[f"{at}.mlp.W_in"]
        act = activations[cfg["act_fn"].removesuffix("_ln")]
        if cfg.get("gated_mlp"):
            hidden = act(normed @ w[f"{at}.mlp.W_gate"]) * hidden + w[f"{at}.mlp.b_in"]
        else:
            hidden = act(hidden + w[f"{at}.mlp.b_in"])
        if cfg["act_fn"].endswith("_ln"):
            hidden = norm(hidden, f"{at}.mlp.ln", "LN" if kind == "LN" else "LNPre")
        written = hidden @ w[f"{at}.mlp.W_out"] + w[f"{at}.mlp.b_out"]
        if cfg.get("use_normalization_before_and_after"):
            written = norm(written, f"{at}.ln2_post")
        resid = resid + attended + written
    logits = norm(resid, "ln_final") @ w["unembed.W_U"]
    logits = logits + w["unembed.b_U"] if "unembed.b_U" in w else logits
    cap = cfg.get("output_logits_soft_cap", -1.0)
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def attention(cfg: Config, w: Weights, layer: int, read: Tensor, normed: Tensor) -> Tensor:
    at, heads, width, length = f"blocks.{layer}.attn", cfg["n_heads"], cfg["d_head"], read.shape[1]
    group = heads // (cfg.get("n_key_value_heads") or heads)
    letter = "_" if group > 1 else ""
    back = torch.arange(length)[:, None] - torch.arange(length)[None]
    seen = back >= 0
    if cfg.get("use_local_attn") and cfg["attn_types"][layer] == "local":
        seen &= back < cfg["window_size"]
    scale = cfg.get("attn_scale", -1.0)
    scale = (math.sqrt(width) if scale == -1.0 else scale) if cfg.get("use_attn_scale", True) else 1.0
    scale *= layer + 1 if cfg.get("scale_attn_by_inverse_layer_idx") else 1
    out: Tensor | float = 0.0
    for head in range(heads):
        q = read @ w[f"{at}.W_Q"][head] + w[f"{at}.b_Q"][head]
        k = read @ w[f"{at}.{letter}W_K"][head // group] + w[f"{at}.{letter}b_K"][head // group]
        v = normed @ w[f"{at}.{letter}W_V"][head // group] + w[f"{at}.{letter}b_V"][head // group]
        if cfg.get("use_qk_norm"):
            q, k = (
                x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{at}.{name}_norm.w"]
                for name, x in (("q", q), ("k", k))
            )
        if cfg.get("positional_embedding_type") == "rotary":
            q, k = rotated(cfg, q), rotated(cfg, k)
        scores = q @ k.mT / scale
        if (cap := cfg.get("attn_scores_soft_cap", -1.0)) > 0:
            scores = cap * torch.tanh(scores / cap)
        if cfg.get("positional_embedding_type") == "alibi":
            scores = scores - back * 2 ** (-8 * (head + 1) / heads)
        pattern = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out = out + pattern @ v @ w[f"{at}.W_O"][head]
    return out + w[f"{at}.b_O"]


def rotated(cfg: Config, x: Tensor) -> Tensor:
    width = cfg.get("rotary_dim") or cfg["d_head"]
    for plane in range(width // 2):
        a, b = (2 * plane, 2 * plane + 1) if cfg.get("rotary_adjacent_pairs") else (plane, plane + width // 2)
        angle = torch.arange(x.shape[1]) / cfg.get("rotary_base", 10_000) ** (2 * plane / width)
        turned = x.clone()
        turned[..., a] = x[..., a] * angle.cos() - x[..., b] * angle.sin()
        turned[..., b] = x[..., b] * angle.cos() + x[..., a] * angle.sin()
        x = turned
    return x


def random_weights(cfg: Config, *, unembed_bias: bool = True) -> Weights:
    """A state dict as HookedTransformer has it, with its buffers."""
    generator = torch.Generator().manual_seed(0)
    layers, width, heads, head = cfg["n_layers"], cfg["d_model"], cfg["n_heads"], cfg["d_head"]
    kv, hidden = cfg.get("n_key_value_heads") or heads, cfg["d_mlp"]
    letter = "_" if kv != heads else ""
    shapes: dict[str, tuple[int, ...]] = {"embed.W_E": (cfg["d_vocab"], width)}
    if cfg.get("positional_embedding_type", "standard") in ("standard", "shortformer"):
        shapes["pos_embed.W_pos"] = (cfg["n_ctx"], width)
    norms = ["ln_final"]
    for layer in range(layers):
        at = f"blocks.{layer}"
        shapes |= {f"{at}.attn.W_Q": (heads, width, head), f"{at}.attn.b_Q": (heads, head)}
        for part in "KV":
            shapes |= {f"{at}.attn.{letter}W_{part}": (kv, width, head), f"{at}.attn.{letter}b_{part}": (kv, head)}
        shapes |= {f"{at}.attn.W_O": (heads, head, width), f"{at}.attn.b_O": (width,)}
        if cfg.get("use_qk_norm"):
            shapes |= {f"{at}.attn.q_norm.w": (head,), f"{at}.attn.k_norm.w": (head,)}
        after = ["_post"] if cfg.get("use_normalization_before_and_after") else []
        norms += [f"{at}.ln1{end}" for end in ["", *after]]
        if not cfg.get("attn_only"):
            norms += [f"{at}.ln2{end}" for end in ["", *after]]
            shapes |= {f"{at}.mlp.W_in": (width, hidden), f"{at}.mlp.b_in": (hidden,)}
            shapes |= {f"{at}.mlp.W_out": (hidden, width), f"{at}.mlp.b_out": (width,)}
            if cfg.get("gated_mlp"):
                shapes[f"{at}.mlp.W_gate"] = (width, hidden)
            if cfg["act_fn"] == "solu_ln" and cfg["normalization_type"] == "LN":
                shapes |= {f"{at}.mlp.ln.w": (hidden,), f"{at}.mlp.ln.b": (hidden,)}
    kind = cfg.get("normalization_type", "LN")
    for name in norms if kind in ("LN", "RMS") else []:
        shapes |= {f"{name}.w": (width,)} | ({f"{name}.b": (width,)} if kind == "LN" else {})
    shapes["unembed.W_U"] = (width, cfg["d_vocab"])
    if unembed_bias:
        shapes["unembed.b_U"] = (cfg["d_vocab"],)
    weights = {name: 0.5 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, weight in weights.items():
        if cfg.get("gated_mlp") and name.endswith("b_in"):
            weight.zero_()
    for layer in range(layers):
        weights[f"blocks.{layer}.attn.mask"] = torch.ones(cfg["n_ctx"], cfg["n_ctx"]).tril().bool()
        weights[f"blocks.{layer}.attn.IGNORE"] = torch.tensor(-torch.inf)
    return weights


def write(folder: Path, cfg: Config, weights: Weights) -> Path:
    (folder / "config.json").write_text(json.dumps(cfg))
    torch.save(weights, folder / "model_final.pth")
    return folder


def check(folder: Path, cfg: Config, weights: Weights) -> None:
    tokens = torch.randint(0, cfg["d_vocab"], (2, cfg["n_ctx"]), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = load_foreign(write(folder, cfg, weights), dtype=torch.float64)(tokens)
    expected = hooked_transformer(cfg, {name: weight.double() for name, weight in weights.items()}, tokens)
    assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()  # angles of rotations are in float32


@st.composite
def configs(draw: st.DrawFn) -> Config:
    def one(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    norm, gated = one("LN", "LNPre", "RMS", "RMSPre", None), one(False, False, True)
    activations = ["gelu", "gelu_new", "silu", "relu", "solu"] + (["solu_ln"] if not gated else [])
    cfg = SMALL | {
        "n_heads": 4, "d_model": one(12, 16), "normalization_type": norm, "gated_mlp": gated,
        "act_fn": one(*activations), "attn_only": one(False, False, True), "parallel_attn_mlp": one(False, True),
        "positional_embedding_type": one("standard", "rotary", "shortformer", "alibi", "none"),
        "n_key_value_heads": one(None, 1, 2, 4), "use_attn_scale": one(True, False), "attn_scale": one(-1.0, 3.0),
        "scale_attn_by_inverse_layer_idx": one(False, True), "attn_scores_soft_cap": one(-1.0, 2.0),
        "output_logits_soft_cap": one(-1.0, 5.0), "use_normalization_before_and_after": one(False, True),
        "use_qk_norm": one(False, True),
    }  # fmt: skip
    if cfg["positional_embedding_type"] == "rotary":
        cfg |= {"rotary_dim": one(None, 2), "rotary_base": one(10_000, 100), "rotary_adjacent_pairs": one(False, True)}
    if one(False, True):
        cfg |= {"use_local_attn": True, "window_size": 3, "attn_types": ["local", "global"]}
    return cfg


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(configs())
def test_logits_are_theirs(tmp_path_factory: pytest.TempPathFactory, cfg: Config) -> None:
    check(tmp_path_factory.mktemp("lens"), cfg, random_weights(cfg))


# what the published config.json of the toy models hold beside the shape, small
TOY: Config = {
    "n_layers": 1, "d_model": 16, "d_mlp": 64, "d_head": 8, "n_heads": 2, "n_ctx": 32, "d_vocab": 29,
    "lr_hidden": 0.002, "lr_vector": 0.001, "batch_size_per_device": 32, "batches_per_step": 1, "seed": 259123,
    "save_checkpoints": True, "debug": False, "debug_batch": False, "normalization": "LN", "max_tokens": 22 * 10**9,
    "version": 27, "use_bfloat16_matmul": True, "tokenizer_name": "NeelNanda/gpt-neox-tokenizer-digits",
    "betas": [0.9, 0.99], "weight_decay": 0.05, "dataset_name": "c4_code", "grad_norm_clip": 1.0, "n_devices": 8,
    "act_fn": "solu_ln", "shortformer_pos": False, "attn_only": False, "ln_eps": 1e-5, "lr_schedule": "cosine_warmup",
    "warmup_tokens": 3 * 10**8, "train_loss_ewma_beta": 0.99, "truncate_tokens": 10**12, "log_interval": 50,
    "initializer_scale_global": 1.0, "initializer_scale_hidden": 0.02, "initializer_scale_embed": 0.1,
    "initializer_scale_unembed": 0.02, "neuron_scale": 1.0, "neuron_temp": 1.0, "use_acc": False,
    "weight_init_scheme": "gpt2", "fixed_init": "", "store_init": False, "control": 1.0, "tokens_per_step": 262144,
    "max_steps": 83923, "warmup_steps": 1144,
}  # fmt: skip


@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize(
    "own",
    [{"attn_only": True}, {"act_fn": "gelu"}, {"act_fn": "solu_ln"}, {"attn_only": True, "shortformer_pos": True}],
)
def test_toy_models(tmp_path: Path, own: Config, layers: int) -> None:
    toy = TOY | own | {"n_layers": layers}
    position = "shortformer" if toy["shortformer_pos"] else "standard"
    same = toy | {"normalization_type": "LN", "positional_embedding_type": position}
    weights = random_weights(same, unembed_bias=False)  # published without it
    (tmp_path / "model_init.pth").write_bytes(b"is there too")
    write(tmp_path, toy, weights)
    tokens = torch.randint(0, 29, (2, 32))
    with torch.no_grad():
        found = load_foreign(tmp_path)(tokens)
    torch.testing.assert_close(found, hooked_transformer(same, weights, tokens), rtol=2e-5, atol=2e-5)


def test_every_layout_of_files(tmp_path: Path) -> None:
    cfg, weights = SMALL, random_weights(SMALL)
    expected = load_foreign(write(tmp_path, cfg, weights)).state_dict()
    assert describe(tmp_path) == "HookedTransformer (TransformerLens)"
    assert weight_files(tmp_path) == [tmp_path / "model_final.pth"]

    def same(path: Path) -> None:
        assert is_foreign(path)
        found = load_foreign(path).state_dict()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())

    same(tmp_path / "model_final.pth")
    (tmp_path / "checkpoints").mkdir()
    at = tmp_path / "checkpoints" / "step_100.pth"
    torch.save(weights, at)
    same(at)
    alone = tmp_path / "alone"
    alone.mkdir()
    for keys in (("state_dict", "cfg"), ("model", "config"), ("model_state_dict", "cfg")):
        held = cfg | {"dtype": torch.float32, "device": torch.device("cpu")}
        torch.save(dict(zip(keys, (weights, held), strict=True)) | {"step": 5}, alone / "all.pt")
        same(alone / "all.pt")
    (alone / "all.pt").unlink()
    save_file(weights, alone / "weights.safetensors")
    (alone / "config.json").write_text(json.dumps(cfg))
    same(alone)
    torch.save(weights, alone / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"has to hold one file of weights .*not old.pt, weights.safetensors"):
        load_foreign(alone)
    same(alone / "old.pt")
    (alone / "config.json").unlink()
    with pytest.raises(InputError, match=r"holds no config of its own, and no config.json lies beside it or above"):
        load_foreign(alone / "old.pt") if not (tmp_path / "config.json").unlink() else None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"final_rms": True}, r"field 'final_rms' is True, which is not understood"),
        ({"attention_dir": "bidirectional"}, r"field 'attention_dir' is 'bidirectional'"),
        ({"positional_embedding_type": "relative_positional_bias"}, r"field 'positional_embedding_type' is 'relative"),
        ({"normalization_type": "Group"}, r"field 'normalization_type' is 'Group'"),
        ({"act_fn": "xielu"}, r"field 'act_fn' is 'xielu'"),
        ({"act_fn": "solu_ln", "gated_mlp": True}, r"field 'act_fn' is 'solu_ln'"),
        ({"d_vocab_out": 5}, r"field 'd_vocab_out' is 5"),
        ({"num_experts": 4}, r"field 'num_experts' is 4"),
        ({"post_embedding_ln": True}, r"field 'post_embedding_ln' is True"),
        ({"neuron_temp": 2.0}, r"field 'neuron_temp' is 2.0"),
        ({"use_local_attn": True, "window_size": 3, "attn_types": ["local"]}, r"field 'attn_types' is \['local'\]"),
        ({"d_head": "wide"}, r"d_head|head_width"),
        ({"n_heads": 6, "d_head": 2}, r"blocks.0.attn.W_Q has other heads than 6"),
        ({"d_mlp": 8}, r"mlp.0.weight is \[16, 12\], its config says \[8, 12\]"),
        ({"n_layers": 3}, r"weight 'blocks.2.ln1.w' is missing"),
        ({"n_layers": 1}, r"weight 'blocks.1.\S+' is not used"),
        ({"attn_only": True}, r"weight 'blocks.0.mlp.W_in' is not used"),
    ],
)
def test_what_is_not_understood_is_named(tmp_path: Path, change: Config, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_foreign(write(tmp_path, SMALL | change, random_weights(SMALL)))


def test_the_bias_inside_a_gated_mlp_must_be_zero(tmp_path: Path) -> None:
    cfg = SMALL | {"gated_mlp": True, "act_fn": "silu"}
    weights = random_weights(cfg)
    weights["blocks.1.mlp.b_in"][3] = 0.5
    with pytest.raises(InputError, match=r"blocks.1.mlp.b_in holds numbers that are not 0"):
        load_foreign(write(tmp_path, cfg, weights))


def test_files_that_are_something_else(tmp_path: Path) -> None:
    write(tmp_path, SMALL, random_weights(SMALL))
    path = tmp_path / "model_final.pth"
    for held, message in (
        ([1, 2], "holds no weights by name, it is a list"),
        ({"model": 3}, "holds no weights by name, it is a int"),
        ({"a": torch.ones(2), "b": 5}, "holds 'b', which is no weight but a int"),
        ({"embed.W_E": torch.ones(2)}, "weight 'embed.W_E'|is missing"),
    ):
        torch.save(held, path)
        with pytest.raises(InputError, match=message):
            load_foreign(tmp_path)
    torch.save(write, path)  # a function: only running it would tell
    with pytest.raises(InputError, match=r"model_final.pth: cannot be read"):
        foreign_config(tmp_path)
    path.write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(InputError, match=r"model_final.pth: cannot be read"):
        load_foreign(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"has to hold one file of weights \(.pt, .pth, .safetensors\), not none"):
        load_foreign(tmp_path)


def test_other_files_of_torch_are_no_models(tmp_path: Path) -> None:
    """Such as an optimizer's beside a model of Hugging Face, or anywhere."""
    torch.save({"state": {}}, tmp_path / "optimizer.pt")
    assert not is_foreign(tmp_path / "optimizer.pt")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    torch.save(random_weights(SMALL), tmp_path / "other.pt")
    (tmp_path / "empty.pth").write_bytes(b"")
    assert not any(map(is_foreign, tmp_path.iterdir()))
