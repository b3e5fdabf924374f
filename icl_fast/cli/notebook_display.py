"""Progress in a notebook: one output of a cell, which is drawn anew, however many bars there are."""

from __future__ import annotations

import sys
import time
from html import escape
from importlib import import_module
from types import TracebackType
from typing import Any

_SECONDS_BETWEEN_DRAWINGS = 0.2
_CELL = "text-align: left; padding: 1px 12px 1px 0"


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class NotebookDisplay:
    """Does in a notebook what rich's `Progress` does on a terminal, as far as it is asked for here.

    rich needs widgets to draw an output anew; without them it writes one below the other.
    """

    disable = False

    def __init__(self) -> None:
        self._tasks: list[dict[str, Any]] = []
        self._drawn = 0.0

    def __enter__(self) -> NotebookDisplay:
        shown: Any = import_module("IPython.display")  # which a kernel has, whether or not it is installed elsewhere
        self._html = shown.HTML
        self._handle = shown.display(self._html(""), display_id=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw()

    def add_task(self, title: str, **fields: Any) -> int:
        """A bar, below those that there are."""
        self._tasks.append({"title": title, "completed": 0, "began": time.monotonic(), **fields})
        return len(self._tasks) - 1

    def update(self, task: int, **fields: Any) -> None:
        """What a bar shows; drawn a few times a second, and when it is full."""
        of_task = self._tasks[task]
        of_task.update(fields)
        full = of_task["completed"] == of_task["total"]
        if full or time.monotonic() - self._drawn > _SECONDS_BETWEEN_DRAWINGS:
            self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        rows = "".join(map(_row, filter(lambda one: one["visible"], self._tasks)))
        self._handle.update(self._html(f"<table>{rows}</table>"))


def _row(task: dict[str, Any]) -> str:
    total, completed = task["total"], task["completed"]
    value = "" if total is None else f' value="{completed}" max="{max(1, total)}"'
    elapsed = time.strftime("%H:%M:%S", time.gmtime(time.monotonic() - task["began"]))
    cells = (escape(task["title"]), f"<progress{value}></progress>", task["done"], escape(task["text"]), elapsed)
    return "<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>"
