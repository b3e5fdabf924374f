"""The arithmetic of tensor cores (csrc/emu/arithmetic.h) against a model of it in rational numbers."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from .test_wgmma import to_bits, to_values

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
many = hypothesis.settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)

CORES = {"sm_80": (8, 24), "sm_90": (16, 25)}  # products added at once, bits of an addend after the point
TYPES = pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "fp16"])
ARCHS = pytest.mark.parametrize("arch", CORES)


def exponent(x: Fraction, least: int) -> int:
    """Of a binary fraction, floor(log2 |x|), but at least that of the smallest normal number."""
    return max(abs(x.numerator).bit_length() - x.denominator.bit_length(), least) if x else least


def truncated(x: Fraction) -> float:
    """The float32 next to x on the side of zero; from 2^128 on infinite."""
    if abs(x) >= 2**128:
        return math.copysign(math.inf, x)
    unit = Fraction(2) ** (exponent(x, -126) - 23)
    return float(math.trunc(x / unit) * unit)


def model(a: Sequence[float], b: Sequence[float], d: float, arch: str, bf16: bool) -> float:
    block, fraction_bits = CORES[arch]
    least = -126 if bf16 else -14
    for first in range(0, 16, block):
        factors = [(Fraction(x), Fraction(y)) for x, y in zip(a[first:][:block], b[first:][:block], strict=True)]
        largest = exponent(Fraction(d), -126)
        for x, y in factors:
            if x and y:
                largest = max(largest, exponent(x, least) + exponent(y, least))
        unit = Fraction(2) ** (largest - fraction_bits)
        d = truncated(unit * sum(math.trunc(x / unit) for x in [Fraction(d), *(x * y for x, y in factors)]))
        if math.isinf(d):
            break
    return d


def of_bits(bits: Sequence[int], bf16: bool) -> list[float]:
    return [float(x) for x in to_values(np.array(bits, np.uint16), bf16)]


def emulated(zoo: Any, a: Sequence[float], b: Sequence[float], d: float, arch: str, bf16: bool, wgmma: bool) -> float:
    """d + a . b by one instruction."""
    zoo.settings(arithmetic=arch)
    add = zoo.library.zoo_sum
    add.restype = ctypes.c_float
    sixteen = ctypes.c_float * 16
    return float(add(sixteen(*a), sixteen(*b), ctypes.c_float(d), int(bf16), int(wgmma)))


def finite(bf16: bool, *, spread: int) -> Any:
    """Sixteen numbers as bits, zero and subnormal ones among them, over 2 * spread powers of two."""
    mantissa, bias, top = (7, 127, 254) if bf16 else (10, 15, 30)
    powers = st.integers(max(bias - spread, 0), min(bias + spread, top))
    number = st.builds(
        lambda sign, power, rest: sign << 15 | power << mantissa | rest,
        st.integers(0, 1),
        powers | st.just(0),
        st.integers(0, (1 << mantissa) - 1) | st.just(0),
    )
    return st.lists(number, min_size=16, max_size=16)


@st.composite
def terms(draw: Any) -> tuple[list[float], list[float], float, bool]:
    """a, b, d and whether a and b are bf16: alike in size, of any size, and d with either."""
    bf16 = draw(st.booleans())
    spread = draw(st.sampled_from([1, 6, 200]))
    a, b = (of_bits(draw(finite(bf16, spread=spread)), bf16) for _ in range(2))
    d = draw(st.floats(-4, 4, width=32) | st.floats(width=32, allow_nan=False, allow_infinity=False))
    return a, b, d, bf16


@ARCHS
@pytest.mark.parametrize("wgmma", [False, True], ids=["mma_sync", "wgmma"])
def test_every_bit_is_the_models(zoo: Any, arch: str, wgmma: bool) -> None:
    @many
    @hypothesis.given(terms())
    def check(drawn: tuple[list[float], list[float], float, bool]) -> None:
        a, b, d, bf16 = drawn
        assert emulated(zoo, a, b, d, arch, bf16, wgmma) == model(a, b, d, "sm_90" if wgmma else arch, bf16)

    check()


@ARCHS
def test_errors_are_bounded_and_towards_zero(zoo: Any, arch: str) -> None:
    """Each addend loses less than the unit it is cut to, and the sum of a block less than an ulp."""
    block, fraction_bits = CORES[arch]

    @many
    @hypothesis.given(terms(), st.booleans())
    def check(drawn: tuple[list[float], list[float], float, bool], positive: bool) -> None:
        a, b, d, bf16 = drawn
        if positive:
            a, b, d = [abs(x) for x in a], [abs(x) for x in b], abs(d)
        products = [Fraction(x) * Fraction(y) for x, y in zip(a, b, strict=True)]
        exact = Fraction(d) + sum(products)
        sizes = abs(Fraction(d)) + sum(abs(x) for x in products)  # of what any block adds
        result = emulated(zoo, a, b, d, arch, bf16, False)
        assert emulated(zoo, [-x for x in a], b, -d, arch, bf16, False) == -result
        hypothesis.assume(sizes < 2**127)
        unit = Fraction(2) ** (exponent(sizes, -126) - fraction_bits)
        bound = 16 // block * ((block + 1) * unit + Fraction(2) ** (exponent(sizes, -126) - 23))
        assert abs(Fraction(result) - exact) <= bound
        if positive:
            assert Fraction(result) <= exact

    check()


@ARCHS
@TYPES
def test_nothing_is_lost_where_nothing_is_shifted_out(zoo: Any, arch: str, bf16: bool) -> None:
    whole = st.lists(st.integers(-15, 15), min_size=16, max_size=16)

    @many
    @hypothesis.given(whole, whole, st.integers(-(2**14), 2**14))
    def check(a: list[int], b: list[int], d: int) -> None:
        assert emulated(zoo, a, b, d, arch, bf16, False) == d + sum(x * y for x, y in zip(a, b, strict=True))

    check()


@ARCHS
def test_the_order_within_a_block_is_irrelevant(zoo: Any, arch: str) -> None:
    block, _ = CORES[arch]

    @many
    @hypothesis.given(terms(), st.randoms(use_true_random=False))
    def check(drawn: tuple[list[float], list[float], float, bool], random: Any) -> None:
        a, b, d, bf16 = drawn
        order = []
        for first in range(0, 16, block):
            order += random.sample(range(first, first + block), block)
        shuffled = emulated(zoo, [a[i] for i in order], [b[i] for i in order], d, arch, bf16, False)
        assert shuffled == emulated(zoo, a, b, d, arch, bf16, False)

    check()


@TYPES
@pytest.mark.parametrize(
    ("arch", "a", "b", "d", "result"),
    [
        # an addend of 2^-25 is kept by sm_90 alone, and 16 of them reach float32; 2^-26 is lost to both
        ("sm_80", [2.0**-12] * 16, [2.0**-13] * 16, 1.0, 1.0),
        ("sm_90", [2.0**-12] * 16, [2.0**-13] * 16, 1.0, 1 + 2.0**-21),
        ("sm_90", [2.0**-13] * 16, [2.0**-13] * 16, 1.0, 1.0),
        # 3 * 2^-24 rounds up to 2^-22 in float32; truncated it is 2^-23
        ("sm_80", [3 * 2.0**-12] + [0.0] * 15, [2.0**-12] * 16, 1.0, 1 + 2.0**-23),
        ("sm_90", [-3 * 2.0**-12] + [0.0] * 15, [2.0**-12] * 16, -1.0, -1 - 2.0**-23),
        # the second block of sm_80 meets what the first has left
        ("sm_80", [4096.0] + [0.0] * 7 + [-4096.0, 2.0**-4] + [0.0] * 6, [4096.0] + [4096.0] * 15, 0.0, 256.0),
        ("sm_80", [4096.0, 2.0**-14] + [0.0] * 6 + [-4096.0] + [0.0] * 7, [4096.0, 1.0] + [4096.0] * 14, 0.0, 0.0),
        # 1.5 * 1.5 has the exponent of 1 * 1, a d of 2.25 that of 2
        ("sm_90", [1.5, -1.5, 2.0**-12] + [0.0] * 13, [1.5, 1.5, 2.0**-13] + [0.0] * 13, 0.0, 2.0**-25),
        ("sm_90", [1.5, 0.0, 2.0**-12] + [0.0] * 13, [1.5, 1.5, 2.0**-13] + [0.0] * 13, -2.25, 0.0),
    ],
)
def test_what_is_lost(zoo: Any, arch: str, a: list[float], b: list[float], d: float, result: float, bf16: bool) -> None:
    assert emulated(zoo, a, b, d, arch, bf16, False) == result
    assert model(a, b, d, arch, bf16) == result


INF, NAN = math.inf, math.nan


@ARCHS
@TYPES
@pytest.mark.parametrize(
    ("a", "b", "d", "result"),
    [
        (NAN, 0.0, 0.0, NAN),
        (0.0, 1.0, NAN, NAN),
        (INF, 0.0, 0.0, NAN),
        (INF, 1.0, -INF, NAN),
        (INF, 1.0, 3.0, INF),
        (INF, -2.0, 3.0, -INF),
        (1.0, 1.0, -INF, -INF),
        (0.0, 1.0, float(np.finfo(np.float32).max), float(np.finfo(np.float32).max)),
        (2.0**15, 2.0**15, float(np.finfo(np.float32).max), float(np.finfo(np.float32).max)),  # truncated
        (0.0, 0.0, -0.0, 0.0),
        (0.0, 1.0, 2.0**-149, 2.0**-149),  # subnormal
    ],
)
@pytest.mark.parametrize("place", [0, 7, 15])
def test_special_values(
    zoo: Any, arch: str, bf16: bool, a: float, b: float, d: float, result: float, place: int
) -> None:
    factors, others = [0.0] * 16, [1.0] * 16
    factors[place], others[place] = a, b
    for wgmma in (False, True):
        assert emulated(zoo, factors, others, d, arch, bf16, wgmma) == pytest.approx(result, abs=0, rel=0, nan_ok=True)


def test_overflow_and_subnormal_numbers(zoo: Any) -> None:
    big, small = [2.0**63] * 16, [2.0**-133] * 16  # bf16's least
    assert emulated(zoo, big, [2.0**62] * 16, 0.0, "sm_90", True, True) == INF
    assert emulated(zoo, big, [2.0**61 * s for s in (1.0, -1.0)] * 8, 5.0, "sm_90", True, True) == 0.0  # 5 is cut away
    assert emulated(zoo, small, [1.0] * 16, 0.0, "sm_80", True, False) == 2.0**-129
    assert emulated(zoo, [2.0**-24] * 16, [2.0**-24] * 16, 0.0, "sm_80", False, False) == 2.0**-44  # fp16's least
    # the exponent of fp16's subnormal numbers is -14: beside 2^-24 * 2^15, 2^-24 * 2^-10 is 2^-35 of 2^1
    a, b = [2.0**-24, 2.0**-24] + [0.0] * 14, [2.0**15, 2.0**-10] + [0.0] * 14
    assert emulated(zoo, a, b, 0.0, "sm_90", False, True) == 2.0**-9


def sampled(result: Any, a: Any, b: Any, d: Any, arch: str, bf16: bool, places: Any) -> None:
    """Elements of d + a b^T are what the model makes of them, 16 of k at a time."""
    for i, j in places:
        expected = float(d[i, j])
        for k in range(0, a.shape[1], 16):
            expected = model(a[i, k : k + 16], b[j, k : k + 16], expected, arch, bf16)
        assert result[i, j] == expected


@ARCHS
@TYPES
def test_mma_sync(zoo: Any, arch: str, bf16: bool) -> None:
    random = np.random.default_rng(3)
    a, b = (to_bits(random.standard_normal((rows, 16)), bf16) for rows in (16, 8))
    d = random.standard_normal((16, 8)).astype(np.float32)
    results = {}
    for arithmetic in ("float32", arch):
        zoo.settings(arithmetic=arithmetic)
        results[arithmetic] = d.copy()
        assert zoo.run("mma_sync", "kNone", {"d": results[arithmetic], "a": a, "b": b}, int(bf16)) == ""
    sampled(results[arch], to_values(a, bf16), to_values(b, bf16), d, arch, bf16, np.ndindex(16, 8))
    assert (results["float32"] != results[arch]).any()


@TYPES
@pytest.mark.parametrize("kernel", ["gemm_128", "gemm_128_registers"])
def test_wgmma(zoo: Any, kernel: str, bf16: bool) -> None:
    """Sixteen instructions that add to one accumulator; sm_80, which has no wgmma, does not change it."""
    random = np.random.default_rng(4)
    m, n, k = 64, 128, 256
    a, b = (to_bits(random.standard_normal((rows, k)), bf16) for rows in (m, n))
    results = {}
    for arithmetic in ("float32", *CORES):
        zoo.settings(arithmetic=arithmetic)
        results[arithmetic] = np.full((m, n), np.nan, np.float32)
        assert zoo.run(kernel, "kNone", {"c": results[arithmetic], "a": a, "b": b}, m, n, k, int(bf16)) == ""
    places = zip(random.integers(m, size=60), random.integers(n, size=60), strict=True)
    sampled(results["sm_90"], to_values(a, bf16), to_values(b, bf16), np.zeros((m, n)), "sm_90", bf16, places)
    assert np.array_equal(results["sm_80"], results["sm_90"])
    assert (results["float32"] != results["sm_90"]).any()


def exp2(zoo: Any, x: np.ndarray[Any, Any], arch: str) -> np.ndarray[Any, Any]:
    zoo.settings(arithmetic=arch)
    out = np.empty_like(x)
    pointer = ctypes.POINTER(ctypes.c_float)
    zoo.library.zoo_exp2(out.ctypes.data_as(pointer), x.ctypes.data_as(pointer), ctypes.c_long(x.size))
    return out


@ARCHS
def test_exp2_is_off_by_up_to_2_ulp(zoo: Any, arch: str) -> None:
    random = np.random.default_rng(5)
    whole = np.arange(-126, 128)
    x = np.concatenate([whole, random.uniform(-126, 128, 20000), random.standard_normal(20000)]).astype(np.float32)
    result = exp2(zoo, x, arch)
    rounded = np.exp2(x.astype(np.float64)).astype(np.float32)
    off = result.view(np.int32).astype(int) - rounded.view(np.int32)
    assert set(np.unique(off)) == {-2, -1, 0, 1, 2}
    assert np.abs(off.mean()) < 0.05
    assert np.array_equal(exp2(zoo, x[::-1].copy(), arch)[::-1], result)  # a function of x


def test_exp2_of_special_values(zoo: Any) -> None:
    tiny = float(np.finfo(np.float32).smallest_subnormal)
    x = np.array([0, -0.0, tiny, -tiny, -INF, INF, NAN, 128, 200, -126.01, -140, -200], np.float32)
    expected = [1, 1, 1, 1, 0, INF, NAN, INF, INF, 0, 0, 0]
    np.testing.assert_array_equal(exp2(zoo, x, "sm_90"), np.array(expected, np.float32))
    assert exp2(zoo, np.array([-126], np.float32), "sm_90")[0] >= 2.0**-126
