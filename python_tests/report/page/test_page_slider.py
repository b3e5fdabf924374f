"""The slider over snapshots: token losses, attention and logit attribution follow it, and so does the address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from icl_fast.report.page.attention import attention_text
from icl_fast.report.page.write import write_page
from icl_fast.report.panels.texts import compared
from icl_fast.report.study import ModelStudy, Study

MakeStudy = Callable[..., Study]
OpenPage = Callable[..., Any]
NAME, TEXT, LENGTH = "two_layer", "first", 12


@pytest.fixture(scope="module")
def study(made_study: MakeStudy) -> Study:
    return made_study(texts=((TEXT, "passage"), ("lines", "template")), length=LENGTH)


@pytest.fixture(scope="module")
def model(study: Study) -> ModelStudy:
    return study.models[NAME]


@pytest.fixture(scope="module")
def file(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slider") / "page.html"
    return write_page(study, {name: [] for name in study.models}, [], [], path)


def viewed(model: ModelStudy) -> list[int]:
    steps: list[int] = model.texts[TEXT]["viewed"].values.tolist()
    return steps


def best_head(model: ModelStudy) -> int:
    return int(model.heads["prefix_matching"].isel(snapshot=-1).values.argmax())


def slider(section: Any) -> Any:
    return section.locator("input[type=range]")


def test_token_losses_begin_at_the_end_of_the_change_and_follow_the_arrows(
    model: ModelStudy, file: Path, browser_page: OpenPage
) -> None:
    page = browser_page(file)
    section = page.locator("#token-losses")
    text, steps = model.texts[TEXT], viewed(model)
    before, after = (int(model.losses["snapshot"][at]) for at in compared(model.losses["snapshot"], model.interval))
    assert int(slider(section).input_value()) == steps.index(after)
    assert int(slider(section).get_attribute("max")) == len(steps) - 1
    slider(section).focus()
    page.keyboard.press("Home")
    for index, step in enumerate(steps):
        page.evaluate("ICL.settled()")
        assert slider(section).input_value() == str(index)
        assert f"step {step} " in section.locator("output").inner_text()
        assert f"step={step}" in page.evaluate("location.hash")
        section.locator(".texts-token").nth(6).hover()
        change = float(text["loss"].sel(snapshot=step)[5] - text["loss"].sel(snapshot=before)[5])
        said = section.locator(".texts-change dd").inner_text().replace("−", "-")
        assert float(said) == pytest.approx(change, abs=0.00501)
        row = text["pattern"].sel(viewed=step).values[best_head(model), 5, :6]
        most = round(float(row.max()) * 100)
        assert section.locator(".texts-share").first.inner_text() == f"{most}%"
        changes = (text["loss"].sel(snapshot=step) - text["loss"].sel(snapshot=before)).values
        worse = sorted((value for value in changes if value > 0), reverse=True)
        found = section.locator(".texts-worsened .texts-number").all_inner_texts()
        assert [float(one) for one in found] == pytest.approx(worse[:10], abs=0.00501)
        slider(section).focus()
        page.keyboard.press("ArrowRight")


@pytest.mark.parametrize("what", ["attention", "logits"])
def test_pictures_and_scores_of_heads_follow_it(
    model: ModelStudy, file: Path, browser_page: OpenPage, what: str
) -> None:
    page = browser_page(file)
    section = page.locator("#attention")
    section.locator("select").nth(1).select_option(label="A passage")
    section.locator(f"input[value={what}]").click()
    text, steps = model.texts[TEXT], viewed(model)
    assert slider(section).input_value() == str(len(steps) - 1)
    largest = float(np.abs(text["logits"].values).max().round(2))
    slider(section).focus()
    page.keyboard.press("Home")
    for step in steps:
        page.evaluate("ICL.settled()")
        values = text["pattern" if what == "attention" else "logits"].sel(viewed=step).values[best_head(model)]
        part = np.abs(values.astype(np.float64).round(2)) / (1 if what == "attention" else largest)
        for canvas, size in ((".texts-pattern", None), (".texts-head.texts-shown .texts-thumb", 72)):
            opacity = section.locator(canvas).evaluate(
                """(canvas, n) => {
                  const size = canvas.width, copy = new OffscreenCanvas(size, size).getContext("2d");
                  copy.drawImage(canvas, 0, 0);
                  const all = copy.getImageData(0, 0, size, size).data;
                  const at = (k) => Math.floor(((k + 0.5) * size) / n), numbers = [...Array(n).keys()];
                  return numbers.map((i) => numbers.map((j) => all[4 * (at(i) * size + at(j)) + 3]));
                }""",
                LENGTH,
            )
            np.testing.assert_allclose(np.array(opacity), 255 * np.sqrt(part), atol=0.51, err_msg=f"{step} {size}")
        scores = model.heads.sel(snapshot=step)
        said = section.locator(".texts-head.texts-shown").inner_text().split()
        for name, variable in (("prefix", "prefix_matching"), ("copying", "copying")):
            value = scores[variable].values.ravel()[best_head(model)]
            assert said[said.index(name) + 1] == f"{value:.2f}".replace("-", "−")
        page.keyboard.press("ArrowRight")


def test_all_sliders_are_one_and_the_address_keeps_it(model: ModelStudy, file: Path, browser_page: OpenPage) -> None:
    steps = viewed(model)
    page = browser_page(file, hash=f"axis=log&step={steps[1] + 1}")  # not a snapshot: the nearest one
    for section in ("#token-losses", "#attention"):
        assert slider(page.locator(section)).input_value() == "1"
    page.evaluate(f"ICL.openHead('{NAME}', [0, 1])")
    page.evaluate("ICL.settled()")
    sheet = page.locator("dialog")
    assert slider(sheet).input_value() == "1"
    slider(sheet).fill("2")
    page.evaluate("ICL.settled()")
    assert slider(page.locator("#attention")).input_value() == "2"
    assert page.evaluate("location.hash") == f"#axis=log&colour=paper&theme=auto&step={steps[2]}"
    page.keyboard.press("Escape")
    page.reload()
    page.evaluate("ICL.ready")
    assert slider(page.locator("#token-losses")).input_value() == "2"
    page.evaluate("location.hash = 'axis=linear'")
    page.wait_for_function("document.querySelector('#attention input[type=range]').value === '3'")


def test_with_one_snapshot_there_is_nothing_to_slide(model: ModelStudy, browser_page: OpenPage, tmp_path: Path) -> None:
    path = tmp_path / "one.html"
    path.write_text(attention_text({NAME: {TEXT: model.texts[TEXT].isel(viewed=[-1])}}, [(NAME, 0)]), encoding="utf-8")
    page = browser_page(path)
    assert slider(page).is_disabled()
    assert "step 50 " in page.locator("output").inner_text()


@pytest.mark.parametrize("width", [400, 1400, 2560])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(file: Path, browser_page: OpenPage, width: int, scheme: str) -> None:
    page = browser_page(file, width=width, color_scheme=scheme)
    page.evaluate("ICL.settled()")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for section in ("#token-losses", "#attention"):
        box = page.locator(f"{section} input[type=range]").bounding_box()
        assert 100 < box["width"] <= width - box["x"]
    if width == 2560:
        assert page.locator("#token-losses").bounding_box()["width"] > 2400


def test_the_attention_view_alone_side_by_side(model: ModelStudy, browser_page: OpenPage, tmp_path: Path) -> None:
    steps = viewed(model)
    path = tmp_path / "attention.html"
    path.write_text(attention_text({NAME: model.texts}, [(NAME, steps[0]), (NAME, steps[-1])]), encoding="utf-8")
    page = browser_page(path)
    page.evaluate("ICL.settled()")
    views = page.locator(".texts-beside")
    assert [slider(views.nth(at)).input_value() for at in (0, 1)] == ["0", str(len(steps) - 1)]
    left, right = (views.nth(at).bounding_box() for at in (0, 1))
    assert left["x"] + left["width"] <= right["x"]
    for at, step in enumerate((steps[0], steps[-1])):
        view = views.nth(at)
        view.locator("select").first.select_option(label="A passage")
        view.locator("[data-texts-head='1.0']").click()
        view.locator(".texts-token").nth(8).focus()
        row = model.texts[TEXT]["pattern"].sel(viewed=step).values[2, 7, :8]
        first = view.locator(".texts-attention-value").first.inner_text()
        assert first == f"{round(float(row.max()) * 100)}%"
    slider(views.first).fill("1")
    page.evaluate("ICL.settled()")
    assert slider(views.nth(1)).input_value() == str(len(steps) - 1)
