"""Which token begins a text of other people's families, and which ids stand in texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

from icl_fast import InputError
from icl_fast.data.foreign_tokenizer import foreign_tokenizer, ordinary_ids, read_tokenizer
from icl_fast.data.tokenizer import train_tokenizer


@pytest.fixture
def plain() -> Tokenizer:
    """A byte-level BPE with the special tokens <|bos|> (0) and <|end|> (259), which puts nothing before a text."""
    tokenizer = train_tokenizer(["some text, some more"], 259)
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def puts_first(tokenizer: Tokenizer, token: str) -> Tokenizer:
    template = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, tokenizer.token_to_id(token))]
    )
    tokenizer.post_processor = template
    return tokenizer


@pytest.mark.parametrize(
    ("first", "config", "asked", "bos", "separator"),
    [
        ("<|bos|>", {"bos_token_id": 0, "eos_token_id": 259}, "auto", 0, 259),  # Llama, Gemma
        ("<|bos|>", {}, "auto", 0, 0),
        (None, {"bos_token_id": 259, "eos_token_id": 259}, "auto", 259, 259),  # GPT-2, Pythia
        (None, {"bos_token_id": 0, "eos_token_id": 259}, "auto", None, 259),
        (None, {"bos_token_id": None, "eos_token_id": [259, 0]}, "auto", None, 259),  # OLMo
        (None, {}, "auto", None, None),
        ("<|bos|>", {}, "none", None, None),
        (None, {}, "65", 65, 65),
    ],
)
def test_what_begins_a_text(
    plain: Tokenizer, first: str | None, config: dict[str, Any], asked: str, bos: int | None, separator: int | None
) -> None:
    found = foreign_tokenizer(plain if first is None else puts_first(plain, first), config, asked)
    assert (found.bos, found.separator) == (bos, separator)
    assert ("no BOS" in found.said) == (bos is None)
    assert bos is None or f"{plain.id_to_token(bos)} (id {bos})" in found.said
    assert found.tokenizer.encode("<|bos|>", add_special_tokens=False).ids != [0]  # its characters


def test_what_a_gguf_file_says_counts_like_the_tokenizer_itself(plain: Tokenizer) -> None:
    assert foreign_tokenizer(plain, {}, begins=0).bos == 0


@pytest.mark.parametrize("asked", ["", "-1", "260", "x", "1e3", "9" * 5000])
def test_what_is_no_bos(plain: Tokenizer, asked: str) -> None:
    with pytest.raises(InputError, match=r"^bos: .* is neither auto, none nor the id"):
        foreign_tokenizer(plain, {}, asked)


def test_ids_that_stand_in_texts(plain: Tokenizer) -> None:
    assert ordinary_ids(plain, 270).tolist() == list(range(1, 259))  # not the special ones, nor rows that pad
    assert ordinary_ids(plain, 100).tolist() == list(range(1, 100))


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "not JSON", '{"model": {"type": "BPE", "vocab": {}, "merges": [["a"]]}}']
)
def test_files_that_are_no_tokenizer(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match=r"^tokenizer: .*tokenizer\.json cannot be read \("):
        read_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match=r"^tokenizer: .* does not exist"):
        read_tokenizer(tmp_path / "other.json")
