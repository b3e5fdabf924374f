from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_fast.data import DataConfig, TextData, load_text, read_corpus
from icl_fast.data.tokenizer import BOS_ID, train_tokenizer
from icl_fast.data.windows import _split
from icl_fast.errors import InputError
from icl_fast.schema import ValidationError

TOKENIZER = train_tokenizer(["unused"], 257)


def config(folder: Path, **changes: object) -> DataConfig:
    return DataConfig(**{"corpus": str(folder), "vocab": 280, "context": 24, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def text(corpus_folder: Path) -> TextData:
    return load_text(config(corpus_folder))


def numbered(windows: int, context: int, **changes: object) -> TextData:
    """Streams in which every token is its own place, so that a token seen twice shows."""
    stream = np.arange(1, windows * context + context, dtype=np.uint32)[: windows * context + context // 2]
    made = DataConfig(corpus="numbered", context=context, **changes)  # type: ignore[arg-type]
    return TextData(made, TOKENIZER, stream, stream)


def everything(text: TextData, batch_size: int, epochs: int = 1) -> torch.Tensor:
    steps = epochs * text.train_windows // batch_size
    return torch.cat([text.batch(step, batch_size)[1] for step in range(steps)])


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 7), st.integers(0, 2**40))
def test_no_token_is_a_target_twice(windows: int, context: int, batch_size: int, seed: int) -> None:
    text = numbered(windows, context, seed=seed)
    seen = everything(text, min(batch_size, windows)).flatten().tolist()
    assert len(set(seen)) == len(seen)
    assert len(seen) == windows // min(batch_size, windows) * min(batch_size, windows) * context
    assert set(seen) <= set(range(1, windows * context + 1))


@given(st.integers(2, 40), st.integers(1, 9), st.integers(2, 7))
def test_order_does_not_depend_on_the_batch_size(windows: int, context: int, batch_size: int) -> None:
    text = numbered(windows, context)
    one = everything(text, 1)
    many = everything(text, min(batch_size, windows))
    assert torch.equal(one[: len(many)], many)
    assert windows < 8 or not torch.equal(one, one.sort(dim=0).values)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 7))
def test_repeated_epochs_each_see_every_window_once(windows: int, batch_size: int, epochs: int) -> None:
    text = numbered(windows, 2, repeat=True)
    steps = -(-windows * epochs // batch_size)
    seen = torch.cat([text.batch(step, batch_size)[1] for step in range(steps)])[: windows * epochs]
    orders = seen[:, 0].reshape(epochs, windows)
    assert (orders.sort(dim=1).values == torch.arange(windows) * 2 + 1).all()
    assert windows < 10 or epochs == 1 or not torch.equal(orders[0], orders[1])


def test_first_epoch_is_the_same_with_and_without_repeat() -> None:
    assert torch.equal(everything(numbered(9, 3), 3), everything(numbered(9, 3, repeat=True), 3))


def test_batches_are_windows_shifted_behind_a_bos(text: TextData) -> None:
    inputs, targets = text.batch(3, 5)
    assert inputs.shape == targets.shape == (5, 24)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets[:, :-1], inputs[:, 1:])
    assert (inputs[:, 0] == BOS_ID).all()


def test_any_step_alone_is_the_step_of_the_whole(text: TextData) -> None:
    whole = everything(text, 4)
    for step in (17, 0, 5):
        assert torch.equal(text.batch(step, 4)[1], whole[4 * step : 4 * step + 4])
    with pytest.raises(InputError, match="a step is 0 or more"):
        text.batch(-1, 4)
    with pytest.raises(InputError, match="a batch 1 or more"):
        text.batch(0, 0)


def test_training_and_evaluation_share_no_document(corpus_folder: Path, text: TextData) -> None:
    documents = {document.text for document in read_corpus(str(corpus_folder)).documents}
    streams = [text._train, text._held_out]
    train, held_out = ({decoded for decoded in decode(text, stream) if decoded} for stream in streams)
    assert train | held_out == documents
    assert not train & held_out
    held = sum(map(len, held_out)) / sum(map(len, documents))
    assert 0.1 <= held < 0.1 + 1.5 / len(documents)
    assert text.tokens == sum(map(len, streams))


def decode(text: TextData, stream: np.ndarray) -> list[str]:
    pieces = np.split(stream, np.flatnonzero(stream == BOS_ID))
    return [text.tokenizer.decode([int(i) for i in piece if i != BOS_ID]) for piece in pieces]


@given(
    st.lists(st.text(min_size=1, max_size=9), min_size=2, max_size=12, unique=True),
    st.floats(0.01, 0.99),
    st.integers(0, 9),
)
def test_split_keeps_every_document_once(texts: list[str], holdout: float, seed: int) -> None:
    train, held_out = _split(texts, DataConfig(holdout=holdout, seed=seed))
    assert sorted(train + held_out) == sorted(texts)
    assert train
    assert held_out
    size = sum(len(t.encode()) for t in texts)
    assert len(train) == 1 or sum(len(t.encode()) for t in held_out) >= holdout * size
    assert sum(len(t.encode()) for t in held_out[:-1]) < holdout * size


def test_evaluation_set(text: TextData) -> None:
    evaluation = text.evaluation()
    shape = (text.evaluation_windows, 24)
    assert evaluation.inputs.shape == evaluation.targets.shape == shape
    assert torch.equal(evaluation.targets[:, :-1], evaluation.inputs[:, 1:])
    assert (evaluation.inputs[:, 0] == BOS_ID).all()
    assert evaluation.random_position.dtype == torch.int64
    assert set(evaluation.random_position.tolist()) == set(range(1, 25))
    held_out = text._held_out[: shape[0] * 24].reshape(shape).astype(np.int64)
    assert not torch.equal(evaluation.targets, torch.from_numpy(held_out))
    assert torch.equal(rows(evaluation.targets), rows(torch.from_numpy(held_out)))


def rows(windows: torch.Tensor) -> torch.Tensor:
    return torch.tensor(sorted(windows.tolist()))


def test_fewer_examples_are_the_front_of_the_same_set(corpus_folder: Path, text: TextData) -> None:
    whole, few = text.evaluation(), load_text(config(corpus_folder, evaluation_examples=7)).evaluation()
    assert len(few.inputs) == 7
    for name in ("inputs", "targets", "random_position"):
        assert torch.equal(getattr(few, name), getattr(whole, name)[:7])
    assert few.digest != whole.digest


@pytest.mark.parametrize("length", [7, 24, 60])
def test_examples_longer_or_shorter_than_the_training_windows(corpus_folder: Path, text: TextData, length: int) -> None:
    other = load_text(config(corpus_folder, evaluation_context=length))
    assert torch.equal(everything(other, 2), everything(text, 2))
    evaluation = other.evaluation()
    assert evaluation.targets.shape == (other.evaluation_windows, length)
    held_out = torch.from_numpy(other._held_out[: evaluation.targets.numel()].astype(np.int64))
    assert torch.equal(rows(evaluation.targets), rows(held_out.view(-1, length)))
    assert (evaluation.random_position <= length).all()
    assert (evaluation.digest == text.evaluation().digest) == (length == 24)


def test_digest_tells_evaluation_sets_apart(corpus_folder: Path, text: TextData) -> None:
    same = load_text(config(corpus_folder, repeat=True))
    assert same.evaluation().digest == text.evaluation().digest
    for change in ({"seed": 1}, {"vocab": 281}, {"context": 25}, {"holdout": 0.3}):
        assert load_text(config(corpus_folder, **change)).evaluation().digest != text.evaluation().digest


def test_data_is_a_function_of_the_corpus_seed_alone(corpus_folder: Path, text: TextData) -> None:
    torch.manual_seed(123)
    np.random.seed(123)
    again = load_text(config(corpus_folder))
    assert torch.equal(everything(again, 2), everything(text, 2))
    other = load_text(config(corpus_folder, seed=1))
    assert not torch.equal(other.batch(0, 2)[1], text.batch(0, 2)[1])


def test_data_is_the_same_in_another_process(corpus_folder: Path, text: TextData, tmp_path: Path) -> None:
    code = (
        "import os, sys; os.environ['ICL_FAST_CACHE'] = sys.argv[2]\n"
        "from icl_fast.data import DataConfig, load_text\n"
        "text = load_text(DataConfig(corpus=sys.argv[1], vocab=280, context=24))\n"
        "print(text.evaluation().digest, text.batch(2, 3)[1].tolist())"
    )
    run = [sys.executable, "-c", code, str(corpus_folder), str(tmp_path)]
    expected = f"{text.evaluation().digest} {text.batch(2, 3)[1].tolist()}"
    assert subprocess.check_output(run, text=True).strip() == expected


def test_streams_are_memory_mapped(text: TextData) -> None:
    assert isinstance(text._train, np.memmap)
    assert not text._train.flags.writeable


def test_budget_shows_the_sum() -> None:
    text = numbered(1000, 8)
    text.check_budget(500, 2)
    text.check_budget(1, 1000)
    with pytest.raises(InputError) as error:
        text.check_budget(501, 2)
    assert str(error.value) == (
        "training.steps 501 x training.batch 2 x data.context 8 = 8,016 tokens, but corpus numbered has 8,000 "
        "training tokens at vocab 512: use at most 500 steps, or data.repeat=true"
    )
    with pytest.raises(InputError, match="use a batch of at most 1,000, or"):
        text.check_budget(1, 1001)
    with pytest.raises(InputError, match="at most 500 steps"):
        text.batch(500, 2)
    numbered(1000, 8, repeat=True).check_budget(10**6, 16)


@settings(max_examples=30)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 40))
def test_the_most_steps_that_the_message_allows_do_fit(windows: int, steps: int, batch_size: int) -> None:
    text = numbered(windows, 1)
    try:
        text.check_budget(steps, batch_size)
    except InputError:
        assert steps * batch_size > windows
        text.check_budget(windows // batch_size, batch_size)
    else:
        assert steps * batch_size <= windows


def test_too_small_corpora(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the same words and the same words\n" * 40)
    with pytest.raises(InputError, match="has one document"):
        load_text(config(tmp_path, vocab=257))
    (tmp_path / "b.txt").write_text("a few other words\n" * 40)
    load_text(config(tmp_path, vocab=257, context=10))
    with pytest.raises(InputError, match=r"documents hold (721|1,361) tokens, fewer than .* data\.context 2000"):
        load_text(config(tmp_path, vocab=257, context=2000))
    for vocab in (5000, 10**15):
        with pytest.raises(InputError, match="too small, it has 720 bytes"):
            load_text(config(tmp_path, vocab=vocab))


@pytest.mark.parametrize("batch", [10**9, 10**12, 10**15, 10**30])
def test_batches_beyond_memory(corpus_folder: Path, batch: int) -> None:
    text = load_text(config(corpus_folder, repeat=True))
    for take in (lambda: text.check_budget(3, batch), lambda: text.batch(0, batch)):
        with pytest.raises(InputError, match=rf"^training\.batch {batch} x data\.context \d+: needs .* of memory"):
            take()


@pytest.mark.parametrize(
    "bad",
    [
        {"vocab": 256},
        {"vocab": "512"},
        {"vocab": 512.0},
        {"context": 0},
        {"seed": -1},
        {"holdout": 0.0},
        {"holdout": 1.0},
        {"holdout": float("nan")},
        {"evaluation_examples": 0},
        {"evaluation_context": 0},
        {"repeat": 1},
        {"corpus": "  "},
        {"corpus": 3},
        {"contexts": 256},
    ],
)
def test_bad_configs(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(bad))):
        DataConfig(**bad)  # type: ignore[arg-type]


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        DataConfig().vocab = 1024  # type: ignore[misc]


def test_the_default_corpus() -> None:
    """The running Python's own library: room for the demo's runs, round trip of a real file."""
    text = load_text(DataConfig())
    assert text.train_tokens > 4_000_000
    assert len(text.evaluation().inputs) > 1000
    source = Path(torch.__file__).read_text(encoding="utf-8")
    assert text.tokenizer.decode(text.tokenizer.encode(source).ids, skip_special_tokens=False) == source
