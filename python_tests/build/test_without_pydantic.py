"""A machine without pydantic: the same configs and messages; models, measuring and exemplar training run there."""

from __future__ import annotations

import copy
import importlib
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import icl_fast
from icl_fast import schema
from icl_fast.errors import InputError
from icl_fast.schema import Config, ValidationError, validation_message

PACKAGE = Path(icl_fast.__file__).parent
ROOT = Path(__file__).parents[2]
# of what the package needs, what the machines with a GPU lack
HIDE = """
import sys
HIDDEN = {"pydantic", "pydantic_core", "zarr"}

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
"""
# this file in a Python without pydantic
SERVE = """
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("served", sys.argv[1])
module = module_from_spec(spec)
spec.loader.exec_module(module)
module.serve()
"""
RUN = """
import tempfile
from pathlib import Path
import torch
import icl_fast.models, icl_fast.measure, icl_fast.training
from icl_fast import schema
from icl_fast.measure import ablate
from icl_fast.models import Transformer, TransformerConfig
from icl_fast.ops import _backend
from icl_fast.runs import parse_config
from icl_fast.measure.exemplar.curves import training_curves
from icl_fast.training import train

assert "pydantic" not in sys.modules and schema.Field.__module__ == "icl_fast.plain_schema"
torch.manual_seed(0)
torch.set_num_threads(1)
model = Transformer(TransformerConfig(layers=2, width=12, heads=3, vocab=11, context=8))
tokens = torch.randint(11, (5, 9))
assert model(tokens[:, :-1]).isfinite().all()
fast, slow = (ablate(model, tokens, engine=engine).position_loss.values for engine in ("fast", "definition"))
assert abs(fast - slow).max() < 1e-5 < 1e-3 < abs(slow[1:] - slow[0]).max(axis=1).min()

def losses(engine):
    run = parse_config({
        "exemplars": {"kind": "gaussian", "classes": 30, "exemplars": 3, "width": 8, "encoder": "none"},
        "sequences": {"p_icl": 1.0, "classes": 20, "label_pool": 5, "held_out_classes": 6},
        "model": {"width": 16, "heads": 4},
        "training": {"steps": 6, "batch": 4, "lr": 1e-3, "log_every": 1, "engine": engine},
        "evaluation": {"every": 3, "sequences": 40},
        "snapshots": {"every": 3},
        "members": 2,
    })
    with tempfile.TemporaryDirectory() as folder:
        return training_curves(train(run, Path(folder) / "run"))["training_loss"].values

plain = losses("plain")
if _backend.compiled():
    assert (abs(plain - losses("fused")) < 2e-5).all()
print("ran", plain.shape)
"""
MODULES = [
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    for file in sorted(PACKAGE.rglob("*.py"))
    if "(Config):" in file.read_text(encoding="utf-8")
]
NEEDED: dict[str, dict[str, Any]] = {
    "RotaryScaling": {"kind": "linear", "factor": 2.0},
    "TransformerConfig": {"vocab": 7, "context": 5},
    "ExemplarConfig": {"features": 4, "outputs": 3, "pairs": 2},
    "MemberConfig": {"name": "one"},
}
JUNK: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 5, 300, 2**63, 10**400, 0.0, -0.0, 0.5, 1.0, 1.5, float("nan"), float("inf")),
    *("", " ", "x", "1", "cpu", "cuda:1", "cuda\n", "a\tb", b"x", date(2020, 1, 1), np.float64(0.5), np.int64(1)),
    *([], [1], [[1]], [[1, None]], [0.5, 1], [0.5, 1.0], [1, 2, 3], ["x", 1], [True, 1], (0.5, 1), (2, 2), (1,), {}),
    *({"x": 1}, {"1.3": 0.5}, {1: 2}, {1.5: 1}, {True: 0.5}, {None: 1}, {"x": "y", 2: 3}, {"layers": 0, "x": 1, 7: 8}),
    *([{}], [{"name": "x"}], [{"name": "x"}, {"name": "x"}], [{"name": "x", "set": {1: 2}}, {"n": 1}], [{"name": 1}]),
]  # fmt: skip


@cache
def classes() -> dict[str, type[Config]]:
    """Every config class of the package."""
    for module in MODULES:
        importlib.import_module(module)
    found = Config.__subclasses__()
    for one in found:  # it grows meanwhile
        found += one.__subclasses__()
    return {one.__name__: one for one in found}


def words_of(hint: Any) -> set[str]:
    """What a Literal somewhere in an annotation allows."""
    return {hint} if isinstance(hint, str) else set().union(*map(words_of, get_args(hint)))


def outcome(name: str, values: Any) -> Any:
    """All that one sees of a config: what is made of the values, or what is said of them."""
    try:
        config = classes()[name].model_validate(values)
    except ValidationError as error:
        return validation_message(error, "source"), [item["loc"] for item in error.errors()]
    key = next(iter(type(config).model_fields))
    copied = config.model_copy(update={key: "other"})
    equal = [config == other for other in (classes()[name].model_validate(values), copy.deepcopy(config), copied, 1)]
    with pytest.raises(ValidationError) as caught:
        setattr(config, key, 1)
    frozen = validation_message(caught.value, "source")
    return *map(repr, (config, copied, config.model_dump(), config.model_dump(mode="json"))), equal, frozen


def read(path: Path) -> Any:
    """A config file, and its members."""
    from icl_fast.runs import TextRunConfig, load_config
    from icl_fast.runs.population import members

    config = load_config(path)
    if isinstance(config, TextRunConfig):
        return config.to_yaml()
    return config.to_yaml(), [(member.name, member.config.to_yaml()) for member in members(config)]


def parse(values: Any) -> Any:
    from icl_fast.runs import parse_config

    try:
        return parse_config(values).to_yaml()
    except InputError as error:
        return str(error)


def serve() -> None:
    """Answer the questions that come in, in a process without pydantic."""
    assert schema.Field.__module__ == "icl_fast.plain_schema"
    sys.set_int_max_str_digits(0)
    while True:
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(globals()[name](*arguments), sys.stdout.buffer)
        sys.stdout.buffer.flush()


def python(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", "-c", HIDE + program, *arguments]
    return subprocess.Popen(command, cwd=PACKAGE.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.fixture(scope="module")
def without() -> Iterator[Callable[..., Any]]:
    """Calls a function of this file where pydantic is hidden."""
    with python(SERVE, __file__) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(name: str, *arguments: Any) -> Any:
            pickle.dump((name, arguments), process.stdin)
            process.stdin.flush()
            return pickle.load(process.stdout)

        yield ask
        process.stdin.close()


def test_pydantic_is_what_is_compared_with() -> None:
    assert schema.Field.__module__.startswith("pydantic")
    assert {"ModelShape", "TransformerConfig", "ExemplarRunConfig", "MemberConfig", "DataConfig"} <= classes().keys()


@pytest.mark.parametrize("name", sorted(classes()))
def test_any_value_of_any_key(name: str, without: Callable[..., Any]) -> None:
    needed, hints, accepted = NEEDED.get(name, {}), get_type_hints(classes()[name]), 0
    for values in ({}, needed, {**needed, "unknown": 1, "Other": None}, *JUNK):
        assert without("outcome", name, values) == outcome(name, values)
    for key in classes()[name].model_fields:
        for value in (*JUNK, *sorted(words_of(hints[key]))):
            values = {**needed, key: value}
            expected = outcome(name, values)
            assert without("outcome", name, values) == expected
            accepted += len(expected) > 2
    assert accepted >= len(classes()[name].model_fields)  # not refusals alone


@settings(max_examples=300)
@given(data=st.data())
def test_any_values_of_many_keys(without: Callable[..., Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(classes())))
    keys = st.sampled_from([*classes()[name].model_fields, "unknown"])
    values = {**NEEDED.get(name, {}), **data.draw(st.dictionaries(keys, st.sampled_from(JUNK), max_size=6))}
    assert without("outcome", name, values) == outcome(name, values)


# but the lists of trainings that claims rest on
CONFIGS = sorted({*(ROOT / "configs").rglob("*.yaml")} - {*(ROOT / "configs" / "reproduction").glob("*.yaml")})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file(path: Path, without: Callable[..., Any]) -> None:
    assert without("read", path) == read(path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({1: 2}, "config: 1: keys should be strings, got 1"),
        ({"training": {"lr": "fast", "steps": 0}, "colour": 1},
         "config: training.steps: input should be greater than or equal to 1, got 0; training.lr: input should be a "
         "valid number, got 'fast'; colour: unknown key"),
        ({"training": {"lr": "fast", "steps": 0}, "sequences": {"colour": 1}},
         "config: sequences.colour: unknown key; training.steps: input should be greater than or equal to 1, got 0; "
         "training.lr: input should be a valid number, got 'fast'"),
    ],
)  # fmt: skip
def test_what_a_user_reads(values: Any, said: str, without: Callable[..., Any]) -> None:
    assert parse(values) == without("parse", values) == said


@pytest.mark.parametrize("values", [{}, {"sequences": {}}], ids=["text", "exemplars"])
def test_every_default(values: Any, without: Callable[..., Any]) -> None:
    assert parse(values) == without("parse", values)
    assert "training:" in parse(values)


def test_models_measuring_and_training_run() -> None:
    with python(RUN) as process:
        out, _ = process.communicate(timeout=300)
    assert (process.returncode, out) == (0, b"ran (6, 2)\n")


def test_what_only_pydantic_has_is_refused() -> None:
    from icl_fast import plain_schema

    with pytest.raises(TypeError, match="multiple_of: only pydantic's has that"):
        plain_schema.Field(1, multiple_of=2)
