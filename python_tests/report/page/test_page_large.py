"""The page of other people's models, in a browser: groups of columns, heads beyond telling apart, one snapshot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from icl_fast.analysis import attribute_icl
from icl_fast.report.page.write import write_page
from icl_fast.report.panels.family import family_panels
from icl_fast.report.panels.table import ROWS, table_panels
from icl_fast.report.study import ModelStudy, Study

MadeStudy = Callable[..., Study]
OpenPage = Callable[..., Any]
SHOWN = [(0, 3), (1, 20), (2, 39)]


def write(study: Study, folder: Path) -> Path:
    return write_page(study, table_panels(study), ROWS, family_panels(study), folder / "page.html")


def last_snapshot(model: ModelStudy) -> ModelStudy:
    """The model as if its last snapshot were all that there is."""

    def last(data: Any) -> Any:
        return data.isel(snapshot=slice(-1, None))

    ablations = {mode: last(of) for mode, of in model.ablations.items()}
    return replace(
        model,
        losses=last(model.losses),
        heads=last(model.heads),
        ablations=ablations,
        change=None,
        interval=None,
        attributions=attribute_icl(ablations["pattern-preserving"]),
        curiosities=(),
        texts={name: last(text) for name, text in model.texts.items()},
    )


@pytest.fixture(scope="module")
def large(made_study: MadeStudy) -> Study:
    """A model of 120 heads, three of which are shown on texts."""
    study = made_study((3,), heads=40, examples=5)
    model = study.models["three_layer"]
    places = [40 * layer + head for layer, head in SHOWN]
    texts = {name: text.isel(shown=places) for name, text in model.texts.items()}
    return replace(study, models={"three_layer": replace(model, texts=texts)})


def test_columns_stand_in_groups(made_study: MadeStudy, browser_page: OpenPage, tmp_path: Path) -> None:
    study = made_study((1, 2, 3))
    groups = (
        replace(study.groups[0], models=("one_layer", "two_layer")),
        replace(study.groups[0], text="<b>other</b>", context=2048, bos=None, models=("three_layer",), pca=None),
    )
    notes = {
        "three_layer": replace(study.models["three_layer"], notes=("snapshots 5, 6 hold the same <i>weights</i>",))
    }
    page = browser_page(write(replace(study, models=study.models | notes, groups=groups), tmp_path))
    heads = page.locator(".group-head")
    assert heads.all_inner_texts() == [
        "on made up · 32 tokens, <bos> before them",
        "on <b>other</b> · 2,048 tokens, no token before them",
    ]
    boxes = [[head.bounding_box() for head in page.locator(f".{name}-head").all()] for name in ("group", "column")]
    edges = [[(box["x"], box["x"] + box["width"]) for box in of] for of in boxes]
    np.testing.assert_allclose(edges[0], [(edges[1][0][0], edges[1][1][1]), edges[1][2]])
    assert (
        "three_layer: snapshots 5, 6 hold the same <i>weights</i>" in page.locator(".head .note").all_inner_texts()[-1]
    )
    assert "losses of different groups of columns cannot be compared" in page.locator(".head").inner_text()
    absent = page.locator("#table .row").first.locator(".absent").inner_text()
    assert absent.startswith("N/A: no plane: 3 snapshots or more")


def test_more_than_100_heads(large: Study, browser_page: OpenPage, tmp_path: Path) -> None:
    page = browser_page(write(large, tmp_path))
    row = page.locator("#table .row").nth(5)
    row.scroll_into_view_if_needed()
    page.wait_for_timeout(100)
    page.evaluate("ICL.settled()")
    looks = row.locator(".many .series").evaluate_all(
        "(all) => all.map((one) => [one.classList.contains('faded'), getComputedStyle(one.firstChild).opacity, "
        "getComputedStyle(one.querySelector('.line')).strokeWidth])"
    )
    assert sorted(looks) == [[False, "0.55", "0.8px"]] * 100 + [[True, "0.14", "0.8px"]] * 20
    assert page.locator("#attention .texts-head").evaluate_all("(all) => all.map((one) => one.dataset.textsHead)") == [
        f"{layer}.{head}" for layer, head in SHOWN
    ]
    assert "3 of the 120 heads are shown" in page.locator("#attention").text_content()
    assert page.locator("#token-losses select").nth(2).locator("option").count() == 3
    for head, kept in (SHOWN[1], True), ((1, 21), False):
        page.evaluate(f"ICL.openHead('three_layer', {list(head)})")
        page.evaluate("ICL.settled()")
        assert page.locator("dialog canvas.texts-pattern").count() == kept
        assert ("Not kept of this head" in page.locator("dialog").inner_text()) != kept
    tables = page.locator("dialog .composition")
    assert [table.locator("tbody tr").count() for table in tables.all()] == [24, 24]
    assert "the strongest 24, 16 others are weaker" in tables.first.locator("caption").inner_text()
    composition = large.models["three_layer"].heads.isel(snapshot=-1)
    strongest = np.max([composition[f"composition_{by}"].values[0, :, 1, 21] for by in "qkv"], axis=0)
    expected = {f"0.{head}" for head in np.argsort(-strongest)[:24]}
    assert set(tables.first.locator("tbody th").all_inner_texts()) == expected


def test_the_table_of_heads(large: Study, browser_page: OpenPage, tmp_path: Path) -> None:
    page = browser_page(write(large, tmp_path))
    model = large.models["three_layer"]
    table = page.locator("#heads table")
    assert "12 of 120 heads" in table.locator("caption").inner_text()
    matching = model.heads["prefix_matching"].values[-1].ravel()
    sweep = model.ablations["pattern-preserving"].isel(snapshot=-1)
    effect = (sweep["icl_score"].values - sweep["icl_score"].values[0])[1:]
    turns = [head for pair in zip(np.argsort(-matching), np.argsort(-np.abs(effect)), strict=True) for head in pair]
    expected = list(dict.fromkeys(turns))[:12]
    assert table.locator("tbody th").all_inner_texts() == [f"{head // 40}.{head % 40}" for head in expected]
    first = table.locator("tbody tr").first.locator("td").all_inner_texts()
    assert first[0] == model.types.types.ravel()[expected[0]]
    assert first[1] == f"{matching[expected[0]]:.3f}"
    assert float(first[-2].split(" ± ")[0].replace("−", "-")) == pytest.approx(effect[expected[0]], abs=6e-4)
    table.locator("tbody button").first.click()
    page.evaluate("ICL.settled()")
    assert page.locator("dialog h2").inner_text() == f"Head {expected[0] // 40}.{expected[0] % 40} of three_layer"


def test_one_snapshot_counted_by_steps(made_study: MadeStudy, browser_page: OpenPage, tmp_path: Path) -> None:
    study = made_study((1, 2))
    models = {name: replace(model, progress="steps") for name, model in study.models.items()}
    models["two_layer"] = last_snapshot(models["two_layer"])
    group = replace(study.groups[0], pca=None)
    page = browser_page(write(replace(study, models=models, groups=(group,)), tmp_path))
    assert page.locator(".corner").inner_text() == "→ optimizer step, in all rows but the first"
    assert [text.split("\n")[1] for text in page.locator(".column-head").all_inner_texts()] == [
        "no phase change",
        "one snapshot",
    ]
    row = page.locator("#table .row").nth(5)
    row.scroll_into_view_if_needed()
    page.wait_for_timeout(100)
    page.evaluate("ICL.settled()")
    assert row.locator(".cell").nth(1).locator(".point").count() == 4
    assert row.locator(".cell").nth(0).locator(".line").count() == 2
    assert "layer, of models with one snapshot" in row.inner_text()
    assert "two_layer has one snapshot: " in page.locator("#table .row").nth(1).inner_text()
    page.evaluate("ICL.openHead('two_layer', [1, 0])")
    page.evaluate("ICL.settled()")
    assert "optimizer step" in page.locator("dialog").inner_text()
