"""The config refuses what cannot be built, in words, and every shape it accepts can be built, run and stored."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_fast.errors import InputError
from icl_fast.models import ModelShape, Transformer, TransformerConfig, parse_transformer_config
from icl_fast.models.sizes import parameter_count
from icl_fast.schema import ValidationError

GOOD: dict[str, Any] = {"layers": 2, "width": 12, "heads": 3, "vocab": 11, "context": 16}


def test_defaults_are_the_papers_small_models() -> None:
    shape = ModelShape()
    assert (shape.mlp, shape.position, shape.key, shape.windows) == (False, "shortformer", "plain", None)
    assert shape.d_head == 32
    assert ModelShape(head_width=5).d_head == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 2}, "model.layer: unknown key"),
        ({"Width": 12}, "model.Width: unknown key"),
        # strict: nothing is converted quietly
        ({"layers": "2"}, "model.layers: input should be a valid integer, got '2'"),
        ({"layers": 2.0}, "model.layers: input should be a valid integer, got 2.0"),
        ({"layers": True}, "model.layers: input should be a valid integer, got True"),
        ({"layers": None}, "model.layers: input should be a valid integer, got None"),
        ({"mlp": 1}, "model.mlp: input should be a valid boolean, got 1"),
        ({"mlp": "true"}, "model.mlp: input should be a valid boolean, got 'true'"),
        ({"norm_eps": "1e-5"}, "model.norm_eps: input should be a valid number, got '1e-5'"),
        ({"position": "Rotary"}, "model.position: input should be 'learned', 'sinusoidal', 'shortformer', 'rotary', 'alibi' or 'none', got 'Rotary'"),  # noqa: E501
        ({"key": None}, "model.key: input should be 'plain' or 'smeared', got None"),
        ({"activation": "tanh"}, "model.activation: input should be 'gelu', 'gelu_tanh', 'silu', 'relu', 'solu' or 'solu_plain', got 'tanh'"),  # noqa: E501
        # ranges
        ({"layers": 0}, "model.layers: input should be greater than or equal to 1, got 0"),
        ({"heads": -3}, "model.heads: input should be greater than or equal to 1, got -3"),
        ({"vocab": 0}, "model.vocab: input should be greater than or equal to 1, got 0"),
        ({"head_width": 0}, "model.head_width: input should be greater than or equal to 1, got 0"),
        ({"norm_eps": 0.0}, "model.norm_eps: input should be greater than 0, got 0.0"),
        ({"rotary_fraction": 1.5}, "model.rotary_fraction: input should be less than or equal to 1, got 1.5"),
        ({"rotary_base": 1}, "model.rotary_base: input should be greater than 1, got 1"),
        ({"rotary_base": float("inf")}, "model.rotary_base: input should be a finite number, got inf"),
        ({"norm_eps": float("nan")}, "model.norm_eps: input should be a finite number, got nan"),
        ({"init_std": float("inf")}, "model.init_std: input should be a finite number, got inf"),
        # what must fit together
        ({"heads": 5}, "model: heads=5 does not divide width=12: choose other heads, or set head_width"),
        ({"position": "rotary", "head_width": 5}, "model: rotary positions rotate pairs, but 5 dimensions of a head is odd"),  # noqa: E501
        ({"position": "rotary", "rotary_fraction": 0.75}, "model: rotary positions rotate pairs, but 3 dimensions of a head is odd"),  # noqa: E501
        ({"position": "rotary", "rotary_fraction": 0.2}, "model: rotary_fraction=0.2 of a head width of 4 leaves nothing to rotate"),  # noqa: E501
        ({"windows": [[1, 2, 3]]}, "model: windows must be 2 lists of 3 entries, got lists of [3]"),
        ({"windows": [[1, 2], [1, 2, 3]]}, "model: windows must be 2 lists of 3 entries, got lists of [2, 3]"),
        ({"windows": []}, "model: windows must be 2 lists of 3 entries, got lists of []"),
        ({"windows": [[1, 2, 3], [1, 0, 3]]}, "model: windows: a window counts the position itself, so it is 1 to 2147483647 (null: dense)"),  # noqa: E501
        ({"windows": [[1, 2, 3], [1, None, 3.0]]}, "model.windows.1.2: input should be a valid integer, got 3.0"),
        ({"windows": 4}, "model.windows: input should be a valid list, got 4"),
    ],
)  # fmt: skip
def test_message(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_transformer_config({**GOOD, **changes})
    assert str(caught.value) == message


@pytest.mark.parametrize("key", ["vocab", "context"])
def test_a_missing_key(key: str) -> None:
    with pytest.raises(InputError, match=rf"^experiment\.model\.{key}: missing$"):
        parse_transformer_config({k: v for k, v in GOOD.items() if k != key}, source="experiment.model")


def test_all_findings_in_one_line() -> None:
    with pytest.raises(InputError) as caught:
        parse_transformer_config({**GOOD, "layers": 0, "mlp": "no\nway", "colour": "red"})
    findings = str(caught.value).split("; ")
    assert [finding.partition(":")[0] for finding in findings] == ["model.layers", "model.mlp", "model.colour"]
    assert "\n" not in str(caught.value)


def test_a_config_does_not_change(build: Any) -> None:
    """A model would no longer be what its config says."""
    with pytest.raises(ValidationError, match="frozen"):
        build().config.layers = 3


def test_whole_numbers_are_good_enough_for_a_real_one() -> None:
    config = parse_transformer_config({**GOOD, "rotary_base": 500, "rotary_fraction": 1})
    assert config.rotary_base == 500.0
    assert isinstance(config.rotary_base, float)


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """Any valid shape, small."""
    layers, heads = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    position = draw(st.sampled_from(["learned", "sinusoidal", "shortformer", "rotary", "none"]))
    d_head = 2 * draw(st.integers(1, 4)) if position == "rotary" else draw(st.integers(1, 7))
    of_width = draw(st.booleans())  # the head width follows from the width, or is given
    values: dict[str, Any] = {
        "layers": layers,
        "heads": heads,
        "width": heads * d_head if of_width else draw(st.integers(1, 16)),
        "head_width": None if of_width else d_head,
        "position": position,
        "vocab": draw(st.integers(1, 20)),
        "context": draw(st.integers(1, 12)),
        "rotary_fraction": 2 * draw(st.integers(1, d_head // 2)) / d_head if position == "rotary" else 1.0,
        "rotary_base": draw(st.floats(1.1, 1e6)),
        "rotary_interleaved": draw(st.booleans()),
        "norm_eps": draw(st.floats(1e-12, 1.0)),
        "init_std": draw(st.none() | st.floats(1e-3, 1.0)),
        "mlp_ratio": draw(st.integers(1, 4)),
        "activation": draw(st.sampled_from(["gelu", "gelu_tanh"])),
        "key": draw(st.sampled_from(["plain", "smeared"])),
        **{name: draw(st.booleans()) for name in ("mlp", "norm_affine", "attention_bias", "unembed_bias")},
    }
    if draw(st.booleans()):
        row = st.lists(st.none() | st.integers(1, 20), min_size=heads, max_size=heads)
        values["windows"] = draw(st.lists(row, min_size=layers, max_size=layers))
    return values


@settings(max_examples=60)
@given(values=shapes())
def test_any_valid_shape_builds_runs_and_is_stored(values: dict[str, Any]) -> None:
    config = parse_transformer_config(values)
    assert TransformerConfig.model_validate_json(config.model_dump_json()) == config
    assert parse_transformer_config(json.loads(config.model_dump_json())) == config
    assert parse_transformer_config(json.loads(json.dumps(config.model_dump(mode="json")))) == config

    torch.manual_seed(0)
    model = Transformer(config)
    tokens = torch.randint(config.vocab, (2, config.context))
    logits, recorded = model(tokens, record=["0.pattern", f"{config.layers - 1}.z"])
    assert logits.shape == (2, config.context, config.vocab)
    assert recorded[f"{config.layers - 1}.z"].shape == (2, config.heads, config.context, config.d_head)
    assert logits.isfinite().all()
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.double()  # with large weights and three layers, float32 rounding would not tell right from wrong
    explicit, _ = model(tokens, record=[f"{layer}.pattern" for layer in range(config.layers)])
    torch.testing.assert_close(model(tokens), explicit, rtol=1e-9, atol=1e-9)


@settings(max_examples=60)
@given(
    values=shapes(),
    key=st.sampled_from(sorted(TransformerConfig.model_fields)),
    junk=st.sampled_from(["x", [], {}, -1]),
)
def test_any_key_with_junk_is_named(values: dict[str, Any], key: str, junk: object) -> None:
    with pytest.raises(InputError, match=rf"\bmodel\.{key}\b|\b{key}\b"):
        parse_transformer_config({**values, key: junk})


# --- sizes -----------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(values=shapes())
def test_parameters_are_counted_before_anything_is_built(values: dict[str, Any]) -> None:
    config = parse_transformer_config(values)
    built = sum(weight.numel() for weight in Transformer(config).parameters())
    assert parameter_count(Transformer, config) == built


@pytest.mark.parametrize(
    "changes",
    [
        *({key: 10**9} for key in ("head_width", "vocab", "context")),
        {"width": 999_999_999},
        {"layers": 1000, "width": 100_000, "heads": 1},
        {"width": 2**31 - 1, "heads": 1, "head_width": 2**31 - 1},
        {"mlp": True, "mlp_ratio": 10**9},
        {"mlp": True, "mlp_ratio": 2**31 - 1, "width": 3 * 2**29},
        {"heads": 10**8, "width": 10**8},
        {"context": 2**31 - 1, "vocab": 2**31 - 1},
    ],
)
def test_a_model_larger_than_memory_is_refused_at_once(changes: dict[str, Any]) -> None:
    values = {**GOOD, "position": "learned", "width": 300, **changes}
    with pytest.raises(InputError, match=r"^layers \d+, width \d+, .*: needs .*TiB of memory and .* are free"):
        Transformer(parse_transformer_config(values))


@pytest.mark.parametrize(
    "key", sorted(k for k, v in TransformerConfig.model_fields.items() if "int" in str(v.annotation))
)
def test_no_dimension_is_endless(key: str) -> None:
    for value in (10**4000, 2**63, 2**31):
        with pytest.raises(InputError, match=rf"^model(\.{key})?: ") as caught:
            parse_transformer_config({**GOOD, key: [[value] * 3] * 2 if key == "windows" else value})
        assert len(str(caught.value)) < 400


def test_on_another_device_memory_is_for_it_to_say() -> None:
    with torch.device("meta"):
        assert Transformer(parse_transformer_config({**GOOD, "vocab": 10**9})).embed.weight.shape == (10**9, 12)
