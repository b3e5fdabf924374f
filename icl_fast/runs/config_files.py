"""Config files: YAML that holds what differs from the defaults, and `a.b=c` overrides on top."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from icl_fast.errors import InputError
from icl_fast.files import regular_file

_LARGEST = 4 * 2**20  # bytes of a file
_MOST_VALUES, _DEEPEST = 100_000, 50  # each alias counts as all that it stands for
_LONGEST_NUMBER = 40  # digits
_LONGEST_SHOWN = 80  # characters of an override in a message


def read_yaml(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The sections of a config file, as plain data, with `a.b=c` overrides applied in order.

    Raises:
        InputError: no such file, not YAML (see `_Loader` for what of it is read), no sections, a malformed override.
    """
    if os.path.isfile(inside := Path(path) / "config.yaml"):  # unlike Path's, it has no error for any name
        goes_on = f"`icl-fast train {inside} --out {path} --resume` goes on with it"
        raise InputError(f"config: {path} is a run, not a config; {goes_on}")
    path = regular_file(path, "config")
    with open(path, "rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise InputError(f"config {path}: is larger than 4 MiB; give a YAML file of sections, keys and values")
    values = _parse(content, f"config {path}: not YAML")
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise InputError(f"config {path}: must be sections of keys and values, got {type(values).__name__}")
    for override in overrides:
        _apply(values, override)
    return values


def to_yaml(values: dict[str, Any]) -> str:
    """Plain data as YAML that `read_yaml` reads as the same."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def _parse(content: bytes, complaint: str) -> Any:
    try:
        return yaml.load(content.decode("utf-8-sig"), Loader=_Loader)
    except UnicodeDecodeError as error:
        reason = f"not UTF-8, byte {error.start}"
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark is not None else ""
        reason = line + ", ".join(filter(None, (error.context, error.problem)))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number such as 0x_
        reason = " ".join(str(error).split())
    raise InputError(f"{complaint} ({reason})")


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts, shown = key.split("."), " ".join(override.split())
    shown = f"--set {shown if len(shown) <= _LONGEST_SHOWN else shown[:_LONGEST_SHOWN] + '...'}"
    if not equals or not all(parts) or len(parts) > _DEEPEST:
        raise InputError(f"{shown}: write it as section.key=value, such as training.lr=1e-3")
    value = _parse(text.encode("utf-8", "surrogateescape"), f"{shown}: the value is not YAML")
    for part in parts[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise InputError(f"{shown}: {part!r} is a value, not a section")
    values[parts[-1]] = value


class _Loader(yaml.SafeLoader):
    """Text, numbers, booleans, null, lists and sections, as people mean them, and no more than a config needs.

    1e-3 is a number, while 1:30, 0100 and 2020-01-01 are text and not 90, 64 and a date. Keys are text, each of them
    there once. There are no tags, and aliases count as what they stand for.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = 0
        self.sizes: dict[yaml.Node, tuple[int, int]] = {}  # values in a node, aliases written out, and levels

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        tag = getattr(event, "tag", None)
        self._demand(tag is None, f"tags such as {tag} are not read", event)
        self._demand(self.depth < _DEEPEST, f"more than {_DEEPEST} levels", event)
        self._demand(len(self.sizes) < _MOST_VALUES, f"more than {_MOST_VALUES:,} values", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(event, yaml.AliasEvent):
            self._demand(node in self.sizes, f"*{event.anchor} stands for what it is in", event)
        elif isinstance(node, yaml.ScalarNode):
            digits = len(node.value) if node.tag == _INT else 0
            self._demand(digits <= _LONGEST_NUMBER, f"a number of {digits} digits", event)
            self.sizes[node] = 1, 1
        elif isinstance(node, yaml.CollectionNode):
            if isinstance(node, yaml.MappingNode):
                self._check_keys(node)
            parts = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
            values = 1 + sum(self.sizes[part][0] for part in parts)
            levels = 1 + max((self.sizes[part][1] for part in parts), default=0)
            self._demand(values <= _MOST_VALUES, f"more than {_MOST_VALUES:,} values", event)
            self._demand(levels <= _DEEPEST, f"more than {_DEEPEST} levels", event)
            self.sizes[node] = values, levels
        return node

    def _check_keys(self, node: yaml.MappingNode) -> None:
        names = set()
        for key, _ in node.value:
            self._demand(key.tag in (_TEXT, _MERGE), f"the key {_shown(key)} must be text; put it into quotes", key)
            self._demand(key.value not in names, f"the key {key.value} is there twice", key)
            names.add(key.value)

    @staticmethod
    def _demand(holds: bool, problem: str, where: Any) -> None:
        if not holds:
            raise yaml.composer.ComposerError(None, None, problem, where.start_mark)


def _shown(key: yaml.Node) -> str:
    return str(key.value) if isinstance(key, yaml.ScalarNode) and key.value else "of this line"


_INT, _FLOAT, _TEXT, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "str", "merge"))
_KEPT = {_MERGE, "tag:yaml.org,2002:bool", "tag:yaml.org,2002:null"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _KEPT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """Quotes text that is more than text to `_Loader`, or to another reader."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        _INT, re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)\Z"), list("-+0123456789")
    )
    _class.add_implicit_resolver(
        _FLOAT,
        re.compile(
            r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?\Z"
            r"|[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z"
        ),
        list("-+0123456789."),
    )
