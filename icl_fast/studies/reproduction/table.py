"""The table of claims: on the page, as JSON, as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from icl_fast.analysis.claims import Rule
from icl_fast.files import atomic_write, to_json
from icl_fast.report.panels.claims import claim_panel
from icl_fast.report.study import Claim, Study
from icl_fast.report.write import write_report
from icl_fast.studies.reproduction.reproduce import Reproduction, Row

TITLES = {
    "olsson": "Olsson et al. 2022, In-context Learning and Induction Heads",
    "singh": "Singh 2025, Learning dynamics of emergent in-context learning in transformers",
}


def counted(rows: Sequence[Row]) -> str:
    """How many claims have each verdict."""
    return "; ".join(f"{count} {verdict}" for verdict, count in Counter(row.verdict for row in rows).items())


def shown(values: Sequence[float]) -> str:
    """The values of the seeds in a few characters: one alone, or mean ± standard deviation and how many."""
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{np.mean(values):.3g} ± {np.std(values, ddof=1):.2g} ({len(values)})"


def found(quantities: Mapping[str, Sequence[float]]) -> str:
    """What was measured, the name before each."""
    return ", ".join(f"{name} {shown(values)}" for name, values in quantities.items())


def evidence(row: Row) -> str:
    """What a verdict rests on, in a line: what the rule speaks of, measured and in the control."""
    if row.measured is None or row.control is None:
        return row.why
    measured, control = (
        {name: of.quantities[name] for name in Rule(row.claim.rule).quantities} for of in (row.measured, row.control)
    )
    if not row.control_fails:
        failed = "NOT DECISIVE: the rule holds too"
    elif any(np.isnan(values).any() for values in control.values()):
        failed = "where the effect is absent there is nothing to measure, so that the rule fails"
    else:
        failed = "where the effect is absent the rule fails"
    note = f". {row.claim.note}" if row.claim.note else ""
    return f"{found(measured)}; {failed} ({found(control)}){note}"


def claims(rows: Sequence[Row]) -> tuple[Claim, ...]:
    """The rows of a report page."""
    return tuple(
        Claim(
            claim=row.claim.statement,
            source=row.claim.source,
            verdict=row.verdict,
            evidence=evidence(row),
            rule=row.claim.rule,
            panel=None
            if row.measured is None
            else claim_panel(row.claim.name, row.measured.chart, f"{row.claim.source}. {evidence(row)}."),
        )
        for row in rows
    )


def write_table(
    reproduction: Reproduction,
    rows: Sequence[Row],
    *,
    static: bool = True,
    on_figure: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `claims.json`, `claims.md`, the page `index.html`, and the figure behind each row, into its folder.

    Of chosen claims alone they go to its folder `chosen`, so that the whole table stays.

    Returns:
        The page's path.

    Raises:
        InputError: the disk is full or the folder not writable.
    """
    title = f"{TITLES[reproduction.work]}: what was found at the {reproduction.scale} scale"
    folder = reproduction.home / "chosen" if reproduction.chosen else reproduction.home
    texts = {"claims.json": to_json(_json(rows), indent=1), "claims.md": _markdown(title, rows, figures=static)}
    for name, text in texts.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    study = Study(title, {}, (), claims(rows))
    return write_report(study, folder, static=static, on_figure=on_figure)


def _json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {
            "name": row.claim.name,
            "source": row.claim.source,
            "statement": row.claim.statement,
            "rule": row.claim.rule,
            "runs": dict(row.claim.runs),
            "without": dict(row.claim.without),
            "verdict": row.verdict,
            "measured": row.measured and dict(row.measured.quantities),
            "control": row.control and dict(row.control.quantities),
            "rule fails on the control": row.control_fails,
            "seconds": row.seconds,
            "why": row.why,
            "note": row.claim.note,
        }
        for row in rows
    ]


def _markdown(title: str, rows: Sequence[Row], *, figures: bool) -> str:
    lines = [f"# {title}", "", f"{len(rows)} claims: {counted(rows)}.", ""]
    lines += ["| | claim | source | rule | found | evidence |", "|---|---|---|---|---|---|"]
    for row in rows:
        name = f"[{row.claim.name}](figures/claim-{row.claim.name}.png)" if row.measured and figures else row.claim.name
        cells = [name, row.claim.statement, row.claim.source, f"`{row.claim.rule}`", row.verdict, evidence(row)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])
