"""What a notebook shows of an object: its facts, as a small table."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

_CELL = "text-align: left; vertical-align: top; padding: 1px 12px 1px 0"


def table(title: str, facts: Mapping[str, Any]) -> str:
    """HTML of a title and a row for each fact that there is; all of it is taken as text."""
    rows = "".join(
        f'<tr><th style="{_CELL}; font-weight: normal; opacity: 0.7">{escape(name)}</th>'
        f'<td style="{_CELL}">{escape(str(value))}</td></tr>'
        for name, value in facts.items()
        if value is not None
    )
    return f"<div><b>{escape(title)}</b><table>{rows}</table></div>"


def some(values: list[int]) -> str:
    """Numbers, or of many the first and the last and how many there are."""
    if len(values) > 8:
        return f"{len(values):,}, from {values[0]:,} to {values[-1]:,}"
    return ", ".join(f"{value:,}" for value in values) or "none"
