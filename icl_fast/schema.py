"""What config classes are made of: pydantic where it is installed, the part of it in `plain_schema` where it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


_LONGEST_SHOWN = 200  # characters of a value in a message


class Config(BaseModel):
    """A frozen set of keys: strict types, no unknown key, no number that is not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def validation_message(error: ValidationError, source: str) -> str:
    """Pydantic's findings as one line: each key by its dotted path below `source`, what was wrong with it."""
    findings = []
    for item in error.errors():
        path = ".".join(_clipped(str(part)) for part in (source, *item["loc"]) if part != "")
        if item["type"] == "extra_forbidden":
            findings.append(f"{path}: unknown key")
        elif item["type"] == "missing":
            findings.append(f"{path}: missing")
        else:
            text = item["msg"].removeprefix("Value error, ")
            given = "" if item["type"] == "value_error" else f", got {_shown(item['input'])}"
            findings.append(f"{path}: {text[0].lower()}{text[1:]}{given}".removeprefix(": "))
    return " ".join("; ".join(findings).splitlines())


def _shown(value: object) -> str:
    try:
        return _clipped(repr(value))
    except (ValueError, RecursionError):  # Python writes no number of thousands of digits, and no endless nesting
        return f"a {type(value).__name__} too long to be shown"


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."
