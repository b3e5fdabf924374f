"""Texts on the report page, in a real browser: what is shown equals the arrays, by pointer and by keyboard."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from icl_fast.report.page.write import write_page
from icl_fast.report.panels.texts import compared
from icl_fast.report.study import Study

MakeStudy = Callable[..., Study]
OpenPage = Callable[..., Any]
TEXTS = (("first", "passage"), ("again", "repeated"), ("lines", "template"))
LENGTH = 12


@pytest.fixture(scope="module")
def study(made_study: MakeStudy) -> Study:
    return made_study(texts=TEXTS, length=LENGTH)


@pytest.fixture(scope="module")
def file(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(study, tmp_path_factory.mktemp("texts") / "page.html")


def write(study: Study, path: Path) -> Path:
    return write_page(study, {name: [] for name in study.models}, [], [], path)


def signed(value: float) -> str:
    text = f"{abs(value):.2f}"
    return text if float(text) == 0 else ("−" if value < 0 else "+") + text


def percent(value: float) -> str:
    return "<\u202f0.5%" if round(value * 100) == 0 else f"{round(value * 100)}%"


def ends(study: Study, name: str, text: str) -> tuple[np.ndarray, np.ndarray]:
    model = study.models[name]
    before, after = compared(model.losses["snapshot"].values, model.interval)
    losses = model.texts[text]["loss"].values.astype(np.float64)
    return losses[before], losses[after]


def best_head(study: Study, name: str) -> tuple[int, int]:
    scores = study.models[name].heads["prefix_matching"].isel(snapshot=-1).values
    layer, head = np.unravel_index(scores.argmax(), scores.shape)
    return int(layer), int(head)


def texts_of(study: Study, name: str, text: str, step: int | None = None) -> xr.Dataset:
    """At the last snapshot, or at another."""
    read = study.models[name].texts[text]
    return read.isel(viewed=-1) if step is None else read.sel(viewed=step)


def end_of_change(study: Study, name: str) -> int:
    model = study.models[name]
    steps = model.losses["snapshot"].values
    return int(steps[compared(steps, model.interval)[1]])


def vertices(line: Any) -> np.ndarray:
    """The points of a line that is drawn, [point, (x, y)] in px."""
    points = line.get_attribute("d").removeprefix("M").split("L")
    return np.array([[float(number) for number in point.split(",")] for point in points])


def test_passage_values_by_keyboard(study: Study, file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file)
    passage = page.locator("#token-losses")
    assert passage.locator("select").nth(0).input_value() == "two_layer"
    before, after = ends(study, "two_layer", "first")
    layer, head = best_head(study, "two_layer")
    assert passage.locator("select").nth(2).input_value() == f"{layer}.{head}"
    text = texts_of(study, "two_layer", "first", end_of_change(study, "two_layer"))
    pattern = text["pattern"].values[2 * layer + head]
    tokens = passage.locator(".texts-token")
    assert tokens.count() == LENGTH + 1
    passage.locator(".texts-token[tabindex='0']").focus()
    page.keyboard.press("Home")
    assert "does not predict" in passage.locator(".texts-readout").inner_text()
    for p in range(LENGTH):
        page.keyboard.press("ArrowRight")
        assert page.evaluate("Number(document.activeElement.dataset.s)") == p + 1
        shown = [passage.locator(f".texts-{name} dd").inner_text() for name in ("before", "now", "change")]
        assert shown == [f"{before[p]:.2f}", f"{after[p]:.2f}", signed(after[p] - before[p])]
        attended = {j for j in range(p + 1) if round(float(pattern[p, j]) * 100) >= 1}
        marked = passage.locator(".texts-strip .texts-source").evaluate_all(
            "all => all.map((one) => Number(one.dataset.s))"
        )
        assert set(marked) == attended
        most = sorted((round(float(pattern[p, j]) * 100) for j in attended), reverse=True)[:4]
        assert passage.locator(".texts-share").all_inner_texts() == [f"{part}%" for part in most]
        better = "texts-better" in tokens.nth(p + 1).get_attribute("class")
        assert better == (after[p] < before[p])
        strength = float(tokens.nth(p + 1).evaluate("one => one.style.getPropertyValue('--strength')"))
        assert strength == pytest.approx(min(1, abs(after[p] - before[p]) / 3), abs=6e-4)
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("Number(document.activeElement.dataset.s)") == LENGTH
    assert passage.locator(".texts-strip [tabindex='0']").count() == 1


def test_arrows_up_and_down_change_the_line(file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file)
    tokens = page.locator("#token-losses .texts-token")
    top = lambda s: tokens.nth(s).evaluate("one => one.getClientRects()[0].top")  # noqa: E731
    tokens.nth(2).focus()
    page.keyboard.press("ArrowDown")
    below = page.evaluate("Number(document.activeElement.dataset.s)")
    assert top(below) - top(2) > 20
    page.keyboard.press("ArrowUp")
    assert page.evaluate("Number(document.activeElement.dataset.s)") in (0, 1, 2, 3)


def test_another_head_text_and_model(study: Study, file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file)
    passage = page.locator("#token-losses")
    passage.locator("select").nth(1).select_option(label="A repeated")
    page.evaluate("ICL.settled()")
    passage.locator("select").nth(0).select_option("one_layer")
    page.evaluate("ICL.settled()")
    passage.locator("select").nth(2).select_option("0.1")
    page.evaluate("ICL.settled()")
    assert passage.locator("select").nth(1).locator("option:checked").inner_text() == "A repeated"
    note = passage.locator(".texts-compared").inner_text()
    assert "one_layer had no phase change" in note
    assert "step 10 " in note  # the first trained snapshot of steps 0, 10, ...
    before, after = ends(study, "one_layer", "again")
    passage.locator(".texts-token").nth(5).hover()
    assert passage.locator(".texts-change dd").inner_text() == signed(after[4] - before[4])
    row = texts_of(study, "one_layer", "again")["pattern"].values[1, 4, :5]
    assert passage.locator(".texts-share").first.inner_text() == percent(float(row.max()))
    assert passage.locator(".texts-chart .band").is_hidden()


def test_lines_are_pinned_and_unpinned(study: Study, file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file)
    passage = page.locator("#token-losses")
    pins, lines = passage.locator(".texts-pins .texts-unpin"), passage.locator(".texts-chart .line")
    assert passage.locator(".texts-chart .band").is_visible()
    change = np.subtract(*ends(study, "two_layer", "first")[::-1])
    assert passage.locator("[aria-selected=true]").evaluate_all(
        "all => all.map((one) => Number(one.dataset.s))"
    ) == sorted([int(change.argmin()) + 1, int(change.argmax()) + 1])
    while pins.count():
        pins.first.click()
    token = passage.locator(".texts-token").nth(2)
    token.click()
    assert token.get_attribute("aria-selected") == "true"
    assert pins.count() == lines.count() == 1
    losses = texts_of(study, "two_layer", "first")["loss"].values[:, 1]
    chart = passage.locator(".texts-chart")
    width = chart.bounding_box()["width"]
    for x, value in ((1, losses[0]), (width - 1, losses[-1])):
        chart.hover(position={"x": x, "y": 50})
        assert f"{value:.2f} nats" in passage.locator(".texts-chart-said").inner_text()
    points = vertices(lines.first)
    assert len(points) == len(losses)
    heights = points[:, 1]
    assert np.corrcoef(heights, losses)[0, 1] == pytest.approx(-1, abs=1e-3)
    passage.locator(".texts-token").nth(4).focus()
    page.keyboard.press("Enter")
    assert pins.count() == 2
    page.keyboard.press("Enter")
    assert pins.count() == 1
    for s in range(1, LENGTH + 1):  # more than there are colours: the oldest make room
        if passage.locator(".texts-token").nth(s).get_attribute("aria-selected") == "false":
            passage.locator(".texts-token").nth(s).focus()
            page.keyboard.press("Space")
    assert pins.count() == 8
    assert len(set(passage.locator(".texts-swatch").evaluate_all("all => all.map((one) => one.className)"))) == 8


def test_the_chart_follows_the_axis_of_the_page(study: Study, file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file)
    line = page.locator("#token-losses .texts-chart .line").first
    count = len(study.models["two_layer"].losses["snapshot"])
    assert len(vertices(line)) == count
    page.locator("input[name=axis][value=log]").check()
    assert len(vertices(line)) == count - 1  # a logarithmic axis has no place for 0 tokens


def test_lists_of_what_changed_most(study: Study, file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file)
    passage = page.locator("#token-losses")
    change = np.subtract(*ends(study, "two_layer", "first")[::-1])
    worse = sorted((value for value in change if value > 0), reverse=True)[:10]
    better = sorted(value for value in change if value < 0)[:10]
    for name, values in (("improved", better), ("worsened", worse)):
        assert passage.locator(f".texts-{name} .texts-number").all_inner_texts() == [signed(value) for value in values]
    passage.locator(".texts-worsened button").nth(1).click()
    assert page.evaluate("Number(document.activeElement.dataset.s)") == int(np.argsort(-change)[1]) + 1
    assert passage.locator(".texts-change dd").inner_text() == signed(worse[1])


def test_tokens_stay_text(study: Study, file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file)
    pieces = texts_of(study, "two_layer", "first")["target"].values.tolist()
    for section in ("#token-losses", "#attention"):
        tokens = page.locator(f"{section} .texts-token").all_text_contents()[1:]
        for token, piece in zip(tokens, pieces, strict=True):
            assert token.replace("⏎", "").replace("→", "\t") == piece
        assert page.locator(f"{section} script, {section} style").count() == 0
    assert any("<script>" in piece for piece in pieces)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_coloured_tokens_can_be_read(file: Path, browser_page: OpenPage, scheme: str) -> None:
    page = browser_page(file, color_scheme=scheme)
    colours = page.locator("#token-losses .texts-strip .texts-token:not(.texts-start)").evaluate_all(
        """all => all.map((one) => [getComputedStyle(one).color, getComputedStyle(one).backgroundColor,
             getComputedStyle(document.body).backgroundColor])"""
    )

    def channels(css: str) -> tuple[np.ndarray, float]:
        numbers = [float(part) for part in css[css.index("(") + 1 : -1].replace("/", " ").replace(",", " ").split()]
        return np.array(numbers[:3]), numbers[3] if len(numbers) > 3 else 1.0

    def luminance(rgb: np.ndarray) -> float:
        linear = np.where(rgb <= 10.3, rgb / 3294.6, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for text, token, body in colours:
        over, part = channels(token)
        ground = over * part + channels(body)[0] * (1 - part)
        high, low = sorted((luminance(channels(text)[0]), luminance(ground)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5
    assert len({token for _, token, _ in colours}) > 3


# ---- heads ----


def rows(section: Any) -> list[list[str]]:
    return section.locator(".texts-readout tbody tr").evaluate_all(
        "all => all.map((row) => [...row.cells].map((cell) => cell.textContent))"
    )


def number(cell: str) -> int:
    return 0 if cell == "start of the text" else int(cell.rsplit(" token ", 1)[1])


def test_heads_focus_on_hover_and_lock_on_click(study: Study, file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file)
    section = page.locator("#attention")
    model = study.models["two_layer"]
    heads = section.locator(".texts-head")
    assert heads.count() == 4
    last = model.heads.isel(snapshot=-1)
    for index, (layer, head) in enumerate((layer, head) for layer in range(2) for head in range(2)):
        said = heads.nth(index).inner_text().split()
        assert said[:2] == ["head", f"{layer}.{head}"]
        for name, of in (("prefix", "prefix_matching"), ("copying", "copying")):
            value = float(last[of].values[layer, head])
            assert said[said.index(name) + 1] == f"{value:.2f}".replace("-", "−")
    locked = "{}.{}".format(*best_head(study, "two_layer"))
    other = next(name for name in ("0.0", "1.1") if name != locked)
    which = section.locator(".texts-which")
    assert f"head {locked}" in which.inner_text()
    section.locator(f"[data-texts-head='{other}']").hover()
    assert f"head {other}" in which.inner_text()
    assert "click to lock" in which.inner_text()
    section.locator(".texts-strip").hover()
    assert f"head {locked}" in which.inner_text()
    section.locator(f"[data-texts-head='{other}']").focus()
    page.keyboard.press("Enter")
    section.locator(".texts-token").nth(1).focus()
    assert f"head {other}" in which.inner_text()
    assert section.locator("[aria-pressed=true]").evaluate_all("all => all.map((one) => one.dataset.textsHead)") == [
        other
    ]


@pytest.mark.parametrize("what", ["attention", "logits"])
@pytest.mark.parametrize("side", ["destination", "source"])
def test_head_values_by_keyboard(study: Study, file: Path, browser_page: OpenPage, what: str, side: str) -> None:
    page = browser_page(file)
    section = page.locator("#attention")
    section.locator("select").nth(1).select_option(label="A passage")
    page.evaluate("ICL.settled()")
    section.locator(f"input[value={what}]").click()
    section.locator(f"input[value={side}]").click()
    layer, head = best_head(study, "two_layer")
    text = texts_of(study, "two_layer", "first")
    pattern, logits = (text[name].values[2 * layer + head].astype(np.float64) for name in ("pattern", "logits"))
    shown = (pattern if what == "attention" else logits).round(2)
    largest = np.abs(study.models["two_layer"].texts["first"]["logits"].values).max()  # of all snapshots
    full = 1.0 if what == "attention" else float(largest.round(2))
    section.locator(".texts-token").first.focus()
    for s in range(LENGTH + 1):
        if side == "destination":
            pairs = {j: (s - 1, j) for j in range(s)}
        else:
            pairs = {i + 1: (i, s) for i in range(s, LENGTH)}
        for token, attention, logit in rows(section):
            i, j = pairs[number(token)]
            assert [attention, logit] == [percent(pattern[i, j]), signed(logits[i, j])]
        listed = {number(token) for token, _, _ in rows(section)}
        most = sorted((abs(shown[pair]) for pair in pairs.values() if shown[pair]), reverse=True)[:5]
        assert sorted((abs(shown[pairs[k]]) for k in listed), reverse=True) == most
        if side == "destination" and s:
            assert section.locator(".texts-direct-value").inner_text() == signed(logits[s - 1].sum())
        strengths = section.locator(".texts-token").evaluate_all(
            "all => all.map((one) => [one.style.getPropertyValue('--strength'), one.className])"
        )
        for k, (strength, names) in enumerate(strengths):
            value = float(shown[pairs[k]]) if k in pairs else 0.0
            assert float(strength or 0) == pytest.approx(math.sqrt(min(1, abs(value) / full)), abs=1e-3)
            if value:
                assert ("attend" if what == "attention" else "better" if value > 0 else "worse") in names
        page.keyboard.press("ArrowRight")


def test_a_token_is_locked_and_unlocked(file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file)
    section = page.locator("#attention")
    token = section.locator(".texts-token").nth(6)
    token.click()
    section.locator("h2").hover()
    page.evaluate("document.activeElement.blur()")
    assert "token 6" in section.locator(".texts-readout h3").inner_text()
    section.locator(".texts-token").nth(3).hover()
    assert "token 3" in section.locator(".texts-readout h3").inner_text()
    token.focus()
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    section.locator("h2").hover()
    assert "No token selected" in section.locator(".texts-readout").inner_text()


def test_the_picture_is_the_lower_triangle(study: Study, file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file)
    section = page.locator("#attention")
    section.locator("select").nth(1).select_option(label="A passage")
    page.evaluate("ICL.settled()")
    layer, head = best_head(study, "two_layer")
    pattern = texts_of(study, "two_layer", "first")["pattern"].values[2 * layer + head].astype(np.float64).round(2)
    opacity = section.locator("canvas.texts-pattern").evaluate(
        """(canvas, n) => {
          const size = canvas.width, all = canvas.getContext("2d").getImageData(0, 0, size, size).data;
          const at = (k) => Math.floor(((k + 0.5) * size) / n), numbers = [...Array(n).keys()];
          return numbers.map((i) => numbers.map((j) => all[4 * (at(i) * size + at(j)) + 3]));
        }""",
        LENGTH,
    )
    np.testing.assert_allclose(np.array(opacity), 255 * np.sqrt(pattern), atol=0.51)
    picture = section.locator("canvas.texts-pattern")
    size = picture.bounding_box()["width"] / LENGTH
    i, j = max(((i, j) for i in range(LENGTH) for j in range(i)), key=lambda pair: pattern[pair])
    picture.hover(position={"x": (j + 0.5) * size, "y": (i + 0.5) * size})
    assert f"token {i + 1}" in section.locator(".texts-readout h3").inner_text()
    token, attention, _ = section.locator(".texts-pointed").evaluate(
        "row => [...row.cells].map((cell) => cell.textContent)"
    )
    assert (number(token), attention) == (j, percent(pattern[i, j]))


def test_only_labels_are_predicted(study: Study, file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file)
    section = page.locator("#attention")
    switch = section.locator("input[type=checkbox]")
    assert not switch.is_visible()
    section.locator("select").nth(1).select_option(label="A template")
    page.evaluate("ICL.settled()")
    assert switch.is_checked()
    pattern = texts_of(study, "two_layer", "lines")["pattern"].values.astype(np.float64).reshape(2, 2, LENGTH, LENGTH)
    right = (pattern[..., 8, 3] + pattern[..., 11, 3] + pattern[..., 11, 9]) / 2
    wrong = (pattern[..., 8, 6] + pattern[..., 11, 6]) / 2
    layer, head = best_head(study, "two_layer")
    said = section.locator(".texts-labels").inner_text()
    assert f"pays {percent(right[layer, head])} of its attention to earlier labels of the right pattern" in said
    assert f"and {percent(wrong[layer, head])} to labels of other patterns" in said
    assert f"{percent(right[layer, head] / (right + wrong)[layer, head])} of what it pays to labels" in said
    assert "blind to the pattern would have 58%" in said
    section.locator(".texts-token").nth(4).focus()  # the line's label is token 6
    assert "token 6" in section.locator(".texts-readout h3").inner_text()
    switch.click()
    section.locator(".texts-token").nth(4).focus()
    assert "token 4" in section.locator(".texts-readout h3").inner_text()


def test_view_of_one_head(study: Study, file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file)
    page.evaluate(
        "() => { const box = document.createElement('div'); box.id = 'one'; document.body.prepend(box);"
        " ICL.headView(box, 'one_layer', [0, 1]); }"
    )
    view = page.locator("#one")
    assert view.locator(".texts-head").count() == 0
    assert "one_layer, head 0.1" in view.locator(".texts-which").inner_text()
    view.locator("select").select_option(label="A passage")
    page.evaluate("ICL.settled()")
    view.locator(".texts-token").nth(7).focus()
    pattern, logits = (texts_of(study, "one_layer", "first")[name].values[1, 6] for name in ("pattern", "logits"))
    for token, attention, logit in rows(view):
        j = number(token)
        assert [attention, logit] == [percent(float(pattern[j])), signed(float(logits[j]))]


def test_escape_unlocks_and_then_closes_the_sheet(file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file)
    page.evaluate("ICL.openHead('two_layer', [1, 0])")
    view = page.locator(".head-texts")
    view.locator(".texts-token").nth(5).click()
    assert view.locator("[aria-selected=true]").count() == 1
    page.keyboard.press("Escape")
    assert view.locator("[aria-selected=true]").count() == 0
    assert page.locator("dialog[open]").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_no_texts_and_a_text_of_one_token(made_study: MakeStudy, browser_page: OpenPage, tmp_path: Path) -> None:
    page = browser_page(write(made_study(texts=()), tmp_path / "none.html"))
    for section in ("#token-losses", "#attention"):
        assert "No text was measured" in page.locator(section).inner_text()
    page = browser_page(write(made_study(layers=(1,), texts=TEXTS[:1], length=1), tmp_path / "one.html"))
    assert page.locator("#token-losses .texts-token").count() == 2
    assert page.locator("#attention .texts-token").count() == 2
