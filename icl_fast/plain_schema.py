"""The part of pydantic that config classes use, for machines without it: the same values, the same findings.

Only what `icl_fast.schema` gives to its classes is here, and only for the annotations that they have: int, float, bool,
str, Any, Literal, list, dict with keys of text, tuples of a fixed length, unions, other config classes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from numbers import Real
from operator import ge, gt, le, lt
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Some = TypeVar("Some", bound="BaseModel")
Finding = dict[str, Any]  # as pydantic's: "loc" (the path of keys), "type", "msg", "input" (what was given there)

_LIMITS: dict[Callable[[Any, Any], bool], str] = {
    le: "less than or equal to",
    lt: "less than",
    ge: "greater than or equal to",
    gt: "greater than",
}
_KINDS: dict[type, tuple[type, str]] = {  # what values of it are instances of, and its name
    bool: (bool, "boolean"),
    int: (int, "integer"),
    float: (Real, "number"),
    str: (str, "string"),
    list: (list, "list"),
    tuple: (tuple, "tuple"),
    dict: (dict, "dictionary"),
}

ConfigDict = dict[str, Any]


class ValidationError(ValueError):
    """Values that a config class refuses."""

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__("\n".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in findings))
        self._findings = findings

    def errors(self) -> list[Finding]:
        """What is wrong, and where."""
        return self._findings


class Field:
    """The default of a key (`...`: it has none) and what its values obey; a pattern is that of the whole text."""

    def __init__(
        self,
        default: Any = ...,
        *,
        description: str = "",
        pattern: str | None = None,
        strict: bool = True,
        **limits: float,
    ) -> None:
        self.default, self.description, self.pattern, self.strict = default, description, pattern, strict
        # in the order in which pydantic looks
        self.limits = {holds: limits.pop(holds.__name__) for holds in _LIMITS if holds.__name__ in limits}
        if limits:
            raise TypeError(f"Field: {', '.join(limits)}: only pydantic's has that")

    def copied_default(self) -> Any:
        """The default, the caller's own."""
        if self.default is ...:
            raise _missing()
        return copy.deepcopy(self.default)


def model_validator(*, mode: Literal["before", "after"]) -> Callable[[Any], Any]:
    """Mark a method that is called when every key is well; it raises ValueError if they do not fit together.

    "before": a class method that takes the plain data before any of it is looked at, and returns what is.
    """
    return _marked((), before=mode == "before")


def field_validator(*names: str) -> Callable[[Any], Any]:
    """Mark a class method that takes the value of a key, otherwise well, and returns it or raises ValueError."""
    return _marked(names)


def _marked(names: tuple[str, ...], *, before: bool = False) -> Callable[[Any], Any]:
    def mark(method: Any) -> Any:
        if before:
            method.comes_before = True
        else:
            method.validates = names
        return method

    return mark


class BaseModel:
    """Keys and their values, as `icl_fast.schema.Config` asks for: frozen, strict, nothing unknown, numbers finite."""

    model_fields: ClassVar[dict[str, Field]] = {}
    _hints: ClassVar[dict[str, Any]] = {}
    _validators: ClassVar[dict[str, tuple[str, ...]]] = {}  # methods, and the keys that each is for; none: the whole
    _before: ClassVar[tuple[str, ...]] = ()  # methods that come before them

    def __init_subclass__(cls) -> None:
        hints = get_type_hints(cls)
        cls._hints = {name: hint for name, hint in hints.items() if get_origin(hint) is not ClassVar}
        defaults = {name: getattr(cls, name, ...) for name in cls._hints}
        cls.model_fields = {name: it if isinstance(it, Field) else Field(it) for name, it in defaults.items()}
        marked = {name: it.validates for name, it in vars(cls).items() if hasattr(it, "validates")}
        cls._validators = cls._validators | marked
        cls._before += tuple(name for name, it in vars(cls).items() if hasattr(it, "comes_before"))

    def __init__(self, **values: Any) -> None:
        self._fill(self._prepared(values))

    @classmethod
    def _prepared(cls, values: Any) -> Any:
        for name in cls._before:
            values = getattr(cls, name)(values)
        return values

    @classmethod
    def model_validate(cls: type[Some], values: Any) -> Some:
        """A config from plain data; a config stays what it is."""
        if isinstance(values, cls):
            return values
        values = cls._prepared(values)
        if not isinstance(values, dict):
            raise _wrong(f"Input should be a valid dictionary or instance of {cls.__name__}", values)
        config = cls.__new__(cls)
        config._fill(values)
        return config

    def model_copy(self: Some, *, update: dict[str, Any] | None = None) -> Some:
        """The same with other values, which are taken as they are."""
        config = copy.copy(self)
        vars(config).update(update or {})
        return config

    def model_dump(self, *, mode: Literal["python", "json"] = "python") -> dict[str, Any]:
        """The values as plain data; "json": with lists for tuples."""
        return {name: _dumped(value, mode) for name, value in vars(self).items()}

    def _fill(self, values: dict[Any, Any]) -> None:
        findings = _Findings()
        for name, field in self.model_fields.items():
            with findings.below(name):
                vars(self)[name] = self._value(name, values[name]) if name in values else field.copied_default()
        for key, value in values.items():
            with findings.below(_step(key)):
                if not isinstance(key, str):
                    raise _wrong("Keys should be strings", key)
                if key not in self.model_fields:
                    raise _wrong("Extra inputs are not permitted", value, "extra_forbidden")
        findings.end()
        for method, names in self._validators.items():
            if not names:
                with _value_errors():
                    getattr(self, method)()

    def _value(self, name: str, value: Any) -> Any:
        value = _checked(self._hints[name], value, self.model_fields[name])
        for method, names in self._validators.items():
            if name in names:
                with _value_errors():
                    value = getattr(self, method)(value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        findings = _Findings()
        with findings.below(name):
            raise _wrong("Instance is frozen", value)
        findings.end()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class _Findings(list[Finding]):
    """What is wrong with the parts of something."""

    @contextmanager
    def below(self, *path: str | int) -> Iterator[None]:
        try:
            yield
        except ValidationError as error:
            self += [{**item, "loc": (*path, *item["loc"])} for item in error.errors()]

    def end(self) -> None:
        if self:
            raise ValidationError(self)


def _wrong(message: str, given: Any, kind: str = "") -> ValidationError:
    return ValidationError([{"loc": (), "type": kind, "msg": message, "input": given}])


def _missing() -> ValidationError:
    return _wrong("Field required", None, "missing")


@contextmanager
def _value_errors() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise _wrong(f"Value error, {error}", None, "value_error") from None


def _step(key: Any) -> str | int:
    return key if isinstance(key, str) else int(key) if isinstance(key, int) else repr(key)


_FREE = Field()  # what the parts of a value obey: a Field is about the whole of it


def _checked(hint: Any, value: Any, field: Field = _FREE) -> Any:
    """The value as the hint has it, or ValidationError."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return value
    if kind in (Union, UnionType):
        return _of_union(parts, value, field)
    if kind is Literal:
        if isinstance(value, str) and value in parts:
            return value
        *others, last = map(repr, parts)
        raise _wrong(f"Input should be {', '.join(others)} or {last}", value)
    if kind not in _KINDS:
        return kind.model_validate(value)
    base, name = _KINDS[kind]
    lax = isinstance(value, list) and kind is tuple and not field.strict
    if not (isinstance(value, base) or lax) or (isinstance(value, bool) and kind is not bool):
        raise _wrong(f"Input should be a valid {name}", value)
    if kind is list:
        return _all(parts * len(value), value)
    if kind is tuple:
        if len(value) > len(parts):
            most = f"Tuple should have at most {len(parts)} items after validation, not {len(value)}"
            raise _wrong(most, value)
        return tuple(_all(parts, value))
    if kind is dict:
        return _of_dict(parts[1], value)
    return _of_scalar(kind, value, field)


def _of_union(kinds: tuple[Any, ...], value: Any, field: Field) -> Any:
    if NoneType in kinds and value is None:
        return None
    kinds = tuple(kind for kind in kinds if kind is not NoneType)
    if len(kinds) == 1:
        return _checked(kinds[0], value, field)
    findings = _Findings()
    for kind in kinds:
        of = ", ".join(part.__name__ for part in get_args(kind))
        with findings.below(kind.__name__ + (f"[{of}]" if of else "")):
            return _checked(kind, value, field)
    raise ValidationError(findings)


def _all(kinds: tuple[Any, ...], values: Sequence[Any]) -> list[Any]:
    findings, checked = _Findings(), []
    for i, kind in enumerate(kinds):
        with findings.below(i):
            if i >= len(values):
                raise _missing()
            checked.append(_checked(kind, values[i]))
    findings.end()
    return checked


def _of_dict(kind: Any, values: dict[Any, Any]) -> dict[str, Any]:
    findings, checked = _Findings(), {}
    for key, value in values.items():
        with findings.below(_step(key), "[key]"):
            _checked(str, key)
        with findings.below(_step(key)):
            checked[key] = _checked(kind, value)
    findings.end()
    return checked


def _of_scalar(kind: type, value: Any, field: Field) -> Any:
    checked = value
    if kind is float:
        try:
            checked = float(value)
        except OverflowError:
            raise _wrong("Input should be a valid number", value) from None
        if not isfinite(checked):
            raise _wrong("Input should be a finite number", value)
    for holds, limit in field.limits.items():
        if not holds(checked, limit):
            raise _wrong(f"Input should be {_LIMITS[holds]} {int(limit) if limit == int(limit) else limit}", value)
    if field.pattern is not None and not re.fullmatch(field.pattern, value):
        raise _wrong(f"String should match pattern '{field.pattern}'", value)
    return checked


def _dumped(value: Any, mode: Literal["python", "json"]) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode=mode)
    if isinstance(value, dict):
        return {key: _dumped(item, mode) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_dumped(item, mode) for item in value]
        return tuple(items) if isinstance(value, tuple) and mode == "python" else items
    return value
