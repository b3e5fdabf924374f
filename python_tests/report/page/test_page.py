"""The report page in a real browser: it shows what was measured; pointing, clicking and keys do what they say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgba_array
from matplotlib.image import imread

from icl_fast import InputError
from icl_fast.report.colours import SEQUENTIAL
from icl_fast.report.page.write import write_page
from icl_fast.report.panels.family import family_panels
from icl_fast.report.panels.panel import Heatmap, Panel, Series
from icl_fast.report.panels.table import ROWS, table_panels
from icl_fast.report.study import Study

OpenPage = Callable[..., Any]
PREFIX, BEFORE_AFTER = 5, 7  # rows of the table


@pytest.fixture(scope="module")
def study(made_study: Callable[..., Study]) -> Study:
    return made_study((1, 2, 3), snapshots=9)


@pytest.fixture(scope="module")
def table(study: Study) -> dict[str, list[Panel]]:
    return table_panels(study)


@pytest.fixture(scope="module")
def file(study: Study, table: dict[str, list[Panel]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(study, table, ROWS, family_panels(study), tmp_path_factory.mktemp("page") / "report.html")


def scroll_to(page: Any, selector: str) -> None:
    page.evaluate("(s) => document.querySelector(s).scrollIntoView({block: 'center'})", selector)
    page.wait_for_timeout(50)  # observers of what is seen report once a frame
    page.evaluate("ICL.settled()")


def cell(row: int, column: int) -> str:
    """CSS selector of a panel of the table, both counted from 0."""
    return f"#table .row:nth-child({row + 1}) .cell:nth-child({column + 2}) .plot"


def vertices(page: Any, selector: str, trace: int) -> np.ndarray[Any, Any]:
    """Where a line's points are on the screen, [point, (x, y)], read off the SVG."""
    points = page.evaluate(
        """([selector, trace]) => {
          const path = document.querySelectorAll(`${selector} .line`)[trace];
          const to = path.getScreenCTM();
          const numbers = path.getAttribute('d').match(/-?[\\d.]+/g).map(Number);
          return Array.from({length: numbers.length / 2}, (_, i) => {
            const p = new DOMPoint(numbers[2 * i], numbers[2 * i + 1]).matrixTransform(to);
            return [p.x, p.y];
          });
        }""",
        [selector, trace],
    )
    return np.array(points)


def held(page: Any, expression: str) -> Any:
    """What a panel of the manifest holds, arrays and all."""
    return page.evaluate(
        f"""() => {{
          const read = (r) => r === null ? null : {{data: Array.from(ICL.array(r).data), shape: ICL.array(r).shape}};
          return {expression}.map((panel) => ({{
            key: panel.key, absent: panel.absent, band: panel.band, y_range: panel.y_range,
            series: panel.series.map((s) => ({{...s, x: read(s.x), y: read(s.y), error: read(s.error)}})),
            heatmap: panel.heatmap && {{
              ...panel.heatmap, x: read(panel.heatmap.x), y: read(panel.heatmap.y), z: read(panel.heatmap.z)}},
          }}));
        }}"""
    )


def assert_same(found: dict[str, Any] | None, expected: np.ndarray[Any, Any] | None) -> None:
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        values = np.array(found["data"], dtype=np.float64).reshape(found["shape"])
        np.testing.assert_array_equal(values, expected.astype(np.float32).astype(np.float64))


def test_every_number_is_that_of_the_arrays(
    file: Path, study: Study, table: dict[str, list[Panel]], browser_page: OpenPage
) -> None:
    page = browser_page(file)
    of_family = [panel for _, panels in family_panels(study) for panel in panels]
    shown = held(page, "ICL.data.table.flat()") + held(page, "ICL.data.family.flatMap((group) => group.panels)")
    panels = [*(panel for column in table.values() for panel in column), *of_family]
    assert [panel.key for panel in panels] == [one["key"] for one in shown]
    for panel, one in zip(panels, shown, strict=True):
        assert one["absent"] == panel.absent
        assert one["band"] == (None if panel.band is None else list(panel.band))
        assert len(one["series"]) == len(panel.series)
        for series, found in zip(panel.series, one["series"], strict=True):
            assert (found["label"], found["model"]) == (series.label, series.model)
            assert found["head"] == (None if series.head is None else list(series.head))
            for name in ("x", "y", "error"):
                assert_same(found[name], getattr(series, name))
        if panel.heatmap is not None:
            for name in "xyz":
                assert_same(one["heatmap"][name], getattr(panel.heatmap, name))


def test_the_sheet_holds_what_was_measured(file: Path, study: Study, browser_page: OpenPage) -> None:
    page = browser_page(file)
    read = "(r) => ({data: Array.from(ICL.array(r).data), shape: ICL.array(r).shape})"
    for index, model in enumerate(study.models.values()):
        for name in ("prefix_matching", "copying", "previous_token", "qk_trace", "ov_copying"):
            assert_same(page.evaluate(f"({read})(ICL.data.models[{index}].scores.{name})"), model.heads[name].values)
        for name in "qkv":
            found = page.evaluate(f"({read})(ICL.data.models[{index}].composition.{name})")
            assert_same(found, model.heads[f"composition_{name}"].values[-1])
        for mode, sweep in model.ablations.items():
            effects = {name: np.zeros((9, model.config.layers, 2)) for name in ("icl", "loss")}
            whole = sweep.sel(ablation="none")
            for layer, head in np.ndindex(model.config.layers, 2):
                without = sweep.sel(ablation=f"{layer}.{head}")
                effects["icl"][:, layer, head] = without["icl_score"] - whole["icl_score"]
                effects["loss"][:, layer, head] = (without["loss"] - whole["loss"]).mean("example")
            for name, expected in effects.items():
                found = page.evaluate(f"({read})(ICL.data.models[{index}].ablations['{mode}'].{name})")
                values = np.reshape(found["data"], found["shape"])
                np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-7)


def test_lines_are_drawn_where_their_numbers_are(
    file: Path, table: dict[str, list[Panel]], browser_page: OpenPage
) -> None:
    page = browser_page(file)
    panel, where = table["two_layer"][PREFIX], cell(PREFIX, 1)
    scroll_to(page, where)
    for axis, scale, first in ("linear", np.asarray, 0), ("log", np.log10, 1):  # log: 0 tokens cannot be shown
        page.locator(f"input[name=axis][value={axis}]").check(force=True)
        page.evaluate("ICL.settled()")
        ticks = page.evaluate(
            """(where) => Array.from(document.querySelectorAll(`${where} .ytick`), (t) => {
              const box = t.getBoundingClientRect();
              return [Number(t.textContent.replace('−', '-')), box.top + box.height / 2];
            })""",
            where,
        )
        slope, offset = np.polyfit(*np.array(ticks).T, 1)
        marks = page.evaluate(
            """(where) => Array.from(document.querySelectorAll(`${where} .xtick`), (t) => {
              const box = t.getBoundingClientRect();
              return [parseFloat(t.textContent) * (t.textContent.endsWith('k') ? 1000 : 1), box.left + box.width / 2];
            })""",
            where,
        )
        for number, series in enumerate(panel.series):
            drawn = vertices(page, where, number)
            at = scale(series.x[first:])
            xs = np.interp(at, at[[0, -1]], drawn[[0, -1], 0])
            np.testing.assert_allclose(series.y[first:] * slope + offset, drawn[:, 1], atol=1.2)
            np.testing.assert_allclose(xs, drawn[:, 0], atol=0.6)
            tokens, places = np.array(marks).T
            np.testing.assert_allclose(np.interp(scale(tokens), at, xs), places, atol=1.2)


def test_pointing_at_a_head_lights_it_up_in_every_row(
    file: Path, table: dict[str, list[Panel]], browser_page: OpenPage
) -> None:
    page = browser_page(file, height=1400)
    scroll_to(page, cell(PREFIX, 2))
    series = table["three_layer"][PREFIX].series
    # of the lines at the fifth snapshot the lowest: no other is as near to the point
    number = int(np.argmin([one.y[5] for one in series]))
    points = vertices(page, cell(PREFIX, 2), number)
    x = float(points[0, 0] + 5 / 8 * np.ptp(points[:, 0]))  # nine snapshots, equally far apart
    y = float(np.interp(x, points[:, 0], points[:, 1]))
    page.mouse.move(x, y + 3)
    page.wait_for_timeout(100)
    layer, head = series[number].head
    cursor = page.evaluate("(({model, at, head}) => ({model, at, head}))(ICL.current())")
    assert cursor == {"model": 2, "at": 5, "head": [layer, head]}
    lit = page.evaluate(
        """() => [...ICL.panels].filter((p) => p.drawn && p.heads.size && p.bare).map((p) => [
          p.model, p.graph.querySelectorAll('.lit .line').length,
          getComputedStyle(p.graph.querySelector('.head:not(.lit) .line')).opacity])"""
    )
    assert all((count, opacity) == ((1, "0.18") if model == 2 else (0, "1")) for model, count, opacity in lit)
    assert sum(model == 2 for model, _, _ in lit) >= 3
    tip = page.locator(".tip").inner_text()
    assert f"head {layer}.{head}" in tip
    assert f"{series[number].y[5]:.3f}" in tip
    # the moment in every row of the column, and in the other columns, whose snapshots are at the same tokens
    shown = page.evaluate(
        """() => [...ICL.panels].filter((p) => p.near && p.bare && p.spec.over_training)
          .map((p) => p.marks.cursor && !p.marks.cursor.hidden && p.marks.cursor.getBoundingClientRect().left
            - p.plot.getBoundingClientRect().left)"""
    )
    own = x - page.evaluate(f"document.querySelector('{cell(PREFIX, 2)}').getBoundingClientRect().left")
    assert len(shown) > 10
    np.testing.assert_allclose(shown, own, atol=1.5)
    readout = page.locator(f"{cell(PREFIX, 2)} .readout").inner_text()
    assert readout == f"{layer}.{head}: {series[number].y[5]:.3f}"
    assert page.locator(".column-head .when").all_inner_texts() == ["step 50 · 102k tokens"] * 3
    page.mouse.move(5, 5)
    page.wait_for_timeout(100)
    assert page.evaluate("ICL.current()") is None
    assert page.locator(".tip").is_hidden()
    assert page.locator(".lit").count() == 0


def test_heatmaps_read_out_their_value(file: Path, table: dict[str, list[Panel]], browser_page: OpenPage) -> None:
    page = browser_page(file)
    scroll_to(page, cell(2, 1))
    box = page.locator(cell(2, 1)).bounding_box()
    page.mouse.move(box["x"] + 120, box["y"] + 60)
    page.wait_for_timeout(100)
    at, position = page.evaluate("[ICL.current().at, ICL.current().position]")
    heatmap = table["two_layer"][2].heatmap
    assert heatmap is not None
    value = heatmap.z[list(heatmap.y).index(position), at]
    assert page.locator(f"{cell(2, 1)} .readout").inner_text() == f"position {position:.0f}: {value:.3f}"
    inner = (120 - 40) / (box["width"] - 50)  # the plot's part of the panel: margins of 40 and 10
    assert at == round(inner * 8)


def test_heatmaps_are_painted_where_their_numbers_are(
    file: Path, table: dict[str, list[Panel]], browser_page: OpenPage
) -> None:
    page = browser_page(file)
    scroll_to(page, cell(2, 1))
    picture = imread(BytesIO(page.locator(cell(2, 1)).screenshot()))[..., :3]
    heatmap = table["two_layer"][2].heatmap
    assert heatmap is not None
    height, width = picture.shape[:2]
    left, right, top, bottom = 40, width - 10, 8, height - 22  # the plot's part of the panel
    scale = to_rgba_array(SEQUENTIAL)[:, :3]
    fine = np.linspace(0, 1, 500)
    colours = np.stack([np.interp(fine, np.linspace(0, 1, len(scale)), channel) for channel in scale.T], axis=1)
    # near both edges of a snapshot's cell, which reaches half way to the next
    for snapshot, aside, row in product(range(1, 8), (-0.42, 0.42), (3, 10, 20, 28)):
        x = left + (snapshot + aside) / 8 * (right - left)
        y = bottom - row / (len(heatmap.y) - 1) * (bottom - top)
        part = fine[np.abs(colours - picture[round(y), round(x)]).sum(-1).argmin()]
        value = heatmap.low + part * (heatmap.high - heatmap.low)
        expected = np.clip(heatmap.z[row, snapshot], heatmap.low, heatmap.high)
        assert abs(value - expected) < 0.01 * (heatmap.high - heatmap.low), (snapshot, aside, row)


def test_a_click_opens_the_sheet_and_escape_closes_it(file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file)
    scroll_to(page, cell(PREFIX, 1))
    x, y = vertices(page, cell(PREFIX, 1), 0)[-1]
    page.mouse.click(x - 1, y)
    page.evaluate("ICL.settled()")
    title = page.locator("dialog h2").inner_text()
    assert re.fullmatch(r"Head \d\.\d of two_layer", title)
    charts = page.locator("dialog .panel .title").all_inner_texts()
    assert charts[:3] == ["From what it attends to and writes", "OV copying eigenvalues", "QK trace"]
    assert "In-context-learning score" in charts
    assert page.locator("dialog table.composition").count() == 1
    page.get_by_role("button", name="next head").click()
    page.evaluate("ICL.settled()")
    assert page.locator("dialog h2").inner_text() != title
    page.keyboard.press("Escape")
    assert page.locator("dialog").is_hidden()


def test_a_finger_shows_then_opens(file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file, has_touch=True)
    scroll_to(page, cell(PREFIX, 1))
    x, y = vertices(page, cell(PREFIX, 1), 0)[-1]
    for opened in (False, True):
        page.touchscreen.tap(x - 1, y)
        page.evaluate("ICL.settled()")
        assert page.locator(".lit").count() > 0 or opened
        assert page.locator("dialog[open]").count() == int(opened)


def test_composition_of_a_middle_head(file: Path, study: Study, browser_page: OpenPage) -> None:
    page = browser_page(file)
    page.evaluate("ICL.openHead('three_layer', [1, 0])")
    page.evaluate("ICL.settled()")
    rows = page.locator("dialog .composition tbody tr").all_inner_texts()
    heads = study.models["three_layer"].heads.isel(snapshot=-1)
    at = {"writer_layer": 0, "writer_head": 1, "layer": 1, "head": 0}
    expected = [f"{float(heads[f'composition_{name}'].isel(at)):.3f}" for name in "qkv"]
    assert rows[1].split() == ["0.1", *expected]
    assert len(rows) == 4  # two earlier heads, two later ones


def test_keys_reach_everything(file: Path, study: Study, browser_page: OpenPage) -> None:
    page = browser_page(file)
    scroll_to(page, cell(PREFIX, 1))
    page.keyboard.press("Tab")
    page.locator(cell(PREFIX, 1)).focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    assert page.evaluate("ICL.current().at") == 9 - 1 - 3
    page.keyboard.press("ArrowUp")
    assert page.evaluate("ICL.current().head") == [0, 0]
    page.keyboard.press("ArrowUp")
    assert page.evaluate("ICL.current().head") == [0, 1]
    page.keyboard.press("Home")
    assert page.evaluate("ICL.current().at") == 0
    said = page.locator(".unseen[aria-live]").text_content()
    assert "head 0.1" in said
    assert "step 0" in said
    page.keyboard.press("Enter")
    page.evaluate("ICL.settled()")
    assert page.locator("dialog h2").inner_text() == "Head 0.1 of two_layer"
    assert page.evaluate("document.activeElement.ariaLabel") == "Close"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.ariaLabel") == "Prefix-matching score, each head, two_layer"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    # every plot that shows something is a stop of the Tab key and has a name
    stops = page.evaluate("Array.from(document.querySelectorAll('.plot[tabindex=\"0\"]'), (p) => p.ariaLabel)")
    assert len(stops) == page.evaluate("ICL.panels.size")
    assert all(stops)


def test_switches_are_kept_in_the_address(file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file, color_scheme="light")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("input[name=theme][value=dark]").check(force=True)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert light == "rgb(255, 255, 255)"
    assert dark != light
    page.locator("input[name=axis][value=log]").check(force=True)
    page.locator("input[name=colour][value=type]").check(force=True)
    assert page.evaluate("location.hash") == "#axis=log&colour=type&theme=dark"
    page.reload()
    page.evaluate("ICL.ready")
    scroll_to(page, cell(1, 0))
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    assert page.locator("input[name=axis][value=log]").is_checked()
    assert page.evaluate("[...ICL.panels].find((p) => p.drawn && p.spec.over_training).x.log") is True
    page.evaluate("location.hash = 'axis=nonsense&theme=auto'")
    page.wait_for_timeout(50)
    assert page.evaluate("[ICL.state.axis, ICL.state.theme]") == ["log", "auto"]
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == light
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


def test_heads_are_coloured_as_chosen(file: Path, study: Study, browser_page: OpenPage) -> None:
    page = browser_page(file, height=1600)
    scroll_to(page, cell(PREFIX + 1, 1))
    stroke = "getComputedStyle(document.querySelector('{} .head .line')).stroke"
    seen = {}
    for choice in ("paper", "depth", "type"):
        page.locator(f"input[name=colour][value={choice}]").check(force=True)
        seen[choice] = [page.evaluate(stroke.format(cell(row, 1))) for row in (PREFIX, BEFORE_AFTER)]
    assert seen["depth"][0] == seen["depth"][1]
    assert seen["type"][0] == seen["type"][1]
    assert seen["depth"][0] != seen["type"][0]
    assert seen["paper"] == [seen["depth"][0], seen["type"][1]]


def test_names_stay_text(study: Study, browser_page: OpenPage, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)> {{script}}"
    models = {name: replace(model, corpus=evil) for name, model in study.models.items()}
    bad = replace(study, title=evil, models=models)
    panels = [
        [replace(panel, caption=evil, y_label=evil, x_label=evil) for panel in group] for _, group in family_panels(bad)
    ]
    file = write_page(bad, table_panels(bad), ROWS, [(evil, group) for group in panels], tmp_path / "evil.html")
    page = browser_page(file)
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    assert page.title() == evil
    assert page.locator("h1").text_content() == evil
    assert page.locator(".head tbody tr").first.locator("td").nth(5).text_content() == evil
    scroll_to(page, "#family .plot")
    assert page.locator("#family h3").first.text_content() == evil
    assert "alert(1)" in page.locator("#family .plot .xtitle").first.text_content()
    assert page.locator("main img, main script").count() == 0
    assert page.locator(".note li").first.text_content() == "two_layer, step 10: truncated: <i>step 10</i>"


OVERLAPS = """(selector) => {
  const boxes = Array.from(document.querySelectorAll(selector), (e) => [e.textContent, e.getBoundingClientRect()])
    .filter(([, b]) => b.width && b.height);
  return boxes.flatMap(([a, p], i) => boxes.slice(i + 1)
    .filter(([, q]) => p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 1 && q.top < p.bottom - 1)
    .map(([b]) => `${a} / ${b}`));
}"""


def test_narrow_windows(file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file, width=1024, height=800)
    for width in (1024, 760, 320):
        page.set_viewport_size({"width": width, "height": 800})
        scroll_to(page, cell(1, 0))
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for selector in (".head > *", ".bar button, .bar legend, .bar label", "main > *", ".row:nth-child(2) > *"):
            if selector != "main > *" or width < 820:  # in wider windows the bar sticks above what it scrolls over
                assert page.evaluate(OVERLAPS, selector) == []
        assert page.evaluate(OVERLAPS, f"{cell(1, 0)} .xtick") == []
        page.evaluate("ICL.openHead('two_layer', [0, 0])")
        page.evaluate("ICL.settled()")
        dialog = "document.querySelector('dialog')"
        assert page.evaluate(f"{dialog}.scrollWidth <= {dialog}.clientWidth")
        page.keyboard.press("Escape")


def test_six_columns_fit_a_wide_window(
    made_study: Callable[..., Study], browser_page: OpenPage, tmp_path: Path
) -> None:
    study = made_study((1, 2, 3, 1, 2, 3))
    page = browser_page(write_page(study, table_panels(study), ROWS, [], tmp_path / "six.html"))
    assert page.evaluate(
        "document.querySelector('.scroll').scrollWidth <= document.querySelector('.scroll').clientWidth"
    )
    # column heads stay in sight, and go along when a smaller window is scrolled sideways
    page.set_viewport_size({"width": 1000, "height": 800})
    scroll_to(page, cell(6, 1))
    page.evaluate("document.querySelector('.scroll').scrollLeft = 200")
    page.wait_for_timeout(100)
    head, body = (
        page.evaluate(f"document.querySelector('{selector}').getBoundingClientRect().left")
        for selector in (".group-head ~ .column-head:nth-child(5)", ".row:nth-child(7) .cell:nth-child(4)")
    )
    assert head == body
    top = page.evaluate("document.querySelector('.strip').getBoundingClientRect().top")
    assert 0 <= top < 120


def test_phase_change_band_and_verdict(
    file: Path, study: Study, table: dict[str, list[Panel]], browser_page: OpenPage
) -> None:
    page = browser_page(file)
    verdicts = page.locator(".column-head .verdict").all_inner_texts()
    assert [bool(model.interval) for model in study.models.values()] == ["–" in verdict for verdict in verdicts]
    assert verdicts[0] == "no phase change"
    scroll_to(page, cell(1, 1))
    band = page.locator(f"{cell(1, 1)} .band").bounding_box()
    plot = page.locator(cell(1, 1)).bounding_box()
    expected = table["two_layer"][1].band
    last = study.models["two_layer"].losses["tokens"].values[-1]
    assert expected is not None
    inner = plot["width"] - 50
    assert band["x"] - plot["x"] == pytest.approx(40 + expected[0] / last * inner, abs=1)
    assert band["width"] == pytest.approx((expected[1] - expected[0]) / last * inner, abs=1)
    assert page.locator(f"{cell(1, 0)} .band").is_hidden()


def test_the_file_asks_for_nothing_and_is_the_same_twice(
    file: Path, study: Study, table: dict[str, list[Panel]], tmp_path: Path
) -> None:
    text = file.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "unsafe-inline" not in policy[1].split("script-src")[1].split(";")[0]
    assert "connect-src" not in policy[1]  # falls back to none
    again = write_page(study, table, ROWS, family_panels(study), tmp_path / "again.html")
    assert again.read_bytes() == file.read_bytes()


def test_a_study_with_little_in_it(study: Study, browser_page: OpenPage, tmp_path: Path) -> None:
    name, model = next(iter(study.models.items()))
    bare = replace(
        study,
        models={name: replace(model, ablations={}, left_out={}, texts={})},
        groups=(replace(study.groups[0], models=(name,), pca=None),),
        claims=(),
    )
    page = browser_page(write_page(bare, table_panels(bare), ROWS, [], tmp_path / "bare.html"))
    assert page.locator("#claims, #family, .note").count() == 0
    assert page.locator(".absent").first.inner_text().startswith("N/A")
    page.evaluate(f"ICL.openHead('{name}', [0, 0])")
    page.evaluate("ICL.settled()")
    facts = page.locator("dialog .facts dt").all_inner_texts()
    assert facts == ["prefix matching", "copying", "previous token", "QK trace", "OV copying eigenvalues"]
    assert page.locator("dialog h3").all_inner_texts() == ["Scores over training"]
    assert page.locator("dialog .absent").inner_text() == "N/A: not defined for this head"  # the QK trace of layer 0


def test_panels_of_any_kind_without_a_model(browser_page: OpenPage, tmp_path: Path) -> None:
    """A report of runs that have no column: nothing of a panel asks for a model, tokens or positions."""
    seen = np.array([0.0, 1e6, 1.6e7, 2e7])
    matrix = np.array([[0.1, 0.9, 0.5], [np.nan, 0.2, 0.7]])
    lines = Panel("curves", "lines", "Curves", "", "sequences seen", "accuracy", over_training=True, band=(1e6, 1.6e7))
    lines = replace(lines, series=(Series("right", seen, seen / 2e7), Series("wrong", seen, 1 - seen / 2e7)))
    heatmap = Heatmap(np.arange(3.0), np.arange(2.0), matrix, "sequential", 0, 1, "share")
    wiring = Panel("wiring", "heatmap", "Wiring", "", "from head", "to head", heatmap=heatmap)
    times = Panel("times", "points", "Times", "", "run", "sequences until learned", log_y=True)
    named = Series("learned", np.array([1.0, 2]), np.array([300.0, 9000]), names=("seed 7", "seed 8"), head=(0, 1))
    paths = Panel("paths", "path", "Paths", "", "x", "y", series=(Series("run", seen, seen**2),))
    panels = [lines, wiring, replace(times, series=(named,)), paths]
    page = browser_page(write_page(Study("Runs", {}, ()), {}, [], [("All", panels)], tmp_path / "runs.html"))
    assert page.locator("#table, #token-losses, #attention, #definitions").count() == 0
    tip, at = page.locator(".tip"), "#family .figures > :nth-child({}) .plot"
    for number in range(1, 5):
        scroll_to(page, at.format(number))
        page.locator(at.format(number)).hover()
        edge = page.locator(at.format(number)).bounding_box()
        labels = [tick.bounding_box() for tick in page.locator(f"{at.format(number)} .xtick").all()]
        assert labels[-1]["x"] + labels[-1]["width"] <= edge["x"] + edge["width"]
    scroll_to(page, at.format(1))
    x, y = vertices(page, at.format(1), 1)[2]
    page.mouse.move(x, y)
    page.wait_for_timeout(100)
    assert tip.inner_text().split("\n") == ["wrong", "sequences seen", "16M", "accuracy", "0.200"]
    assert page.locator(f"{at.format(1)} .band").is_visible()
    assert page.locator(f"{at.format(2)} .ytick").all_text_contents() == ["0", "1"]
    # the middle cell of the upper row, near its left edge; a cell without a value is not painted
    scroll_to(page, at.format(2))
    box = page.locator(at.format(2)).bounding_box()
    left, wide, high = box["x"] + 52, box["width"] - 62, 260 - 48
    page.mouse.move(left + wide * 0.35, box["y"] + 8 + high * 0.25)
    page.wait_for_timeout(100)
    assert tip.inner_text().split("\n") == ["from head", "1", "to head", "1", "share", "0.200"]
    opacity = page.evaluate(
        """([selector, parts]) => {
          const canvas = document.querySelector(`${selector} canvas`);
          const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          const at = ([x, y]) => Math.floor(y * canvas.height) * canvas.width + Math.floor(x * canvas.width);
          return parts.map((part) => data[4 * at(part) + 3]);
        }""",
        [at.format(2), [[0.01, 0.01], [0.32, 0.49], [0.34, 0.01], [0.01, 0.51]]],
    )
    assert opacity == [0, 0, 255, 255]
    scroll_to(page, at.format(3))
    point = page.locator(f"{at.format(3)} .point").nth(1).bounding_box()
    page.mouse.move(point["x"] + 4, point["y"] + 4)
    page.wait_for_timeout(100)
    assert tip.inner_text().split("\n") == ["seed 8", "run", "2.000", "sequences until learned", "9k"]
    page.mouse.click(point["x"] + 4, point["y"] + 4)  # a head of no model of the page has no sheet
    assert page.locator("dialog").count() == 0


def test_bad_input(study: Study, table: dict[str, list[Panel]], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="table: must have 9 panels for each of one_layer, two_layer, three_layer"):
        write_page(study, {"one_layer": table["one_layer"]}, ROWS, [], tmp_path / "page.html")
    with pytest.raises(InputError, match="is the key of two"):
        write_page(study, table, ROWS, [("again", table["one_layer"])], tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
