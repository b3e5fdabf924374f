"""Every wrong argument of a forward pass is refused with one line that names it; nothing broadcasts or wraps around."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.models import Intervention, Transformer

Build = Callable[..., Transformer]

B, T, H, D, C, V = 4, 7, 3, 5, 12, 11
TOKENS = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(3))
OUTER_SITES = ["embed", "final_norm", "logits"]
STREAM_SITES = ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]


@pytest.fixture(scope="module")
def model(build: Build) -> Transformer:
    return build(head_width=D, mlp=True)


@pytest.mark.parametrize(
    "name",
    ["", "z", "0.", ".z", "2.z", "-1.z", "00.z", "0.Z", "0.z ", "0.embed", "0.logits", "embed.z", "0.z.q", "².z"],
)
def test_unknown_site(model: Transformer, name: str) -> None:
    with pytest.raises(InputError, match=r"^record: no site .* in a model of 2 layers; sites are embed, .*resid_post$"):
        model(TOKENS, record=[name])
    with pytest.raises(InputError, match=r"^interventions: no site"):
        model(TOKENS, interventions=[Intervention.zero(name)])


@pytest.mark.parametrize("pattern", ["2.*", "*.nothing", "z*", "*.mlp"])
def test_a_pattern_of_no_site(model: Transformer, pattern: str) -> None:
    for record in (pattern, ["0.z", pattern]):
        with pytest.raises(InputError, match=r"^record: no site matches .* in a model of 2 layers; patterns are"):
            model(TOKENS, record=record)


def test_no_mlp_out_without_mlp(build: Build) -> None:
    with pytest.raises(InputError, match=r"^record: site '0.mlp_out' does not exist in an attention-only model$"):
        build(mlp=False)(TOKENS, record=["0.mlp_out"])
    with pytest.raises(
        InputError, match=r"^interventions: site '1.mlp_out' does not exist in an attention-only model$"
    ):
        build(mlp=False)(TOKENS, interventions=[Intervention.zero("1.mlp_out")])


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"heads": [-1]}, r"heads holds -1, but there are 3 \(0 to 2\)"),
        ({"heads": [0, 3]}, r"heads holds 3, but there are 3 \(0 to 2\)"),
        ({"positions": [7]}, r"positions holds 7, but there are 7 \(0 to 6\)"),
        ({"positions": [-1]}, r"positions holds -1, but there are 7"),
        ({"examples": [4]}, r"examples holds 4, but there are 4 \(0 to 3\)"),
        ({"heads": []}, r"heads is empty, .* leave it out to mean all of them"),
        ({"positions": ()}, r"positions is empty"),
        ({"examples": set()}, r"examples is empty"),
        ({"mask": torch.ones(B, H, T)}, r"mask must be bool .* got torch.float32 \[4, 3, 7\]"),
        ({"mask": torch.ones(B, T, dtype=torch.bool)}, r"mask must be bool with .* \[4, 3, 7, 5\], got .* \[4, 7\]"),
        ({"mask": torch.ones(1, H, T, dtype=torch.bool)}, r"mask .* got torch.bool \[1, 3, 7\]"),
        ({"mask": torch.ones(B, H, T, D, 1, dtype=torch.bool)}, r"mask .* \[4, 3, 7, 5, 1\]"),
    ],
)
def test_bad_selection(model: Transformer, where: dict[str, Any], message: str) -> None:
    for make in (
        lambda: Intervention.zero("1.z", **where),
        lambda: Intervention.set("1.z", torch.zeros(B, H, T, D), **where),
        lambda: Intervention.apply("1.z", torch.sin, **where),
    ):
        with pytest.raises(InputError, match=r"^intervention at '1.z': " + message):
            model(TOKENS, interventions=[make()])


@pytest.mark.parametrize("site", [*OUTER_SITES, *(f"1.{name}" for name in STREAM_SITES)])
def test_heads_at_a_site_without_heads(model: Transformer, site: str) -> None:
    with pytest.raises(InputError, match=r"heads were given, but this site has none$"):
        model(TOKENS, interventions=[Intervention.zero(site, heads=[0])])


@pytest.mark.parametrize("heads", [[0.5], [1.0], ["1"], "12", [True], 3, [[1]]])
def test_indices_are_integers(heads: Any) -> None:
    """1.7 must not quietly become head 1."""
    with pytest.raises(InputError, match=r"^intervention at '0.z': heads: must be "):
        Intervention.zero("0.z", heads=heads)


def test_indices_may_come_from_numpy_and_torch() -> None:
    assert Intervention.zero("0.z", heads=np.array([0, 2])).heads == (0, 2)
    assert Intervention.zero("0.z", heads=torch.tensor([0, 2])).heads == (0, 2)
    assert Intervention.zero("0.z", positions=range(2)).positions == (0, 1)


@pytest.mark.parametrize("shape", [(1, H, T, D), (H, T, D), (B, 1, T, D), (B, H, 1, D), (B, H, T, 1), (), (B, T, H, D)])
def test_nothing_broadcasts(model: Transformer, shape: tuple[int, ...]) -> None:
    message = r"^intervention at '1.z': the tensor has shape .* the site \[4, 3, 7, 5\]; give exactly that shape$"
    for where in ({}, {"heads": [1]}):
        with pytest.raises(InputError, match=message):
            model(TOKENS, interventions=[Intervention.set("1.z", torch.zeros(shape), **where)])
        with pytest.raises(InputError, match=message):
            model(TOKENS, interventions=[Intervention.apply("1.z", lambda _: torch.zeros(shape), **where)])


def test_hidden_has_no_logits(model: Transformer) -> None:
    for arguments in ({"record": ["logits"]}, {"interventions": [Intervention.zero("logits")]}):
        with pytest.raises(InputError, match=r"^hidden\(\) ends before the logits: .* with forward\(\)$"):
            model.hidden(TOKENS, **arguments)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (TOKENS[0], r"tokens must be integers \[B,T\], got torch.int64 \[7\]$"),
        (TOKENS[..., None], r"tokens must be integers \[B,T\], got torch.int64 \[4, 7, 1\]$"),
        (TOKENS > 3, r"tokens must be integers \[B,T\], got torch.bool"),
        (TOKENS[0].tolist(), r"tokens must be integers \[B,T\], got torch.int64 \[7\]$"),
        ([[0.0, 1.0]], r"tokens must be integers \[B,T\], got \[\[0.0, 1.0\]\]$"),
        ([[0, 1], [2]], r"tokens must be integers \[B,T\], got \[\[0, 1\], \[2\]\]$"),
        ("some text", r"tokens must be integers \[B,T\], got 'some text'$"),
        (None, r"tokens must be integers \[B,T\], got None$"),
        (TOKENS.float(), r"tokens: embeddings must be \[B,T,12\], got \[4, 7\]$"),
        (torch.zeros(B, T, C + 1), r"tokens: embeddings must be \[B,T,12\], got \[4, 7, 13\]$"),
        (torch.zeros(1, 17, dtype=torch.int64), r"tokens: 17 positions, but the model's position table holds 16$"),
        (torch.zeros(1, 17, C), r"tokens: 17 positions, but the model's position table holds 16$"),
        (torch.full((2, 3), V), r"tokens holds 11, but there are 11 \(0 to 10\)$"),
        (torch.tensor([[0, -1]]), r"tokens holds -1, but there are 11"),
        (np.array([[2**64 - 1]], np.uint64), r"tokens holds -1, but"),
        (torch.tensor([[0, V + 4]], dtype=torch.int32), r"tokens holds 15, but"),
    ],
)
def test_bad_tokens(model: Transformer, tokens: Tensor, message: str) -> None:
    for call in (model, model.hidden):
        with pytest.raises(InputError, match="^" + message):
            call(tokens)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Intervention.zero("0.z", heads=[1, 1]),
            r"^intervention at '0.z': heads holds a number twice: \(1, 1\)",
        ),
        (lambda: Intervention.apply("0.z", 5), r"^intervention at '0.z': function must be one, got 5"),
        (lambda: Intervention.apply("0.z", torch.sin, reads=None), r"^intervention at '0.z': reads: must be a list"),
        (
            lambda: Intervention.apply("0.z", lambda _: None),
            r"^intervention at '0.z': must put a tensor there, got None",
        ),
        (lambda: Intervention.set("0.z", 0.0), r"^intervention at '0.z': must put a tensor there, got 0.0"),
        (lambda: Intervention.zero("0.z", mask=[True]), r"^intervention at '0.z': mask must be bool .*, got \[True\]"),
        (lambda: Intervention.zero(3), r"^interventions: no site 3"),
        (lambda: "0.z", r"^interventions: must be a list of Intervention"),
    ],
)
def test_no_interventions(model: Transformer, make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model(TOKENS, interventions=[make()])


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("record", value) for value in (5, [5], Intervention.zero("0.z"))),
        *(("interventions", value) for value in (5, "0.z", [5], Intervention.zero("0.z"))),
    ],
)
def test_lists_are_lists(model: Transformer, argument: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^{argument}: must be a list of "):
        model(TOKENS, **{argument: value})


def test_messages_are_one_line(model: Transformer) -> None:
    for bad in (Intervention.zero("nowhere"), Intervention.zero("0.z", heads=[9]), Intervention.set("0.z", TOKENS)):
        with pytest.raises(InputError) as caught:
            model(TOKENS, interventions=[bad])
        assert "\n" not in str(caught.value)
