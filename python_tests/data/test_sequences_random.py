"""The counter-based generator: against the published answers and its definition in plain integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from icl_fast.data.counter_random import below, below_finely, normal, philox, random_words

word = st.integers(0, 2**32 - 1)


def tensors(*values: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(value) for value in values)


def reference(counter: list[int], key: list[int]) -> list[int]:
    """Salmon et al. 2011, Philox4x32-10, with integers that do not wrap."""
    for _ in range(10):
        first, second = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            second // 2**32 ^ counter[1] ^ key[0],
            second % 2**32,
            first // 2**32 ^ counter[3] ^ key[1],
            first % 2**32,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_published_answers(counter: tuple[int, ...], key: tuple[int, ...], answer: tuple[int, ...]) -> None:
    assert philox(tensors(*counter), tensors(*key)).tolist() == list(answer)  # type: ignore[arg-type]
    assert reference(list(counter), list(key)) == list(answer)


@given(st.lists(word, min_size=4, max_size=4), st.lists(word, min_size=2, max_size=2))
def test_philox_is_its_definition(counter: list[int], key: list[int]) -> None:
    assert philox(tensors(*counter), tensors(*key)).tolist() == reference(counter, key)  # type: ignore[arg-type]


@given(
    st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3),
    st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3),
    st.lists(word, min_size=1, max_size=3),
)
def test_words_are_a_function_of_seed_index_lane_and_stream(
    seeds: list[int], index: list[int], lanes: list[int]
) -> None:
    streams = list(range(len(seeds)))
    words = random_words(*(torch.tensor(values) for values in (seeds, index, lanes, streams)))
    assert words.shape == (len(seeds), len(index), 4 * len(lanes))
    for member, seed in enumerate(seeds):
        for row, i in enumerate(index):
            blocks = [
                reference([i % 2**32, i >> 32, lane, streams[member]], [seed % 2**32, seed >> 32]) for lane in lanes
            ]
            assert words[member, row].tolist() == [word for block in blocks for word in block]


@given(word, word, st.integers(1, 2**31 - 1))
@example(2, 2**32 - 1, 2**31 - 1)  # the low word carries
def test_below_is_the_product_with_a_fraction(high: int, low: int, limit: int) -> None:
    assert below(torch.tensor(high), limit) == high * limit // 2**32
    finely = below_finely(*(torch.tensor(value) for value in (high, low, limit)))
    assert finely == (high * 2**32 + low) * limit // 2**64
    assert 0 <= finely < limit


def test_normal_numbers() -> None:
    words = random_words(torch.tensor([3]), torch.arange(500), torch.arange(50), torch.tensor([0]))
    drawn = normal(words).double().flatten()
    assert drawn.shape == (100_000,)
    moments = [drawn.pow(k).mean().item() for k in range(1, 5)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.05)
    pairs = drawn.view(-1, 2)
    assert (pairs[:, 0] * pairs[:, 1]).mean().item() == pytest.approx(0, abs=0.02)


def test_normal_numbers_at_the_ends_are_finite() -> None:
    extremes = torch.tensor([0, 0, 2**32 - 1, 2**32 - 1])
    assert normal(extremes).isfinite().all()
    assert normal(extremes)[0].item() == pytest.approx((64 * 0.6931471805599453) ** 0.5)
