"""Recording and intervening at every site, against the forward pass written out once more with plain index assignment.

The model under test has everything at once: shortformer positions, smeared keys, MLPs, all biases, a head width that
is not width / heads. Batch, length, heads, head width, width and vocabulary all differ: no axis can be confused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.models import LAYER_SITES, Intervention, Transformer
from icl_fast.models.interventions import named_sites

Build = Callable[..., Transformer]
Edit = Callable[[str, Tensor], Tensor]

B, T, H, D, C, V, L = 4, 7, 3, 5, 12, 11, 2
FULL = {
    "head_width": D, "mlp": True, "key": "smeared", "position": "shortformer", "attention_bias": True,
    "unembed_bias": True, "windows": [[None, 3, None], [2, None, None]],
}  # fmt: skip
HEAD_SITES = ["q", "k", "v", "scores", "pattern", "z", "head_out"]
SITES = ["embed", *(f"{layer}.{name}" for layer in range(L) for name in LAYER_SITES), "final_norm", "logits"]
SHAPES = {"q": (B, H, T, D), "k": (B, H, T, D), "v": (B, H, T, D), "z": (B, H, T, D), "head_out": (B, H, T, C),
          "scores": (B, H, T, T), "pattern": (B, H, T, T), "logits": (B, T, V)}  # fmt: skip
TOKENS = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(3))


def has_heads(site: str) -> bool:
    return site.partition(".")[2] in HEAD_SITES


def shape_of(site: str) -> tuple[int, ...]:
    return SHAPES.get(site.rpartition(".")[2], (B, T, C))


def random_like(site: str, seed: int = 5) -> Tensor:
    return torch.randn(shape_of(site), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def recompute(model: Transformer, tokens: Tensor, edit: Edit = lambda _, x: x) -> dict[str, Tensor]:
    """Every site of a forward pass, written out from the weights; `edit(site, value)` returns what goes on."""
    w = dict(model.named_parameters())
    seen: dict[str, Tensor] = {}

    def at(name: str, value: Tensor) -> Tensor:
        seen[name] = edit(name, value)
        return seen[name]

    def affine(name: str, value: Tensor) -> Tensor:
        return value @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    length = tokens.shape[1]
    x = at("embed", w["embed.weight"][tokens])
    for layer in range(L):
        a = f"blocks.{layer}.attention"
        x = at(f"{layer}.resid_pre", x)
        normed = norm(f"blocks.{layer}.norm1", x)
        located = normed + w["position.weight"][:length]
        q, k, v = (
            torch.stack(affine(f"{a}.{part}", source).split(D, -1), 1)
            for part, source in (("q", located), ("k", located), ("v", normed))
        )
        q = at(f"{layer}.q", q)
        share = 1 / (1 + torch.exp(-w[f"{a}.alpha"]))[None, :, None, None]
        k = at(f"{layer}.k", share * k + (1 - share) * k[:, :, [0, *range(length - 1)]])
        v = at(f"{layer}.v", v)
        scores = at(f"{layer}.scores", torch.einsum("bhid,bhjd->bhij", q, k) / D**0.5)
        weights = []
        for head in range(H):
            window = FULL["windows"][layer][head] or length  # type: ignore[index]
            seen_by = torch.tensor([[0 <= i - j < window for j in range(length)] for i in range(length)])
            e = torch.where(seen_by, scores[:, head], -torch.inf).exp()
            weights.append(e / e.sum(-1, keepdim=True))
        pattern = at(f"{layer}.pattern", torch.stack(weights, 1))
        z = at(f"{layer}.z", torch.einsum("bhij,bhjd->bhid", pattern, v))
        w_o = w[f"{a}.out.weight"].split(D, 1)
        head_out = at(f"{layer}.head_out", torch.stack([z[:, head] @ w_o[head].T for head in range(H)], 1))
        x = at(f"{layer}.resid_mid", x + at(f"{layer}.attn_out", head_out.sum(1) + w[f"{a}.out.bias"]))
        inner = affine(f"blocks.{layer}.mlp.0", norm(f"blocks.{layer}.norm2", x))
        mlp_out = affine(f"blocks.{layer}.mlp.2", inner * (1 + torch.erf(inner / 2**0.5)) / 2)
        x = at(f"{layer}.resid_post", x + at(f"{layer}.mlp_out", mlp_out))
    at("logits", affine("unembed", at("final_norm", norm("final_norm", x))))
    return seen


def selected(site: str, where: dict[str, Any]) -> Tensor:
    """The places an intervention holds at, as a mask of the site's whole shape, one place at a time."""
    out = torch.zeros(shape_of(site), dtype=torch.bool)
    mask = where.get("mask")
    for index in itertools.product(*map(range, out.shape[: 3 if has_heads(site) else 2])):
        b, t = index[0], index[-1]
        inside = b in where.get("examples", range(B)) and t in where.get("positions", range(T))
        if has_heads(site):
            inside = inside and index[1] in where.get("heads", range(H))
        if inside:
            out[index] = True if mask is None else mask[index[: mask.ndim]]
    return out


def restrictions(site: str) -> list[dict[str, Any]]:
    """Nowhere restricted, by each argument alone, and by all of them together."""

    def mask(ndim: int) -> Tensor:
        shape = shape_of(site)[:ndim]
        return (torch.arange(math.prod(shape)) * 7 % 13 < 7).view(shape)  # 13 divides no axis: no two rows are alike

    heads = [{"heads": [0, 2]}, {"heads": [1]}] if has_heads(site) else []
    every = {"positions": [5, 1, 2], "examples": [0, 3], "mask": mask(len(shape_of(site)))}
    return [
        {}, *heads, {"positions": [2]}, {"positions": [6, 3]}, {"examples": [1, 3]},
        {"mask": mask(1)}, {"mask": mask(2)}, {"mask": mask(len(shape_of(site)))},
        every | ({"heads": [2, 0]} if heads else {}),
    ]  # fmt: skip


def gradients(model: Transformer, logits: Tensor) -> dict[str, Tensor | None]:
    names, weights = zip(*model.named_parameters(), strict=True)
    # cubes: unlike a sum they weigh every logit differently, and unlike squares also its sign
    grads = torch.autograd.grad(logits.pow(3).mean(), weights, allow_unused=True)
    return dict(zip(names, grads, strict=True))


@pytest.fixture(scope="module")
def model(build: Build) -> Transformer:
    return build(dtype=torch.float64, **FULL)


# --- recording -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", SITES)
def test_recorded_value(model: Transformer, site: str) -> None:
    """Its shape is the documented one, its value that of the pass written out, and recording alters nothing."""
    logits, recorded = model(TOKENS, record=[site])
    assert list(recorded) == [site]
    assert recorded[site].shape == shape_of(site)
    expected = recompute(model, TOKENS)
    value = recorded[site]
    if site.endswith("scores"):  # before the mask: what lies above the diagonal is defined too
        assert value.isfinite().all()
    torch.testing.assert_close(value, expected[site], rtol=0, atol=1e-12)
    torch.testing.assert_close(logits, model(TOKENS), rtol=0, atol=1e-12)


def test_record_all_sites_or_none(model: Transformer) -> None:
    logits, recorded = model(TOKENS, record=SITES)
    assert set(recorded) == set(SITES)
    assert recorded["logits"] is logits
    assert list(model(TOKENS, record="all")[1]) == SITES
    alone, nothing = model(TOKENS, record=[])
    assert nothing == {}
    assert torch.equal(alone, model(TOKENS))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("1.z", ["1.z"]),
        ("*.pattern", ["0.pattern", "1.pattern"]),
        ("1.*", [f"1.{name}" for name in LAYER_SITES]),
        ("0.resid_*", ["0.resid_pre", "0.resid_mid", "0.resid_post"]),
        (["1.z", "*.z", "logits", "1.z"], ["1.z", "0.z", "logits"]),
        (["all", "embed"], SITES),
    ],
)
def test_patterns_of_sites(model: Transformer, record: Any, expected: list[str]) -> None:
    """The same values as by name, each once, in the order asked for."""
    logits, found = model(TOKENS, record=record)
    same, by_name = model(TOKENS, record=expected)
    assert list(found) == expected
    assert torch.equal(logits, same)
    assert all(torch.equal(found[name], by_name[name]) for name in expected)
    inner = [name for name in expected if name != "logits"]
    assert set(model.hidden(TOKENS, record=inner)[1]) == set(inner)


def test_every_pattern_is_the_sites_that_it_spells(model: Transformer) -> None:
    for layer, name in itertools.product(["*", "0", "1"], ["*", *LAYER_SITES]):
        expected = [
            f"{one}.{other}"
            for one in range(L)
            for other in LAYER_SITES
            if layer in ("*", str(one)) and name in ("*", other)
        ]
        assert named_sites(f"{layer}.{name}", model.config) == tuple(expected)


def test_every_site_without_mlps(build: Build) -> None:
    _, found = build(mlp=False)(TOKENS, record="all")
    assert list(found) == [name for name in SITES if not name.endswith("mlp_out")]


def test_sites_without_a_reader_of_their_own(model: Transformer) -> None:
    """resid_post of a layer is resid_pre of the next; the last one is what the final norm reads."""
    _, r = model(TOKENS, record=SITES)
    assert torch.equal(r["0.resid_post"], r["1.resid_pre"])
    assert torch.equal(r["embed"], r["0.resid_pre"])
    torch.testing.assert_close(r["final_norm"], model.final_norm(r["1.resid_post"]))


# --- every site, every action, every restriction ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("site", SITES)
def test_setting_the_recorded_value_changes_nothing(build: Build, site: str, dtype: torch.dtype) -> None:
    """Bit for bit, wherever it is set."""
    model = build(dtype=dtype, **FULL)
    with torch.no_grad():
        logits, recorded = model(TOKENS, record=[site])
        for where in restrictions(site):
            again = model(TOKENS, interventions=[Intervention.set(site, recorded[site], **where)])
            assert torch.equal(again, logits), where


@pytest.mark.parametrize("action", ["zero", "set", "apply"])
@pytest.mark.parametrize("site", SITES)
def test_effect_and_gradients(model: Transformer, site: str, action: str) -> None:
    """Logits and the gradient of every weight equal those of the written-out pass edited by index assignment."""
    value = random_like(site)

    def function(x: Tensor) -> Tensor:
        return torch.sin(x) * 0.7 + 0.3 * x.flip(0)  # across examples: it is given the whole tensor

    for where in restrictions(site):
        inside = selected(site, where)
        intervention = {
            "zero": lambda w=where: Intervention.zero(site, **w),
            "set": lambda w=where: Intervention.set(site, value, **w),
            "apply": lambda w=where: Intervention.apply(site, function, **w),
        }[action]()

        def edit(name: str, x: Tensor, inside: Tensor = inside) -> Tensor:
            if name != site:
                return x
            new = {"zero": torch.zeros_like(x), "set": value}[action] if action != "apply" else function(x)
            x = x.clone()
            x[inside] = new[inside]
            return x

        logits, recorded = model(TOKENS, record=[site], interventions=[intervention])
        expected = recompute(model, TOKENS, edit)
        torch.testing.assert_close(recorded[site], expected[site], rtol=0, atol=1e-12)
        torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=1e-12)
        if not logits.requires_grad:  # all logits replaced
            assert site == "logits"
            continue
        truth = gradients(model, expected["logits"])
        for name, gradient in gradients(model, logits).items():
            right = truth[name]
            # "no gradient" and "a gradient of 0" are the same to a formula
            a, b = (torch.zeros(()) if g is None else g for g in (gradient, right))
            scale = max(1.0, b.abs().max().item())
            torch.testing.assert_close(
                a.expand_as(b) if a.ndim == 0 else a, b.expand_as(a) if b.ndim == 0 else b,
                rtol=0, atol=1e-11 * scale, check_dtype=False, msg=lambda m, n=name, w=where: f"{n} {w}: {m}",
            )  # fmt: skip


@pytest.mark.parametrize("site", SITES)
def test_outside_the_selection_every_bit_stays(build: Build, site: str) -> None:
    """The site itself, the other examples' logits, and the logits before the first position touched."""
    model = build(**FULL)
    value = random_like(site).float()
    with torch.no_grad():
        logits, recorded = model(TOKENS, record=[site])
        for where in restrictions(site)[1:]:
            inside = selected(site, where)
            assert inside.any()
            other, after = model(TOKENS, record=[site], interventions=[Intervention.set(site, value, **where)])
            assert torch.equal(after[site][~inside], recorded[site][~inside])
            assert torch.equal(after[site][inside], value[inside])
            examples = inside.flatten(1).any(1)
            assert torch.equal(other[~examples], logits[~examples])
            axis = 2 if has_heads(site) else 1
            touched = inside.transpose(1, axis).flatten(2).any(-1)  # [B,T]
            for b in range(B):
                first = touched[b].int().argmax().item() if touched[b].any() else T
                assert torch.equal(other[b, :first], logits[b, :first])
            assert not torch.equal(other, logits)


@pytest.mark.parametrize(
    "site", [f"{layer}.{name}" for layer in range(L) for name in ("v", "pattern", "z", "head_out")]
)
@pytest.mark.parametrize("head", range(H))
def test_removing_a_head(model: Transformer, site: str, head: int) -> None:
    """Zeroing z, v, the pattern or the result of a head is zeroing its columns of the output projection."""
    without = {n: w.clone() for n, w in model.state_dict().items()}
    without[f"blocks.{site[0]}.attention.out.weight"][:, head * D : (head + 1) * D] = 0
    expected = torch.func.functional_call(model, without, (TOKENS,))
    removed = model(TOKENS, interventions=[Intervention.zero(site, heads=[head])])
    torch.testing.assert_close(removed, expected, rtol=0, atol=1e-12)


def test_several_interventions_apply_in_order(model: Transformer) -> None:
    value = random_like("1.z")
    steps = [
        Intervention.set("1.z", value, heads=[0, 1]),
        Intervention.apply("1.z", lambda x: 2 * x + 1, positions=[2, 3, 4]),
        Intervention.zero("1.z", positions=[3]),
        Intervention.zero("0.attn_out", examples=[1]),
    ]
    logits, r = model(TOKENS, record=["1.z", "0.attn_out"], interventions=steps)
    _, before = model(TOKENS, record=["1.z"], interventions=steps[3:])
    expected = before["1.z"].clone()
    expected[:, :2] = value[:, :2]
    expected[:, :, 2:5] = 2 * expected[:, :, 2:5] + 1
    expected[:, :, 3] = 0
    assert torch.equal(r["1.z"], expected)
    assert not r["0.attn_out"][1].any()
    assert r["0.attn_out"][0].all()
    assert not torch.equal(model(TOKENS, interventions=steps[::-1]), logits)


def test_a_function_of_earlier_sites(model: Transformer) -> None:
    """It reads what went on from them, recorded or not, and gradients flow to them."""
    halved = Intervention.apply("0.z", lambda z: z / 2, heads=[1])
    swapped = Intervention.apply(
        "1.z", lambda z, before, pattern: before + pattern.sum() * z, reads=["0.z", "1.pattern"], heads=[0]
    )
    logits, r = model(TOKENS, record=["1.z", "0.z"], interventions=[swapped, halved])
    assert set(r) == {"1.z", "0.z"}
    _, plain = model(TOKENS, record=["1.z", "1.pattern"], interventions=[halved])
    torch.testing.assert_close(r["1.z"][:, 1:], plain["1.z"][:, 1:], rtol=0, atol=1e-12)
    expected = r["0.z"] + plain["1.pattern"].sum() * plain["1.z"]
    torch.testing.assert_close(r["1.z"][:, 0], expected[:, 0], rtol=0, atol=1e-11)
    only_read = Intervention.apply("logits", lambda logits, z: logits * 0 + z.sum(), reads=["0.head_out"])
    gradient = torch.autograd.grad(model(TOKENS, interventions=[only_read]).sum(), model.blocks[0].attention.out.weight)
    assert gradient[0].all()
    assert not torch.equal(logits, model(TOKENS, interventions=[halved]))


@pytest.mark.parametrize(
    ("site", "reads", "message"),
    [
        ("0.z", "0.z", r"'0\.z': reads '0\.z', which is not before it"),
        ("1.q", "1.k", "'1.k', which is not before it"),
        ("0.resid_post", "1.resid_pre", "not before it"),
        ("embed", "0.q", "not before it"),
        ("1.z", "final_norm", "not before it"),
        ("logits", "2.z", "no site '2.z'"),
    ],
)
def test_only_earlier_sites_can_be_read(model: Transformer, site: str, reads: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model(TOKENS, interventions=[Intervention.apply(site, lambda value, other: value, reads=[reads])])


def test_a_value_of_another_precision_is_cast(build: Build) -> None:
    model = build(**FULL)
    value = random_like("0.z")
    _, recorded = model(TOKENS, record=["0.z"], interventions=[Intervention.set("0.z", value)])
    assert torch.equal(recorded["0.z"], value.float())


def test_on_embeddings_given_in_place_of_tokens(model: Transformer) -> None:
    zero = [Intervention.zero("0.pattern", heads=[1]), Intervention.zero("embed", positions=[0])]
    embeddings = model.embed(TOKENS)
    assert torch.equal(model(embeddings, interventions=zero), model(TOKENS, interventions=zero))


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["embed", "0.k", "0.scores", "0.pattern", "1.z", "1.resid_mid", "final_norm"])
def test_gradients_by_finite_differences(model: Transformer, site: str) -> None:
    """With respect to the embeddings, in float64, through a replaced, a scaled and an untouched part of the site."""
    value = random_like(site)[:1, ..., :3] if site.endswith(("scores", "pattern")) else random_like(site)[:1]
    value = value[:, :, :3] if has_heads(site) else value[:, :3]
    interventions = [
        Intervention.set(site, value, positions=[1]),
        Intervention.apply(site, lambda x: x.sin() + x * x, positions=[2]),
    ]
    embeddings = torch.randn(1, 3, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.autograd.gradcheck(
        lambda e: model(e, interventions=interventions)[..., :4], embeddings.requires_grad_(), fast_mode=False
    )


UNREACHED = {  # forced everywhere in layer 1 -> what no gradient reaches
    "1.q": ["attention.q"],
    "1.k": ["attention.k", "attention.alpha"],
    "1.v": ["attention.v"],
    "1.scores": ["attention.q", "attention.k", "attention.alpha"],
    "1.pattern": ["attention.q", "attention.k", "attention.alpha"],
    "1.z": ["norm1", "attention.q", "attention.k", "attention.alpha", "attention.v"],
    "1.head_out": ["norm1", "attention.q", "attention.k", "attention.alpha", "attention.v", "attention.out.weight"],
    "1.attn_out": ["norm1", "attention"],
    "1.mlp_out": ["norm2", "mlp"],
}


@pytest.mark.parametrize("action", ["zero", "set"])
@pytest.mark.parametrize("site", UNREACHED)
def test_training_leaves_what_is_forced_away_alone(build: Build, site: str, action: str) -> None:
    """Three AdamW steps: those weights get no gradient, so not even weight decay moves them; all others move."""
    model = build(**FULL)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    value = torch.softmax(random_like(site).float(), -1) if site == "1.pattern" else random_like(site).float()
    force = Intervention.zero(site) if action == "zero" else Intervention.set(site, value)
    for _ in range(3):
        optimizer.zero_grad()
        logits = model(TOKENS, interventions=[force])
        F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        unreached = any(name.startswith(f"blocks.1.{part}") for part in UNREACHED[site])
        assert (parameter.grad is None) == unreached, name
        assert torch.equal(parameter.detach(), before[name]) == unreached, name
        assert value.grad is None


def test_a_replaced_head_gets_a_gradient_of_zero_and_the_others_theirs(model: Transformer) -> None:
    grads = gradients(model, model(TOKENS, interventions=[Intervention.zero("1.z", heads=[1])]))
    for part in ("q", "k", "v"):
        gradient = grads[f"blocks.1.attention.{part}.weight"]
        assert gradient is not None
        by_head = gradient.view(H, D, C).abs().sum((1, 2))
        assert by_head[1] == 0
        assert by_head[0] > 0
        assert by_head[2] > 0


def test_a_set_value_may_itself_be_learned(model: Transformer) -> None:
    """Its gradient is that of the site where it was put, and 0 elsewhere."""
    value = random_like("0.z").requires_grad_()
    logits, r = model(TOKENS, record=["0.z"], interventions=[Intervention.set("0.z", value, heads=[2], examples=[1])])
    of_value, of_site = torch.autograd.grad(logits.pow(3).mean(), (value, r["0.z"]))
    assert of_value[1, 2].abs().sum() > 0
    assert torch.equal(of_value[1, 2], of_site[1, 2])
    of_value[1, 2] = 0
    assert not of_value.any()


@pytest.mark.parametrize("action", ["zero", "set"])
@pytest.mark.parametrize("site", SITES)
def test_nan_that_is_replaced_does_not_leak(model: Transformer, site: str, action: str) -> None:
    """Neither forward nor into any gradient: NaN and infinity stood there, at some places, before being replaced."""
    for where in restrictions(site)[1:]:
        poison = torch.where(selected(site, where), torch.nan, random_like(site))
        clean = torch.where(selected(site, where), random_like(site), torch.nan)  # NaN in the part that is not used
        replace = Intervention.zero(site, **where) if action == "zero" else Intervention.set(site, clean, **where)
        interventions = [Intervention.set(site, poison, **where), replace]
        logits = model(TOKENS, interventions=interventions)
        assert logits.isfinite().all()
        assert torch.equal(logits, model(TOKENS, interventions=interventions[1:]))
        assert all(g is None or g.isfinite().all() for g in gradients(model, logits).values())


def test_nan_scores_above_the_diagonal_are_masked(model: Transformer) -> None:
    poison = torch.full((B, H, T, T), torch.nan, dtype=torch.float64).triu(1)
    logits = model(TOKENS, interventions=[Intervention.apply("0.scores", lambda x: x + poison)])
    torch.testing.assert_close(logits, model(TOKENS), rtol=0, atol=1e-12)
    assert all(g is not None and g.isfinite().all() for g in gradients(model, logits).values())


BLIND: dict[str, Callable[[Tensor], Tensor]] = {  # what hides from some rows, or all, everything that they could see
    "the first key": lambda scores: scores.index_fill(-1, torch.tensor([0]), -torch.inf),
    "a row": lambda scores: scores.index_fill(-2, torch.tensor([3]), -torch.inf),
    "all": lambda scores: torch.full_like(scores, -torch.inf),
}


@pytest.mark.parametrize("shape", [{}, {"key": "plain", "windows": [[1, 2, None], [None, 1, 3]]}], ids=["", "windows"])
@pytest.mark.parametrize("hide", BLIND.values(), ids=BLIND)
def test_rows_that_see_nothing_are_zeros(build: Build, hide: Callable[[Tensor], Tensor], shape: dict[str, Any]) -> None:
    """In patterns and results, and no gradient is NaN; rows that see something are as ever."""
    model = build(**{**FULL, **shape}, dtype=torch.float64)
    names = [f"0.{name}" for name in ("scores", "pattern", "z", "head_out")]
    logits, sites = model(TOKENS, record=names, interventions=[Intervention.apply("0.scores", hide)])
    seen = model.blocks[0].attention._mask(T, TOKENS.device) & sites["0.scores"].isfinite()
    blind = ~seen.any(-1)
    assert blind.any()
    assert not sites["0.pattern"][blind].any()
    assert not sites["0.z"][blind].any()
    assert not sites["0.head_out"][blind].any()
    rows = sites["0.scores"].masked_fill(~seen, -torch.inf).softmax(-1)
    torch.testing.assert_close(sites["0.pattern"][~blind], rows[~blind])
    assert logits.isfinite().all()
    assert all(g is None or g.isfinite().all() for g in gradients(model, logits).values())


@pytest.mark.parametrize("where", [{}, {"positions": [2]}, {"examples": [0]}])
@pytest.mark.parametrize("inference", [False, True])
def test_a_function_may_not_change_what_others_hold(model: Transformer, where: dict[str, Any], inference: bool) -> None:
    """In place it would change what is outside the selection, and what was recorded before."""
    intervention = Intervention.apply("1.resid_pre", lambda value: value.mul_(2), **where)
    expected = model(TOKENS, interventions=[Intervention.apply("1.resid_pre", lambda value: value * 2, **where)])
    if inference:  # there nothing counts changes, and it is given a copy
        with torch.inference_mode():
            logits, sites = model(TOKENS, record=["0.resid_post"], interventions=[intervention])
            assert torch.equal(sites["0.resid_post"], model(TOKENS, record=["0.resid_post"])[1]["0.resid_post"])
        torch.testing.assert_close(logits, expected)
        return
    with torch.no_grad(), pytest.raises(InputError, match=r"'1.resid_pre': its function changes what it is given"):
        model(TOKENS, interventions=[intervention])


def test_a_tensor_on_another_device(model: Transformer) -> None:
    intervention = Intervention.set("0.z", torch.zeros(B, H, T, D, device="meta"))
    with pytest.raises(InputError, match=r"'0.z': the tensor is on meta, the site on cpu"):
        model(TOKENS, interventions=[intervention])
    doubled = Intervention.apply("0.z", lambda value: value.double())
    assert torch.equal(model(TOKENS, interventions=[doubled]), model(TOKENS))
