"""What the page says of itself, in a real browser: sections, bands, errors, thresholds, where a table goes on."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from icl_fast.report.page.write import write_page
from icl_fast.report.panels.family import family_panels
from icl_fast.report.panels.panel import Panel, Series
from icl_fast.report.panels.table import ROWS, table_panels
from icl_fast.report.study import Study

OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def study(made_study: Callable[..., Study]) -> Study:
    return made_study((1, 2, 3), texts=(("first", "passage"),))


@pytest.fixture(scope="module")
def file(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    long = Panel("long", "lines", "Long ticks", "", "x", "a title", series=(
        Series("one", np.arange(3.0), np.array([-123.25, 0.0, 123.5])),
    ))  # fmt: skip
    family = [*family_panels(study), ("Long", [long])]
    return write_page(study, table_panels(study), ROWS, family, tmp_path_factory.mktemp("says") / "page.html")


def test_sections_can_be_gone_to_and_stand_below_the_bar(file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file, width=1200)  # the bar takes two lines
    names = page.locator(".bar nav button").all_inner_texts()
    assert names == [
        "Model Analysis Table", "Heads", "Further figures", "Token losses", "Attention and logit attribution", "Claims",
        "Definitions",
    ]  # fmt: skip
    page.locator(".bar nav button", has_text="Token losses").click()
    page.evaluate("ICL.settled()")
    bar, title = (page.locator(one).bounding_box() for one in (".bar", "#token-losses h2"))
    assert title["y"] >= bar["y"] + bar["height"]


def test_captions_that_promise_a_band_have_one_and_the_tip_says_it(file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file)
    rows = page.locator("#table .row")
    rows.nth(8).scroll_into_view_if_needed()
    page.wait_for_timeout(100)
    page.evaluate("ICL.settled()")
    plot = rows.nth(8).locator(".plot").nth(1)
    ribbons = plot.locator(".ribbon").evaluate_all("all => all.map((one) => getComputedStyle(one).display)")
    assert ribbons == ["inline"] * 4
    plot.locator(".head .line").first.evaluate("one => one.closest('.plot').focus()")
    page.keyboard.press("ArrowUp")
    assert "±" in page.locator(".tip").inner_text()


def test_thresholds_and_signs_are_explained_where_they_are_used(file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file)
    for place in ("#heads", "#definitions"):
        assert "out of reach of models under 512 wide" in page.locator(place).text_content()
    before, icl = (page.locator("#table .row-head .reading").nth(row).text_content() for row in (7, 8))
    assert before.startswith("Below 0")
    assert "other sign" in before
    assert icl.startswith("Above 0")


def test_points_are_points_in_the_legend(file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file)
    marks = page.locator("#family .panel.points .legend .swatch:not(.points)")
    assert page.locator("#family .panel.points .legend .swatch.points").count() > 3
    assert marks.count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_table_that_goes_on_has_a_shade_at_its_edge(file: Path, browser_page: OpenPage, scheme: str) -> None:
    page = browser_page(file, width=400, color_scheme=scheme)
    box = page.locator("#heads .wide").first
    box.evaluate("one => one.scrollIntoView({block: 'center'})")
    assert box.evaluate("one => one.scrollWidth > one.clientWidth")
    assert "gradient" in box.evaluate("one => getComputedStyle(one).backgroundImage")

    def edge() -> float:
        """How much the ground differs within 60 px of the right edge, above the text."""
        picture = np.asarray(Image.open(BytesIO(box.screenshot())).convert("RGB"), dtype=float)
        return float(np.ptp(picture[2, -60:].mean(-1)))

    assert edge() > 15
    box.evaluate("one => one.scrollTo(one.scrollWidth, 0)")
    page.wait_for_timeout(100)
    assert edge() < 3


def test_ticks_stand_beside_the_title_of_their_axis(file: Path, browser_page: OpenPage) -> None:
    page = browser_page(file)
    panel = page.locator("#family .panel", has_text="Long ticks")
    panel.scroll_into_view_if_needed()
    page.wait_for_timeout(100)
    page.evaluate("ICL.settled()")
    title = panel.locator(".ytitle").bounding_box()
    ticks = [tick.bounding_box() for tick in panel.locator(".ytick").all()]
    assert len(ticks) > 2
    assert all(tick["x"] >= title["x"] + title["width"] - 1 for tick in ticks)
