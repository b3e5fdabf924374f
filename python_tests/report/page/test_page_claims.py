"""Claims on the report page, in a real browser: what was found, counted, with the figure behind each row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from icl_fast.analysis.claims import Chart, Curve
from icl_fast.report.panels.claims import claim_panel
from icl_fast.report.study import Claim, Study
from icl_fast.report.write import write_report

OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of three claims: one over three seeds, one of points, one that could not be tested."""
    seeds = Curve("two layers", [1, 10, 100], [[0, 1, 2], [0, 2, 4], [0, 3, 6]])
    lines = Chart("Scores", "tokens seen", "nats", [seeds, Curve("one layer", [1, 10, 100], [0, 0, 1])], log_x=True)
    points = Chart("Heads", "weights", "score", [Curve("heads", [0.1, 0.5], [0.2, 0.6], "points")])
    claims = (
        Claim("It <b>changes</b>", "Figure 1", "holds", "drop 0.3", "drop > 0.2", claim_panel("a", lines, "As told.")),
        Claim("They agree", "Figure 2", "does not hold", "r 0.1", "r > 0.5", claim_panel("b", points, "As told.")),
        Claim("It scales", "Figure 3", "cannot be tested", "90 GPU-hours", "slope < 0"),
    )
    out = tmp_path_factory.mktemp("claims")
    write_report(Study("Reproduced", {}, (), claims), out)
    return out


def test_every_claim_has_its_row_and_its_figure(folder: Path, browser_page: OpenPage) -> None:
    page = browser_page(folder / "index.html")
    section = page.locator("#claims")
    assert section.locator(".how").inner_text() == "3 claims: 1 holds; 1 does not hold; 1 cannot be tested."
    rows = section.locator("tbody tr:not(.behind)")
    assert rows.nth(0).locator("th").inner_text() == "It <b>changes</b>"
    assert rows.nth(2).locator("td").all_inner_texts() == ["Figure 3", "slope < 0", "cannot be tested", "90 GPU-hours"]
    assert section.locator("button").count() == 2
    button, behind = section.locator("button").first, section.locator("tr.behind").first
    assert not behind.is_visible()
    button.click()
    assert behind.is_visible()
    assert button.get_attribute("aria-expanded") == "true"
    page.wait_for_timeout(300)
    drawn = behind.locator("figure.panel")
    assert drawn.locator(".title").inner_text() == "Scores"
    assert drawn.locator("svg path").count() >= 3  # two lines and the band of the seeds
    button.click()
    assert not behind.is_visible()
    button.click()
    assert section.locator("figure.panel").count() == 1  # made once


def test_the_keyboard_opens_a_figure(folder: Path, browser_page: OpenPage) -> None:
    page = browser_page(folder / "index.html")
    page.locator("#claims button").nth(1).focus()
    page.keyboard.press("Enter")
    assert page.locator("#claims tr.behind").nth(1).is_visible()


def test_figures_are_drawn_beside_the_page(folder: Path) -> None:
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {f"claim-{name}.{ending}" for name in "ab" for ending in ("png", "svg")}
    assert set(json.loads((folder / "checksums.json").read_text())) == {"index.html", *(f"figures/{n}" for n in names)}


def test_the_spread_of_seeds_is_one_standard_deviation() -> None:
    chart = Chart("Scores", "x", "y", [Curve("seeds", [1, 2], [[0, 1], [2, 1]]), Curve("one", [1, 2], [3, 4])])
    first, second = claim_panel("a", chart, "").series
    assert first.y.tolist() == [1, 1]
    assert first.error is not None
    assert first.error.tolist() == pytest.approx([2**0.5, 0])
    assert second.error is None
