"""The figure of idealised patterns: what is drawn is what was measured."""

from __future__ import annotations

import numpy as np
import xarray as xr

from icl_fast.report.draw.figures import idealised_figure


def test_idealised_figure() -> None:
    random = np.random.default_rng(0)
    dims = ("snapshot", "pattern", "layer", "head")
    results = xr.Dataset(
        {
            "effect": (("snapshot", "layer", "head"), random.random((4, 2, 5))),
            "recovered": (dims, random.random((4, 3, 2, 5))),
            "recovered_sem": (dims, random.random((4, 3, 2, 5)) / 9),
        },
        coords={"tokens": ("snapshot", np.arange(4) * 10**6), "pattern": ["a", "b", "c"]},
    )
    figure = idealised_figure(results, "title")
    effect = results["effect"].values[-1]
    for axis, name in zip(figure.axes, "abc", strict=True):
        assert axis.get_title() == f"Pattern: {name}"
        shown = {line.get_label(): line for line in axis.get_lines() if str(line.get_label()).startswith("head")}
        assert len(shown) == 6
        for label, line in shown.items():
            layer, head = map(int, str(label).removeprefix("head ").split("."))
            assert (effect > effect[layer, head]).sum() < 6
            np.testing.assert_array_equal(line.get_ydata(), results["recovered"].sel(pattern=name)[:, layer, head])
            np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2, 3])
