"""Other people's models: logits of random models of every family, of random shapes, against transformers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from icl_fast.errors import InputError
from icl_fast.models import Transformer, TransformerConfig
from icl_fast.models.foreign import describe, foreign_config, hugging_face, load_foreign
from icl_fast.models.foreign.checkpoint import Safetensors, read_safetensors
from icl_fast.models.foreign.families import FAMILIES

transformers = pytest.importorskip("transformers")
VOCAB, CONTEXT = 61, 48
ROTARY = [
    None,
    {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 16, "rope_theta": 500.0},
    {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 16, "rope_theta": 10_000.0},
]  # fmt: skip
TOKENS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@st.composite
def decoders(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.sampled_from([2, 4]))
    return {
        **TOKENS, "vocab_size": VOCAB, "hidden_size": draw(st.sampled_from([16, 32])),
        "intermediate_size": draw(st.sampled_from([24, 40])), "num_hidden_layers": draw(st.sampled_from([1, 2, 7])),
        "num_attention_heads": heads, "max_position_embeddings": CONTEXT,
        "num_key_value_heads": draw(st.sampled_from([k for k in (1, 2, 4) if heads % k == 0])),
    }  # fmt: skip


def of(kind: str, common: st.SearchStrategy[dict[str, Any]], **options: list[Any]) -> st.SearchStrategy[Any]:
    """Configs of a class of transformers: what is common, and one of the values of each option."""
    chosen = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in options.items()})
    return st.builds(lambda a, b: getattr(transformers, kind)(**{**a, **b}), common, chosen)


BOTH = [True, False]
GPT: dict[str, Any] = {**TOKENS, "vocab_size": VOCAB, "n_positions": CONTEXT, "n_embd": 32}
NEO: dict[str, Any] = {
    **TOKENS, "vocab_size": VOCAB, "max_position_embeddings": CONTEXT, "hidden_size": 16, "num_layers": 4,
    "num_heads": 2, "attention_types": [[["global", "local"], 2]],
}  # fmt: skip
without_groups = decoders().map(lambda values: {k: v for k, v in values.items() if k != "num_key_value_heads"})
CONFIGS = {
    "llama": of("LlamaConfig", decoders(), rope_parameters=ROTARY, attention_bias=BOTH, mlp_bias=BOTH,
                tie_word_embeddings=BOTH, head_dim=[None, 8], hidden_act=["silu", "gelu"]),
    "mistral": of("MistralConfig", decoders(), sliding_window=[None, 5, 100], head_dim=[None, 8]),
    "qwen2": of("Qwen2Config", decoders(), use_sliding_window=BOTH, sliding_window=[7], max_window_layers=[1],
                tie_word_embeddings=BOTH),
    "qwen3": of("Qwen3Config", decoders(), head_dim=[8, 16], use_sliding_window=BOTH, sliding_window=[7],
                max_window_layers=[1], attention_bias=BOTH),
    "gemma": of("GemmaConfig", decoders(), head_dim=[8, 16]),
    "gemma2": of("Gemma2Config", decoders(), head_dim=[8, 16], sliding_window=[7], query_pre_attn_scalar=[8, 20],
                 attn_logit_softcapping=[None, 2.0], final_logit_softcapping=[None, 3.0]),
    "gemma3_text": of("Gemma3TextConfig", decoders(), head_dim=[8, 16], sliding_window=[7],
                      query_pre_attn_scalar=[8, 20]),
    "olmo": of("OlmoConfig", decoders(), clip_qkv=[None, 0.5]),
    "olmo2": of("Olmo2Config", decoders(), attention_bias=BOTH),
    "phi": of("PhiConfig", decoders()),
    "phi3": of("Phi3Config", decoders(), sliding_window=[None, 6]),
    "gpt_neox": of("GPTNeoXConfig", without_groups, use_parallel_residual=BOTH, attention_bias=BOTH,
                   rotary_pct=[0.5, 1.0]),
    "gpt2": of("GPT2Config", st.just(GPT), n_layer=[1, 3], n_head=[2, 4], scale_attn_by_inverse_layer_idx=BOTH,
               scale_attn_weights=BOTH, tie_word_embeddings=BOTH, activation_function=["gelu_new", "relu", "gelu"]),
    "gptj": of("GPTJConfig", st.just(GPT), n_layer=[1, 3], n_head=[2], rotary_dim=[4, 8, 16]),
    "gpt_neo": of("GPTNeoConfig", st.just(NEO), window_size=[5, 200], tie_word_embeddings=BOTH),
}  # fmt: skip


def write(config: Any, folder: Path) -> Any:
    """A model with random weights, none of them as it is initialised, in a folder as transformers writes it."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def test_every_family_is_tested() -> None:
    assert CONFIGS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", CONFIGS)
def test_logits_are_theirs(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    @settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
    @given(CONFIGS[family])
    def check(config: Any) -> None:
        folder = tmp_path_factory.mktemp(family)
        theirs, tokens = write(config, folder), torch.randint(0, VOCAB, (2, CONTEXT))
        ours = load_foreign(folder)
        with torch.no_grad():
            torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=2e-5)

    check()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    write(transformers.LlamaConfig(**{**TOKENS, "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24,
          "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": CONTEXT}), folder)  # fmt: skip
    return folder


def copy_with(llama: Path, folder: Path, fields: dict[str, Any] | None = None, **weights: Any) -> Path:
    """A copy with other fields in its config, and other weights (None: without)."""
    values = json.loads((llama / "config.json").read_text()) | (fields or {})
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v != "gone"}))
    found = load_file(llama / "model.safetensors") | weights
    save_file({name: weight for name, weight in found.items() if weight is not None}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 8}, r"field 'num_experts' is 8, which is not understood"),
        ({"quantization_config": {"bits": 4}}, r"quantization_config: the weights are quantised; give those"),
        ({"quantization": {"bits": 4}}, r"quantization: the weights are quantised; give those they were made of"),
        ({"model_type": "gemma3"}, r"model_type 'gemma3' is not known: it reads images too: save its text part alone"),
        ({"model_type": "smollm3"}, r"model_type 'smollm3' is not known: some of its layers have positions and some"),
        ({"num_attention_heads": 0}, r"has a value that is not understood \(ZeroDivisionError"),
        ({"hidden_size": "wide"}, r"has a value that is not understood \(TypeError"),
        ({"sliding_window": 5}, r"field 'sliding_window' is 5"),
        ({"hidden_act": "quick_gelu"}, r"field 'hidden_act' is 'quick_gelu', which is not understood"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, r"rope_parameters.rope_type' is 'dynamic'"),
        ({"rope_parameters": {"rope_type": "default", "mystery": 1}}, r"rope_parameters.mystery' is 1"),
        ({"model_type": "mamba"}, r"model_type 'mamba' is not known; known are gpt2"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, r"'partial_rotary_factor' is 0.5, which is not"),
        ({"rope_parameters": "foo"}, r"field 'rope_parameters' is 'foo'"),
        ({"model_type": ["llama"]}, r"model_type \['llama'\] is not known"),
        ({"model_type": "gone"}, r"is of no kind that is known, it has no field model_type"),
        ({"hidden_size": "gone"}, r"field 'hidden_size' is missing"),
        ({"vocab_size": 62}, r"embed.weight is \[61, 16\], its config says \[62, 16\]"),
        ({"num_hidden_layers": 3}, r"weight 'model.layers.2.input_layernorm.weight' is missing"),
        ({"num_hidden_layers": 1}, r"weight 'model.layers.1.\S+' is not used"),
    ],
)
def test_what_is_not_understood_is_named(llama: Path, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_foreign(copy_with(llama, tmp_path, fields))


def test_fields_that_decide_nothing_are_passed_over(llama: Path, tmp_path: Path) -> None:
    fields = {
        "use_cache": False, "torch_dtype": "bfloat16", "new_flag": False, "attention_dropout": 0.5, "top_p": 0.9,
        "hidden_dropout_prob": 0.1, "pruned_heads": {}, "sep_token_id": 3, "is_llama_config": True,
    }  # fmt: skip
    assert foreign_config(copy_with(llama, tmp_path, fields)) == foreign_config(llama)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"model.norm.weight": None}, "weight 'model.norm.weight' is missing"),
        ({"model.layers.0.adapter.weight": torch.ones(2)}, "weight 'model.layers.0.adapter.weight' is not used"),
        ({"model.norm.weight": torch.full((16,), torch.nan)}, "model.norm.weight holds NaN or infinity"),
        ({"model.norm.weight": torch.ones(16, dtype=torch.int8)}, "final_norm.weight is torch.int8; quantised"),
    ],
)
def test_every_weight_is_used_once(llama: Path, tmp_path: Path, weights: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_foreign(copy_with(llama, tmp_path, **weights))


def test_weights_of_other_kinds_of_files(llama: Path, tmp_path: Path) -> None:
    """Several files, and torch's own, which is read without running what is in it."""
    tokens, weights = torch.arange(CONTEXT)[None], load_file(llama / "model.safetensors")
    expected = load_foreign(llama)(tokens)
    names = sorted(weights)
    copy_with(llama, tmp_path).joinpath("model.safetensors").unlink()
    index: dict[str, str] = {}
    for part, some in enumerate((names[:5], names[5:])):
        file = f"model-{part + 1:05d}-of-00002.safetensors"
        save_file({name: weights[name] for name in some}, tmp_path / file)
        index |= dict.fromkeys(some, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    save_file({name: 2 * weight for name, weight in weights.items()}, tmp_path / "z.safetensors")  # something else
    assert torch.equal(load_foreign(tmp_path)(tokens), expected)
    for damaged in ("[]", "{}"):
        (tmp_path / "model.safetensors.index.json").write_text(damaged)
        with pytest.raises(InputError, match=r"is no index of weights"):
            load_foreign(tmp_path)
    for path in tmp_path.glob("model*safetensors*"):
        path.unlink()
    with pytest.raises(InputError, match=r"holds no weights"):
        load_foreign(tmp_path)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert torch.equal(load_foreign(tmp_path)(tokens), expected)
    torch.save(transformers.LlamaConfig(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model.bin: cannot be read"):
        load_foreign(tmp_path)


def test_files_as_they_were_published_first(tmp_path: Path) -> None:
    """GPT-2 without the prefix of newer files, Pythia in float16; both with the buffers of older code."""
    tokens = torch.arange(CONTEXT)[None]
    for kind, values in (("GPT2Config", GPT | {"n_layer": 1, "n_head": 2}), ("GPTNeoXConfig", {
        **TOKENS, "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": CONTEXT,
    })):  # fmt: skip
        theirs = write(getattr(transformers, kind)(**values), folder := tmp_path / kind)
        weights = {name: weight.half() for name, weight in load_file(folder / "model.safetensors").items()}
        if kind == "GPT2Config":
            weights = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
            weights |= {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.0.attn.masked_bias": torch.tensor(-1e4)}
        else:
            weights["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(2)
            weights |= {f"gpt_neox.layers.0.attention.{name}": torch.ones(1) for name in ("bias", "masked_bias")}
        save_file(weights, folder / "model.safetensors")
        with torch.no_grad():
            expected = theirs.half().float()(tokens).logits
            torch.testing.assert_close(load_foreign(folder)(tokens), expected, rtol=0, atol=2e-5)
            assert load_foreign(folder, dtype=torch.bfloat16)(tokens).dtype == torch.bfloat16


def test_fused_weights_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {k: v for k, v in {**NEO, "num_hidden_layers": 2, "num_attention_heads": 2,
              "intermediate_size": 24}.items() if k not in ("num_layers", "num_heads", "attention_types")}  # fmt: skip
    write(transformers.Phi3Config(**values), tmp_path)
    read: list[str] = []

    class Counted(Safetensors):
        def __getitem__(self, name: str) -> torch.Tensor:
            read.append(name)
            return super().__getitem__(name)

    monkeypatch.setattr(hugging_face, "read_safetensors", lambda *paths: Counted(read_safetensors(*paths)._files))
    load_foreign(tmp_path)
    assert sorted(read) == sorted(load_file(tmp_path / "model.safetensors"))


def test_our_own_config_and_weights(tmp_path: Path) -> None:
    config = TransformerConfig(vocab=VOCAB, context=CONTEXT, layers=2, width=16, heads=2, tied=True)
    model = Transformer(config)
    weights = {name: weight.detach() for name, weight in model.state_dict().items() if name != "unembed.weight"}
    (tmp_path / "config.json").write_text(config.model_dump_json())
    save_file(weights, tmp_path / "model.safetensors")
    found = load_foreign(tmp_path)
    assert describe(tmp_path) == "Transformer (icl_fast)"
    assert torch.equal(found(torch.arange(9)[None]), model(torch.arange(9)[None]))
    for change, message in (
        ({"extra.weight": torch.ones(2)}, r"weight 'extra.weight' is not used"),
        ({"final_norm.bias": torch.ones(3)}, r"final_norm.bias is \[3\], its config says \[16\]"),
        ({"embed.weight": torch.full((VOCAB, 16), torch.inf)}, r"embed.weight holds NaN or infinity"),
    ):
        save_file(weights | change, tmp_path / "model.safetensors")
        with pytest.raises(InputError, match=message):
            load_foreign(tmp_path)
    save_file({"wte.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"weight 'position.weight' is missing|weight 'embed.weight' is missing"):
        load_foreign(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"layers": 2, "vocab": 5}))
    with pytest.raises(InputError, match=r"config.json.*context"):
        foreign_config(tmp_path)


def test_tied_embeddings_stay_tied(llama: Path, tmp_path: Path) -> None:
    model = load_foreign(copy_with(llama, tmp_path, {"tie_word_embeddings": True}))
    assert model.unembed.weight is model.embed.weight
    assert isinstance(model, Transformer)
