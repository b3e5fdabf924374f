"""Runs on exemplars on the report page, in a real browser: drawn where their numbers are, with and without text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgba_array

from icl_fast import InputError
from icl_fast.report.colours import DIVERGING, EVALUATORS, SEQUENTIAL
from icl_fast.report.page.write import write_page
from icl_fast.report.panels.exemplars import exemplar_panels
from icl_fast.report.panels.panel import Panel
from icl_fast.report.panels.table import ROWS, table_panels
from icl_fast.report.study import ExemplarStudy, Study
from icl_fast.report.write import write_report

OpenPage = Callable[..., Any]
Runs = dict[str, ExemplarStudy]


@pytest.fixture(scope="module")
def study(exemplar_runs: Runs) -> Study:
    return Study("Runs on exemplars", {}, (), (), exemplar_runs)


@pytest.fixture(scope="module")
def panels(study: Study) -> dict[str, Panel]:
    groups = exemplar_panels(study).values()
    return {panel.key: panel for of_run in groups for _, of_group in of_run for panel in of_group}


@pytest.fixture(scope="module")
def file(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(study, tmp_path_factory.mktemp("page"), static=False)


def wait_for(page: Any, expression: str) -> None:
    """Until it is true: the page's policy forbids what playwright would wait with."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never true: {expression}")


def plot(page: Any, panel: Panel) -> Any:
    """A panel's plot, drawn in the middle of the window."""
    key = f"[...ICL.panels].find((panel) => panel.spec.key === '{panel.key}')"
    found = page.evaluate_handle(f"{key}.plot").as_element()
    for _ in range(200):  # what is laid out on the way there moves it
        found.evaluate("(plot) => plot.scrollIntoView({block: 'center'})")
        before = found.bounding_box()
        page.wait_for_timeout(50)  # observers of what is seen report once a frame
        page.evaluate("ICL.settled()")
        if found.bounding_box() == before and page.evaluate(f"{key}.near && {key}.drawn"):
            return found
    return pytest.fail(f"never drawn: {panel.key}")


def ticks(of: Any, name: str) -> list[tuple[str, float]]:
    """What stands at an axis, and where on it in px from the plot's left or bottom edge."""
    found: list[tuple[str, float]] = of.evaluate(
        """(plot, name) => Array.from(plot.querySelectorAll(`.${name}tick`), (tick) => {
          const [own, all] = [tick.getBoundingClientRect(), plot.getBoundingClientRect()];
          const [x, y] = [own.left + own.width / 2 - all.left, all.bottom - own.top - own.height / 2];
          return [tick.textContent, name === "x" ? x : y];
        })""",
        name,
    )
    return found


def number(text: str) -> float:
    plain = text.replace("−", "-")
    return float(plain.rstrip("kM")) * {"k": 1e3, "M": 1e6}.get(plain[-1], 1)


def test_curves_are_drawn_where_their_numbers_are(file: Path, panels: dict[str, Panel], browser_page: OpenPage) -> None:
    page = browser_page(file, hash="axis=linear")
    drawn = 0
    for key in ("alone-loss", "alone-curves-accuracy", "seeds-strategies-loss", "clamped-attention-own-free"):
        panel = panels[f"exemplars-{key}"]
        of = plot(page, panel)
        marks = [[(number(text), at) for text, at in ticks(of, name)] for name in "xy"]
        (x_slope, x_start), (y_slope, y_start) = (np.polyfit(*np.array(axis).T, 1) for axis in marks)
        lines = of.evaluate(
            """(plot) => Array.from(plot.querySelectorAll(".line"), (line) => [
              line.closest(".series").style.getPropertyValue("--own"),
              line.getAttribute("d").match(/-?[\\d.]+/g).map(Number)])"""
        )
        height = of.bounding_box()["height"]
        assert len(lines) == len(panel.series)
        for series, (colour, numbers) in zip(panel.series, lines, strict=True):
            points = np.reshape(numbers, (-1, 2))
            np.testing.assert_allclose(points[:, 0], series.x * x_slope + x_start, atol=1.5)
            np.testing.assert_allclose(height - points[:, 1], series.y * y_slope + y_start, atol=1.5)
            if series.evaluator is not None:
                assert colour == EVALUATORS[series.evaluator]
            drawn += 1
    assert drawn > 10


def test_maps_have_names_and_are_painted_where_their_numbers_are(
    file: Path, panels: dict[str, Panel], browser_page: OpenPage
) -> None:
    page = browser_page(file)
    for key, scale in (
        ("alone-wiring-match-removed", DIVERGING),
        ("alone-wiring-copy-alone", SEQUENTIAL),
        ("alone-removed-full", DIVERGING),
    ):
        panel = panels[f"exemplars-{key}"]
        heatmap = panel.heatmap
        assert heatmap is not None
        of = plot(page, panel)
        for axis, names in ("x", heatmap.x_names), ("y", heatmap.y_names):
            marks = ticks(of, axis)
            assert [text for text, _ in marks] == list(names)
            assert np.ptp(np.diff([at for _, at in marks])) < 1.5  # equally far apart
            box, inner = (
                of.bounding_box(),
                page.evaluate("(p) => p.querySelector('canvas').getBoundingClientRect().x", of),
            )
            assert all(
                tick["x"] >= box["x"] for tick in map(lambda one: one.bounding_box(), of.query_selector_all("text"))
            )
            assert inner > box["x"]
        picture = of.evaluate(
            """(plot) => {
              const canvas = plot.querySelector("canvas");
              const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
              return [canvas.width, canvas.height, Array.from(data)];
            }"""
        )
        width, height, data = picture
        pixels = np.reshape(data, (height, width, 4))[..., :3]
        colours = to_rgba_array(scale)[:, :3] * 255
        rows, columns = heatmap.z.shape
        for row, column in np.ndindex(rows, columns):
            part = (heatmap.z[row, column] - heatmap.low) / (heatmap.high - heatmap.low)
            at = np.clip(part, 0, 1) * (len(colours) - 1)
            expected = [np.interp(at, range(len(colours)), channel) for channel in colours.T]
            for aside in (-0.45, 0, 0.45):
                y, x = (1 - (row + 0.5 + aside) / rows) * height, (column + 0.5 + aside) / columns * width
                np.testing.assert_allclose(pixels[int(y), int(x)], expected, atol=1.5)


def test_pointing_names_what_is_pointed_at(file: Path, panels: dict[str, Panel], browser_page: OpenPage) -> None:
    page = browser_page(file)
    tip = page.locator(".tip")
    panel = panels["exemplars-alone-removed-full"]
    heatmap = panel.heatmap
    assert heatmap is not None
    of = plot(page, panel)
    box = of.bounding_box()
    (_, x), (_, y) = ticks(of, "x")[2], ticks(of, "y")[-1]
    page.mouse.move(box["x"] + x, box["y"] + box["height"] - y)
    wait_for(page, f"ICL.current() && ICL.current().panel.spec.key === '{panel.key}'")
    value = f"{abs(heatmap.z[-1, 2]):.3f}" if abs(heatmap.z[-1, 2]) >= 1e-9 else "0"
    said = tip.inner_text().replace("−", "").split("\n")
    assert said[-6:] == ["head", "1.0", "evaluator", heatmap.y_names[-1], "change of accuracy", value]
    of.focus()
    page.keyboard.press("Home")
    page.keyboard.press("End")
    page.keyboard.press("ArrowDown")
    assert "evaluator " + heatmap.y_names[-2] in page.locator(".unseen[aria-live]").text_content()
    panel = panels["exemplars-alone-attention-induction"]
    of = plot(page, panel)
    point = of.evaluate(
        """(plot) => {
          const line = plot.querySelectorAll(".line")[1];
          const [x, y] = line.getAttribute("d").match(/-?[\\d.]+/g).map(Number).slice(-2);
          const at = new DOMPoint(x, y).matrixTransform(line.getScreenCTM());
          return [at.x, at.y];
        }"""
    )
    page.mouse.move(*point)
    wait_for(page, f"ICL.current() && ICL.current().panel.spec.key === '{panel.key}'")
    title, *lines = tip.inner_text().split("\n")
    assert title == "head 1.1"
    assert lines[:3] == ["training sequences seen", "48.000", "attention"]
    assert lines[3].replace("−", "-") == f"{panel.series[1].y[-1]:.3f}"


def test_a_section_a_run_without_any_on_text(file: Path, exemplar_runs: Runs, browser_page: OpenPage) -> None:
    page = browser_page(file, height=700)
    assert page.locator("main > section > h2").all_text_contents() == list(exemplar_runs)
    assert page.locator("nav button").all_text_contents() == list(exemplar_runs)
    assert page.locator("#table, #family, input[name=colour], footer dl").count() == 0
    rows = page.locator(".head tbody tr").all()
    cells = [row.locator("th, td").all_text_contents() for row in rows]
    assert [one[:7] for one in cells] == [
        ["alone", "1", "2", "2 × 8", "gaussian", "2", "3"],
        ["seeds", "3", "2", "2 × 8", "gaussian", "2", "3"],
        ["clamped", "2", "2", "2 × 8", "gaussian", "2", "3"],
    ]
    page.locator("nav button").nth(1).click()
    wait_for(page, "document.querySelector('#run-1').getBoundingClientRect().top < 300")
    assert page.evaluate("document.activeElement.id") == "run-1"
    headings = page.locator("#run-2 h3").all_text_contents()
    assert headings[:3] == ["Training curves", "Learning times", "Strategies over snapshots"]
    assert "Wiring of one <b>head</b> at the last snapshot" in headings
    page.locator("input[name=theme][value=dark]").check(force=True)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"


def test_the_switch_of_the_axis_moves_them(file: Path, panels: dict[str, Panel], browser_page: OpenPage) -> None:
    page = browser_page(file)
    read = "ICL.panels.values().find((panel) => panel.spec.key === 'exemplars-alone-loss').x.log"
    for axis in ("log", "linear"):
        page.locator(f"input[name=axis][value={axis}]").check(force=True)
        plot(page, panels["exemplars-alone-loss"])
        assert page.evaluate(read) == (axis == "log")


def test_beside_runs_on_text(
    made_study: Callable[..., Study], exemplar_runs: Runs, browser_page: OpenPage, tmp_path: Path
) -> None:
    text = made_study((1, 2))
    left = replace(exemplar_runs["alone"], left_out={6: "truncated"})
    both = replace(text, exemplars={"alone": left})
    page = browser_page(write_report(both, tmp_path, static=False))
    sections = page.locator("main > section > h2").all_text_contents()
    assert sections == [
        "Model Analysis Table",
        "Heads",
        "Further figures",
        "Token losses",
        "Attention and logit attribution",
        "alone",
        "Claims",
    ]
    assert page.locator(".head .wide").count() == 2
    assert page.locator(".note li").all_text_contents()[-1] == "alone, step 6: truncated"
    assert page.locator("input[name=colour]").count() == 3
    panel = exemplar_panels(both)["alone"][0][1][0]
    assert plot(page, panel).query_selector(".line") is not None
    assert page.locator("legend").first.text_content() == "training"
    # what belongs to the table's models is drawn as before
    page.evaluate("document.querySelector('#table .plot').scrollIntoView()")
    wait_for(page, "document.querySelectorAll('#table .line').length > 0")


def test_narrow_windows(file: Path, panels: dict[str, Panel], browser_page: OpenPage) -> None:
    page = browser_page(file, width=320, height=800)
    for key in ("alone-removed-full", "seeds-loss", "clamped-wiring-match-alone-free", "alone-wiring-composition-k"):
        of = plot(page, panels[f"exemplars-{key}"])
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        for axis in "xy":
            marks = sorted(
                (box[("x", "y")[axis == "y"]], box[("width", "height")[axis == "y"]])
                for box in (tick.bounding_box() for tick in of.query_selector_all(f".{axis}tick"))
            )
            assert len(marks) >= 2
            assert all(a + size <= b + 1 for (a, size), (b, _) in pairwise(marks))
        box = of.bounding_box()
        assert all(text.bounding_box()["x"] >= 0 for text in of.query_selector_all("text"))
        assert box["x"] + box["width"] <= 320


def test_bad_input(study: Study, exemplar_runs: Runs, made_study: Callable[..., Study], tmp_path: Path) -> None:
    text = made_study((1,))
    with pytest.raises(InputError, match="exemplars: must have the panels of alone, seeds, clamped; got none"):
        write_page(study, {}, [], [], tmp_path / "page.html")
    with pytest.raises(InputError, match="exemplars: must have the panels of none; got alone"):
        write_page(text, table_panels(text), ROWS, [], tmp_path / "page.html", exemplars={"alone": []})
    alone = replace(study, exemplars={"alone": exemplar_runs["alone"]})
    groups = exemplar_panels(alone)["alone"]
    with pytest.raises(InputError, match="'exemplars-alone-loss' is the key of two"):
        write_page(alone, {}, [], [], tmp_path / "page.html", exemplars={"alone": [*groups, groups[0]]})
    assert not list(tmp_path.iterdir())
