"""The config of a run, on text or on exemplars: the sections of a file show which of the two it describes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from icl_fast.errors import InputError
from icl_fast.runs.config_files import read_yaml
from icl_fast.runs.exemplar_config import ExemplarRunConfig
from icl_fast.runs.text_config import TextRunConfig
from icl_fast.schema import ValidationError, validation_message
from icl_fast.shipped_configs import find

RunConfig = TextRunConfig | ExemplarRunConfig


def parse_config(values: dict[str, Any], source: str = "config") -> RunConfig:
    """A config from plain data: on exemplars if it has a section `sequences` or `exemplars`, else on text.

    Raises:
        InputError: an unknown key, a wrong type or an impossible value; the message names the dotted key.
    """
    kind = ExemplarRunConfig if {"sequences", "exemplars"} & values.keys() else TextRunConfig
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: {validation_message(error, '')}") from None


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML config, which holds what differs from the defaults, and apply `a.b=c` overrides in order.

    Args:
        path: of a file, or the name of one that comes with icl_fast, such as `demo/two_layer`.

    Raises:
        InputError: no such file, not YAML, an unknown key, a wrong type, an impossible value, a malformed override.
    """
    return parse_config(read_yaml(find(path), overrides), source=Path(path).name)


def differing_keys(a: RunConfig, b: RunConfig) -> list[str]:
    """The dotted keys whose values differ between two configs; only "task" if their tasks differ.

    What `exemplars.kind=auto` stands for was decided where a run began, and does not differ from it.
    """
    if a.task != b.task:
        return ["task"]
    differing = []
    first, second = a.model_dump(), b.model_dump()
    if isinstance(a, ExemplarRunConfig) and _is_settled(first["exemplars"]["kind"], second["exemplars"]["kind"]):
        first["exemplars"]["kind"] = second["exemplars"]["kind"]
    for section, value in first.items():
        if isinstance(value, dict) and isinstance(second[section], dict):
            differing += [f"{section}.{key}" for key in value if value[key] != second[section][key]]
        elif value != second[section]:
            differing.append(section)
    return differing


def _is_settled(*kinds: str) -> bool:
    return "auto" in kinds and set(kinds) <= {"auto", "glyphs", "strokes"}
