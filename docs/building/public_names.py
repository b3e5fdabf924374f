"""The table of what `import icl_fast` gives."""

from __future__ import annotations

import inspect

import icl_fast


def table() -> str:
    """A row a name, with the first sentence of its docstring, linked to where the rooms' pages have all of it."""
    rows = ["| name | |", "|---|---|"]
    for name in icl_fast.__all__:
        value = getattr(icl_fast, name)
        first = inspect.cleandoc(value.__doc__ or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        rows.append(f"| [`{name}`][{value.__module__}.{name}] | {first} |")
    return "\n".join(rows)
