from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from icl_fast.data.tokenizer import (
    BOS,
    BOS_ID,
    SMALLEST_VOCAB,
    _short_words,
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
        train_tokenizer(["abcabcabcabc"], 267)


@pytest.mark.parametrize("vocab", [1000, 10**9, 10**12, 10**15, 10**400])
def test_more_tokens_than_bytes(vocab: int) -> None:
    with pytest.raises(InputError, match=rf"^data\.vocab {vocab}: the corpus is too small, it has 12 bytes"):
        train_tokenizer(["abcabcabcabc"], vocab)


@pytest.mark.parametrize("text", ["a", "0", ".", " ", "é", "acgt"])
def test_very_long_words(text: str) -> None:
    """The time of training grows with the square of a word's length: uncut, this takes minutes."""
    long = text * (2**19 // len(text))
    tokenizer = train_tokenizer([long, long[1:]], 262)
    assert tokenizer.decode(encode_stream(tokenizer, [long]).tolist()) == long


def test_long_words_are_cut_to_train_on_and_nothing_else_is() -> None:
    texts = [*TEXTS, "\n".join("a b1 _.! " * 200 for _ in range(3))]
    assert [_short_words(text) for text in texts] == [[text] for text in texts]
    for word in ("x" * 3000, "1" * 1024, " " * 5000, "é." * 9 + "-" * 1500):
        parts = _short_words(f"before {word} after")
        assert "".join(parts) == f"before {word} after"
        assert max(map(len, parts)) < 1100


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    return save_tokenizer(train_tokenizer(TEXTS * 9, 262), tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"null", b"[]", b"3", b'{"version": "1.0"}', b"\xff\xfe", b"[" * 10**5, b'{"model": 1}']
)
def test_bad_tokenizer_files(content: bytes, ours: Path) -> None:
    ours.write_bytes(content)
    for path in (ours, ours.parent):
        with pytest.raises(
            InputError, match=rf"^tokenizer: {ours} is none of ours .*copy it again from its run folder$"
        ):
            load_tokenizer(path)
    ours.unlink()
    with pytest.raises(InputError, match=rf"^tokenizer: {ours} does not exist$"):
        load_tokenizer(ours.parent)


def nodes(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inside = values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ()
    for key in inside:
        yield (*path, key)
        yield from nodes(values[key], (*path, key))


@given(st.data())
def test_edited_tokenizer_files(data: st.DataObject) -> None:
    """Among them are files on which `tokenizers` panics, which no `except Exception` catches."""
    values = json.loads(train_tokenizer(TEXTS * 9, 262).to_str())
    *path, last = data.draw(st.sampled_from(list(nodes(values))))
    place = values
    for key in path:
        place = place[key]
    before, new = place[last], data.draw(st.sampled_from([None, [], {}, "", 0, -1, 10**15, True, BOS, "x" * 50, 1.5]))
    place[last] = new
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tokenizer.json")
        file.write_text(json.dumps(values))
        if new == before:
            load_tokenizer(file)
        else:
            with pytest.raises(InputError, match="is none of ours"):
                load_tokenizer(file)


def test_merges_as_other_versions_write_them(ours: Path) -> None:
    values = json.loads(ours.read_text())
    values["model"]["merges"] = [" ".join(merge) for merge in values["model"]["merges"]]
    del values["model"]["byte_fallback"]
    expected = load_tokenizer(ours).to_str()
    ours.write_text(json.dumps(values))
    assert load_tokenizer(ours).to_str() == expected
