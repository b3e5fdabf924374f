from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from icl_fast.data.tokenizer import (
    BOS,
    BOS_ID,
    SMALLEST_VOCAB,
    encode_stream,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from icl_fast.errors import InputError

TEXTS = ["def the_function(argument):\n    return argument\n" * 3, "the function of the argument\n" * 3]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 280)


any_text = st.text() | st.text(alphabet="the <|bos>\r\n\t\0\ufffd\U0001f600") | st.just(BOS)


@given(st.lists(any_text, min_size=1, max_size=4))
def test_any_text_goes_there_and_back(tokenizer: Tokenizer, texts: list[str]) -> None:
    stream = encode_stream(tokenizer, texts)
    ends = np.flatnonzero(stream == BOS_ID)
    assert len(ends) == len(texts)  # also a text that spells out the separator has none in it
    pieces = np.split(stream, ends + 1)
    assert len(pieces.pop()) == 0
    assert [tokenizer.decode(list(piece[:-1]), skip_special_tokens=False) for piece in pieces] == texts


def test_vocabulary(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 280
    assert tokenizer.token_to_id(BOS) == BOS_ID
    assert sorted(tokenizer.get_vocab().values()) == list(range(280))
    assert train_tokenizer(TEXTS, SMALLEST_VOCAB).get_vocab_size() == SMALLEST_VOCAB


def test_frequent_words_get_their_own_token(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("the argument").ids) < len("the argument") / 2


def test_training_is_deterministic_across_processes(tokenizer: Tokenizer) -> None:
    code = f"from icl_fast.data.tokenizer import train_tokenizer as t; print(t({TEXTS!r}, 280).to_str(), end='')"
    for _ in range(2):
        assert subprocess.check_output([sys.executable, "-c", code], text=True) == tokenizer.to_str()


def test_streams_are_as_small_as_the_vocabulary_allows(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert encode_stream(tokenizer, TEXTS).dtype == np.uint16
    monkeypatch.setattr("icl_fast.data.tokenizer._BATCH_CHARACTERS", 10)
    many = [text[i:] for text in TEXTS for i in range(20)]
    in_parts = encode_stream(tokenizer, many)
    monkeypatch.undo()
    assert np.array_equal(in_parts, encode_stream(tokenizer, many))


def test_saved_and_loaded(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = save_tokenizer(tokenizer, tmp_path / "run")
    for path in (file, file.parent):
        again = load_tokenizer(path)
        assert again.to_str() == tokenizer.to_str()
        assert again.encode(f"the {BOS}").ids == tokenizer.encode(f"the {BOS}").ids
        assert BOS_ID not in again.encode(BOS).ids


@pytest.mark.parametrize("vocab", [-1, 0, 256])
def test_vocabulary_too_small_for_the_bytes(vocab: int) -> None:
    with pytest.raises(InputError, match=rf"data\.vocab {vocab} is too small.*need 257"):
        train_tokenizer(TEXTS, vocab)


def test_corpus_too_small_for_the_vocabulary() -> None:
    with pytest.raises(InputError, match=r"it gives 26\d tokens; set data.vocab to at most"):
        train_tokenizer(["abcabcabcabc"], 1000)


def test_bad_tokenizer_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_tokenizer(tmp_path / "missing.json")
    with pytest.raises(InputError, match="cannot be read"):
        load_tokenizer(tmp_path)
    for content in (b"", b"{}", b'{"version": "1.0"}', b"\xff\xfe"):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(InputError, match="is not a tokenizer"):
            load_tokenizer(tmp_path)
