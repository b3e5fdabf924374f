"""What config classes are made of: pydantic where it is installed, the part of it in `plain_schema` where it is not."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

__all__ = ["Config", "Field", "ValidationError", "field_validator", "model_validator", "validation_message"]

if TYPE_CHECKING:
    from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
else:
    try:
        from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
    except ImportError:
        from icl_fast.plain_schema import (
            BaseModel,
            ConfigDict,
            Field,
            ValidationError,
            field_validator,
            model_validator,
        )


_MOST_FINDINGS, _LONGEST_SHOWN = 10, 200  # in a message; characters of a value


class Config(BaseModel):
    """A frozen set of keys: strict types, no unknown key, no number that is not finite.

    Whole numbers may be numpy's or torch's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _takes_numpy(cls, values: Any) -> Any:
        return _of_python(values)


def _of_python(values: Any) -> Any:
    """The same with Python's own whole numbers in the place of those of arrays of no dimension."""
    if isinstance(values, dict):
        return {key: _of_python(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(map(_of_python, values))
    if getattr(values, "shape", None) == () and not str(values.dtype).endswith("bool"):
        try:
            return operator.index(values)
        except TypeError:  # of floats
            return values
    return values


def validation_message(error: ValidationError, source: str) -> str:
    """Pydantic's findings as one line: each key by its dotted path below `source`, what was wrong with it."""
    findings, items = [], error.errors()
    for item in items[:_MOST_FINDINGS]:
        path = ".".join(part for part in (source, *(_shown(part, str) for part in item["loc"])) if part != "")
        if item["type"] == "extra_forbidden":
            findings.append(f"{path}: unknown key")
        elif item["type"] == "missing":
            findings.append(f"{path}: missing")
        else:
            text = item["msg"].removeprefix("Value error, ")
            given = "" if item["type"] == "value_error" else f", got {_shown(item['input'])}"
            findings.append(f"{path}: {text[0].lower()}{text[1:]}{given}".removeprefix(": "))
    if more := len(items) - len(findings):
        findings.append(f"and {more} more")
    return " ".join("; ".join(findings).splitlines())


def _shown(value: object, write: Callable[[object], str] = repr) -> str:
    try:
        text = write(value)
    except (ValueError, RecursionError):  # Python writes no number of thousands of digits, and no endless nesting
        return f"a {type(value).__name__} too long to be shown"
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."
