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


class Config(BaseModel):
    """A frozen set of keys: strict types, no unknown key, no number that is not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def validation_message(error: ValidationError, source: str) -> str:
    """Pydantic's findings as one line: each key by its dotted path below `source`, what was wrong with it."""
    findings = []
    for item in error.errors():
        path = ".".join(str(part) for part in (source, *item["loc"]) if part != "")
        if item["type"] == "extra_forbidden":
            findings.append(f"{path}: unknown key")
        elif item["type"] == "missing":
            findings.append(f"{path}: missing")
        else:
            text = item["msg"].removeprefix("Value error, ")
            given = "" if item["type"] == "value_error" else f", got {item['input']!r}"
            findings.append(f"{path}: {text[0].lower()}{text[1:]}{given}".removeprefix(": "))
    return "; ".join(findings)
