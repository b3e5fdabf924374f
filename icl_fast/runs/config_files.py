"""Config files: YAML that holds what differs from the defaults, and `a.b=c` overrides on top."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from icl_fast.errors import InputError


def read_yaml(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The sections of a config file, as plain data, with `a.b=c` overrides applied in order.

    Raises:
        InputError: no such file, not YAML, no sections, a malformed override.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader) or {}
    except OSError as error:
        raise InputError(f"config {path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config {path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise InputError(f"config {path}: must be sections of keys and values, got {type(values).__name__}")
    for override in overrides:
        _apply(values, override)
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise InputError(f"--set {override}: write it as section.key=value, such as training.lr=1e-3")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise InputError(f"--set {override}: the value is not YAML") from None
    for part in parts[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise InputError(f"--set {override}: {part!r} is a value, not a section")
    values[parts[-1]] = value


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number; in YAML 1.1 it is a string, which nobody who writes a learning rate means."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)
