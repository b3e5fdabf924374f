"""Claims of the thesis tested as a user would: the cheapest five always, a larger handful where time allows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from icl_fast.cli.main import cli

CHEAPEST = (
    "toy-divot",
    "toy-mechanism-1-is-transient",
    "toy-plateau-needs-many-vectors",
    "toy-without-bias-1-stays",
    "plateau-is-guessing",
)
HANDFUL = (
    "icl-is-transient",
    "ciwl-remains",
    "iwl-near-chance",
    "flip-turns-from-1-to-0",
    "one-layer-learns-ciwl-only",
)
# the thesis' characters are 1,623; these can be drawn with the fonts of a bare machine
FEWER = ("--set", "exemplars.classes=600")


@pytest.mark.parametrize(
    ("names", "options"), [(CHEAPEST, FEWER), pytest.param(HANDFUL, (), marks=pytest.mark.slow)], ids=["5", "handful"]
)
def test_claims_hold_and_their_rules_fail_without_the_effect(
    names: tuple[str, ...], options: tuple[str, ...], tmp_path: Path
) -> None:
    line = ["reproduce", "singh", "--out", str(tmp_path), "--claims", ",".join(names), "--no-static", *options]
    done = CliRunner().invoke(cli, line)
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "singh-tiny" / "chosen" / "claims.json").read_text())
    assert {row["name"]: row["verdict"] for row in rows} == dict.fromkeys(names, "holds")
    assert all(row["rule fails on the control"] for row in rows)
