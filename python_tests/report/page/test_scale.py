"""The page's axes and colours against matplotlib's and numpy's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from matplotlib.ticker import MaxNLocator

from icl_fast.report.page.bundle import bundle
from icl_fast.report.page.write import read_script

MODULES = ("colour", "format", "scale")


@pytest.fixture(scope="module")
def page(chromium: Any) -> Iterator[Any]:
    """A page with the three modules as globals."""
    entry = "".join(f'import * as {name} from "./{name}.js";\nglobalThis.{name} = {name};\n' for name in MODULES)
    page = chromium.new_page()
    page.add_script_tag(content=bundle("entry", lambda name: entry if name == "entry" else read_script(name)))
    yield page
    page.close()


def shown(ticks: np.ndarray, low: float, high: float) -> np.ndarray:
    slack = 1e-9 * (high - low)
    return ticks[(ticks >= low - slack) & (ticks <= high + slack)]


@pytest.mark.parametrize("whole", [False, True])
def test_linear_ticks_are_matplotlibs(page: Any, whole: bool) -> None:
    random = np.random.default_rng(0)
    low = np.concatenate([[0, -1, 0, 0], random.normal(0, 1, 300)])
    span = np.concatenate([[2, 3, 100, 1228800], 10 ** random.uniform(0.31 if whole else -1, 4, 300)])
    scale = np.concatenate([np.ones(4), np.ones(300) if whole else 10 ** random.uniform(-4, 8, 300)])
    counts = random.integers(2, 8, len(low)).tolist()
    ranges = [[a, b, n] for a, b, n in zip(low * scale, (low + span) * scale, counts, strict=True)]
    found = page.evaluate("([all, whole]) => all.map((range) => scale.linearTicks(...range, whole))", [ranges, whole])
    for (start, end, most), ticks in zip(ranges, found, strict=True):
        locator = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=whole)
        expected = shown(locator.tick_values(start, end), start, end)
        np.testing.assert_allclose(ticks, expected, rtol=1e-9, atol=1e-9 * (end - start), err_msg=f"{start, end, most}")


def test_one_whole_number_is_one_tick(page: Any) -> None:
    assert page.evaluate("scale.linearTicks(-0.5, 0.5, 5, true)") == [0]  # the layers of a model of one
    assert page.evaluate("scale.linearTicks(0.99, 1.01, 5, true)") == [1]


def test_logarithmic_ticks(page: Any) -> None:
    random = np.random.default_rng(1)
    low = 10 ** random.uniform(-5, 8, 200)
    few = [[a, a * f, 5] for a, f in zip(low, 10 ** random.uniform(0.1, 1.99, 200), strict=True)]
    found = page.evaluate("(all) => all.map((range) => scale.logTicks(...range))", few)
    round_ones = np.outer(10.0 ** np.arange(-7, 12), [1, 2, 5]).ravel()
    for (start, end, most), ticks in zip(few, found, strict=True):
        expected = shown(round_ones, start, end)
        if len(expected) < 2:  # a tick alone does not say how much there is of anything
            expected = shown(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(start, end), start, end)
        np.testing.assert_allclose(ticks, expected, rtol=1e-9)
    assert page.evaluate("scale.logTicks(1, 1e4, 5)") == [1, 10, 100, 1000, 10000]
    assert page.evaluate("scale.logTicks(0.5, 2e9, 4)") == [1, 1e3, 1e6, 1e9]  # ten powers, every third
    assert page.evaluate("scale.logTicks(1, 1e4, 4)") == [1, 100, 10000]


@pytest.mark.parametrize("log", [False, True])
def test_axes_there_and_back(page: Any, log: bool) -> None:
    values = np.array([3.0, 5, 10, 17, 40, 299, 300])
    given = {"values": values.tolist(), "log": log, "parts": np.linspace(-0.05, 1.05, 111).tolist()}
    to, back, none, nearest = page.evaluate(
        """({values, log, parts}) => {
          const axis = scale.axis(3, 300, {log});
          const from0 = [0, ...values];
          return [values.map(axis.to), values.map((v) => axis.from(axis.to(v))), Number.isNaN(axis.to(0)),
            parts.map((part) => scale.nearestOn(axis, from0, part))];
        }""",
        given,
    )
    on = np.log10 if log else np.asarray
    expected = (on(values) - on(3.0)) / (on(300.0) - on(3.0))
    np.testing.assert_allclose(to, expected, atol=1e-12)
    np.testing.assert_allclose(back, values, rtol=1e-12)
    assert none is log  # 0 has no place on a logarithmic axis
    places = np.concatenate([[np.inf if log else -3 / 297], expected])
    parts = np.array(given["parts"])
    np.testing.assert_allclose(  # by distance: two values may be equally near
        np.abs(places[nearest] - parts), np.abs(places - parts[:, None]).min(1), atol=1e-12
    )


def test_ticks_keep_apart_and_round_ones_stay(page: Any) -> None:
    kept = page.evaluate("scale.apart(scale.axis(1, 99, {log: true}), 0.16)")
    assert kept == [1, 10, 50]  # 2 is too near 1, 5 and 20 are too near 10
    assert page.evaluate("scale.apart(scale.axis(1, 99, {log: true}), 0.15)") == [1, 2, 5, 10, 20, 50]


def test_colours_are_linear_between_stops(page: Any) -> None:
    stops = [[0, 10, 200], [100, 20, 100], [255, 255, 0]]
    parts = np.linspace(-0.2, 1.2, 57)
    found = page.evaluate("([stops, parts]) => parts.map((p) => colour.colourAt(stops, p))", [stops, parts.tolist()])
    expected = np.stack([np.interp(parts, [0, 0.5, 1], channel) for channel in zip(*stops, strict=True)], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("count(1234567)", "1.23M"),
        ("count(999.9)", "1k"),
        ("count(12)", "12"),
        ("value(-0.12345)", "−0.123"),
        ("value(0.00001234)", "1.2e−5"),
        ("value(123.456)", "123.5"),
        ("value(NaN)", "–"),
        ("value(1e-17)", "0"),
        ("tick(-2500)", "−2.5k"),
        ("tick(0.1 + 0.2)", "0.3"),
        ("whole(1234.4)", "1,234"),
    ],
)
def test_numbers_as_text(page: Any, call: str, text: str) -> None:
    assert page.evaluate(f"format.{call}") == text


def test_names_stand_at_every_one_or_evenly_thinned(page: Any) -> None:
    names = [f"1.{head}" for head in range(12)]
    for most, every in (12, 1), (30, 1), (11, 2), (5, 3), (1, 12):
        axis = page.evaluate(
            "([names, most]) => (({ticks, names}) => ({ticks, names}))(scale.axis(-0.5, 11.5, {names, most}))",
            [names, most],
        )
        assert axis == {"ticks": list(range(0, 12, every)), "names": names}
