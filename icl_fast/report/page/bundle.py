"""The page's scripts as one: ES modules put together in the order in which they import one another."""

from __future__ import annotations

import re
from collections.abc import Callable

_IMPORT = re.compile(r'^import (?:\* as (\w+)|\{([^}]*)\}) from "\./([\w-]+)\.js";$', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|class) (\w+))", re.MULTILINE)
_OTHER = re.compile(r"^(?:import|export)\b.*$", re.MULTILINE)


def bundle(entry: str, read: Callable[[str], str]) -> str:
    """One classic script that does what the module `entry` does, with all that it imports, each once and before its
    importers.

    Each module is a function that returns what it exports, so that its other names stay its own. Of the language's
    forms it may have these, each at the start of a line: `import { a, b as c } from "./name.js";`, `import * as name
    from "./name.js";`, and `export` before a function, class or const. A const that is exported is what it was when
    its module had run.

    Args:
        entry: the module's name, without `.js`.
        read: the source of a module, by name.

    Raises:
        ValueError: another form of import or export, or modules that import one another in a circle.
    """
    done: dict[str, str] = {}

    def add(name: str, importers: tuple[str, ...]) -> None:
        if name in importers:
            raise ValueError(f"modules import one another in a circle: {' -> '.join((*importers, name))}")
        if name in done:
            return
        source = read(name)
        for _, _, imported in _IMPORT.findall(source):
            add(imported, (*importers, name))
        exported = ", ".join(_EXPORT.findall(source))
        body = _EXPORT.sub("", _IMPORT.sub(_as_const, source))
        if other := _OTHER.search(body):
            raise ValueError(f"{name}.js: cannot be bundled: {other[0]}")
        done[name] = f"const {_variable(name)} = (() => {{\n{body}return {{ {exported} }};\n}})();\n"

    add(entry, ())
    return '"use strict";\n' + "".join(done.values())


def _as_const(found: re.Match[str]) -> str:
    whole, names, module = found.groups()
    what = whole or "{" + names.replace(" as ", ": ") + "}"
    return f"const {what} = {_variable(module)};"


def _variable(module: str) -> str:
    return "module_" + module.replace("-", "_")
