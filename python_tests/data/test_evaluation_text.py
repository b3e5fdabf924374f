"""What other people's models are evaluated on: windows of texts in their own tokens, random tokens said twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from icl_fast import InputError
from icl_fast.data import EvaluationSet, EvaluationText
from icl_fast.data.evaluation_text import random_examples, text_examples
from icl_fast.data.foreign_tokenizer import ForeignTokenizer, foreign_tokenizer
from icl_fast.data.tokenizer import train_tokenizer

VOCAB = 280


@pytest.fixture(scope="module")
def tokenizer(corpus_folder: Path) -> Any:
    return train_tokenizer([(corpus_folder / "00.txt").read_text()], VOCAB)


def of_family(tokenizer: Any, bos: str, separator: int | None = 0) -> ForeignTokenizer:
    return foreign_tokenizer(tokenizer, {"eos_token_id": separator}, bos)


def pairs_of(found: EvaluationSet, bos: int | None) -> None:
    """Whatever is predicted is read next."""
    assert torch.equal(found.inputs[:, 1:], found.targets[:, :-1])
    if bos is not None:
        assert (found.inputs[:, 0] == bos).all()
    assert found.random_position.min() >= 1
    assert found.random_position.max() <= found.targets.shape[1]


@settings(max_examples=20)
@example(context=22, examples=8, seed=2, bos="7", separator=None)  # one text ends in a window, behind it token 7
@given(
    context=st.integers(2, 60),
    examples=st.integers(1, 30),
    seed=st.integers(0, 5),
    bos=st.sampled_from(["none", "0", "7"]),
    separator=st.sampled_from([None, 0]),
)
def test_windows_of_texts(
    corpus_folder: Path, tokenizer: Any, context: int, examples: int, seed: int, bos: str, separator: int | None
) -> None:
    family = of_family(tokenizer, bos, separator)
    text = EvaluationText((str(corpus_folder),), context, examples, seed)
    found = text_examples(text, family, VOCAB)
    assert found.inputs.shape == found.targets.shape == (examples, context)
    pairs_of(found, family.bos)
    texts = [path.read_text() for path in corpus_folder.iterdir()]
    whole = found.targets if family.bos is not None else torch.cat([found.inputs[:, :1], found.targets], dim=1)
    for window in whole:
        said = tokenizer.decode([token for token in window.tolist() if token != 0])
        parts = [tokenizer.decode(part) for part in split(window.tolist(), family.separator)]
        # without a separator the end of a text and the beginning of another stand side by side
        assert all(is_in(part, texts) or (family.separator is None and spans_two(part, texts)) for part in parts), said
    assert len({tuple(window.tolist()) for window in whole}) == examples or context < 4  # disjoint windows
    fewer = text_examples(EvaluationText(text.sources, context, max(1, examples // 2), seed), family, VOCAB)
    for one, other in ((fewer.inputs, found.inputs), (fewer.random_position, found.random_position)):
        assert torch.equal(one, other[: len(one)])
    assert fewer.digest == found.digest or examples > 1
    other = text_examples(EvaluationText(text.sources, context, examples, seed + 1), family, VOCAB)
    assert other.digest != found.digest


def is_in(part: str, texts: list[str]) -> bool:
    return any(part in one for one in texts)


def spans_two(part: str, texts: list[str]) -> bool:
    ends = [any(one.endswith(part[:cut]) for one in texts) for cut in range(len(part))]
    begins = [any(one.startswith(part[cut:]) for one in texts) for cut in range(len(part))]
    return any(end and begin for end, begin in zip(ends, begins, strict=True))


def split(tokens: list[int], separator: int | None) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for token in tokens:
        parts.append([]) if token == separator else parts[-1].append(token)
    return parts


@settings(max_examples=30)
@given(context=st.integers(2, 50), examples=st.integers(1, 9), bos=st.sampled_from([None, 3]), seed=st.integers(0, 3))
def test_random_tokens_said_twice(context: int, examples: int, bos: int | None, seed: int) -> None:
    ids = np.arange(10, 110)
    found = random_examples(EvaluationText(("repeated-random",), context, examples, seed), bos, ids)
    pairs_of(found, bos)
    whole = found.targets if bos is not None else torch.cat([found.inputs[:, :1], found.targets], dim=1)
    half = -(-whole.shape[1] // 2)
    assert torch.equal(whole[:, half:], whole[:, : whole.shape[1] - half])
    assert set(whole.flatten().tolist()) <= set(range(20, 100))  # the first and the last tenth are left out


def test_a_file_and_several_texts_give_what_they_hold(corpus_folder: Path, tokenizer: Any) -> None:
    family = of_family(tokenizer, "0")
    one, two = (str(corpus_folder / name) for name in ("01.txt", "02.txt"))
    sizes = [
        len(text_examples(EvaluationText(sources, 50, 10_000), family, VOCAB).inputs)
        for sources in ((one,), (two,), (one, two))
    ]
    assert sizes[0] + sizes[1] <= sizes[2] <= sizes[0] + sizes[1] + 1
    assert EvaluationText((one, "stdlib")).name == "01.txt, stdlib"


def test_what_is_left_open_is_decided_by_the_model(tokenizer: Any) -> None:
    family, ckpt = of_family(tokenizer, "0"), Path("ckpt")
    assert EvaluationText().resolved(8192, family, ckpt).context == 512
    assert EvaluationText().resolved(64, family, ckpt).context == 64
    assert EvaluationText().resolved(64, family, ckpt).sources == ("stdlib",)
    assert EvaluationText().resolved(64, None, ckpt).sources == ("repeated-random",)
    with pytest.raises(InputError, match=r"^context: 65 is more than the 64 positions"):
        EvaluationText(context=65).resolved(64, family, ckpt)
    with pytest.raises(InputError, match=r"^text: ckpt has no tokenizer\.json"):
        EvaluationText(("stdlib",)).resolved(64, None, ckpt)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 1}, "context: must be 2 or more"),
        ({"examples": 0}, "examples: must be 1 or more"),
        ({"seed": -1}, "seed: must be 0 or more"),
        ({"sources": ("a", "a")}, "text: a asked for more than once"),
        ({"sources": ("repeated-random", "a")}, "text: repeated-random is no text that goes with others"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        EvaluationText(**options)


def test_texts_that_cannot_be_used(tokenizer: Any, tmp_path: Path) -> None:
    family = of_family(tokenizer, "none")
    short, binary = tmp_path / "short.txt", tmp_path / "binary"
    short.write_text("a few words")
    binary.write_bytes(b"\0\1")
    for source, context, vocab, message in [
        (short, 50, VOCAB, r"text short\.txt: holds .* tokens, fewer than one example of 51"),
        (binary, 50, VOCAB, "text: .*binary: no text"),
        (tmp_path / "gone.txt", 50, VOCAB, r"text: .*gone\.txt: no such folder"),
        (short, 2, 100, "tokenizer: gives token .*, but the model has tokens 0 to 99"),
    ]:
        with pytest.raises(InputError, match=f"^{message}"):
            text_examples(EvaluationText((str(source),), context), family, vocab)
    with pytest.raises(InputError, match=r"2 tokens are too few|1 tokens are too few"):
        random_examples(EvaluationText(("repeated-random",), 8), None, np.arange(1))
