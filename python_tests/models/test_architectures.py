"""Every position kind, key kind, MLP and window: what the architecture promises, checked from outside."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from icl_fast.models import Intervention, Transformer, TransformerConfig

Build = Callable[..., Transformer]
DrawTokens = Callable[..., Tensor]

POSITIONS = ["learned", "sinusoidal", "shortformer", "rotary", "none"]
WINDOWS = [[1, 3, None], [None, 2, 100]]  # of SMALL's two layers of three heads
VARIANTS = [
    pytest.param(
        {"position": position, "key": key, "mlp": mlp, "windows": windows},
        id=f"{position}-{key}-{'mlp' if mlp else 'attention'}-{'local' if windows else 'dense'}",
    )
    for position, key, mlp, windows in itertools.product(
        POSITIONS, ["plain", "smeared"], [False, True], [None, WINDOWS]
    )
]
EXPLICIT = ["0.pattern", "1.pattern"]  # recording a pattern takes attention off the fused route
ATTENTION = ["0.scores", "0.pattern", "1.scores", "1.pattern"]


@pytest.mark.parametrize("record", [[], EXPLICIT], ids=["fused", "explicit"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_shape_and_causality(build: Build, draw_tokens: DrawTokens, variant: dict[str, Any], record: list[str]) -> None:
    """Another token at t changes no logit before t, not even in its last bit, and changes those at t."""
    model, tokens = build(**variant), draw_tokens(3, 9)
    with torch.no_grad():
        logits, _ = model(tokens, record=record)
        assert logits.shape == (3, 9, 11)
        for t in (0, 4, 8):
            changed = tokens.clone()
            changed[:, t] = (changed[:, t] + 1) % 11
            other, _ = model(changed, record=record)
            assert torch.equal(other[:, :t], logits[:, :t])
            assert (other[:, t] != logits[:, t]).any(-1).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_fused_route_equals_explicit_route(build: Build, draw_tokens: DrawTokens, variant: dict[str, Any]) -> None:
    tokens = draw_tokens(2, 13)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model = build(dtype=dtype, **variant)
        fused = model(tokens)
        explicit, _ = model(tokens, record=EXPLICIT)
        torch.testing.assert_close(fused, explicit, rtol=0, atol=tolerance)
        weights = list(model.parameters())
        # squares: a plain sum's gradient at the final LayerNorm would be next to nothing
        of_fused = torch.autograd.grad(fused.square().mean(), weights)
        of_explicit = torch.autograd.grad(explicit.square().mean(), weights)
        for a, b in zip(of_fused, of_explicit, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_pattern_is_the_masked_softmax_of_the_scores(
    build: Build, draw_tokens: DrawTokens, variant: dict[str, Any]
) -> None:
    """Row by row and key by key; rows sum to 1, and what a head must not see has weight 0 exactly."""
    length = 9
    model = build(dtype=torch.float64, **variant)
    with torch.no_grad():
        _, recorded = model(draw_tokens(2, length), record=[*ATTENTION, "0.q", "0.k", "1.q", "1.k"])
    for layer in range(2):
        q, k = recorded[f"{layer}.q"], recorded[f"{layer}.k"]
        scores, pattern = recorded[f"{layer}.scores"], recorded[f"{layer}.pattern"]
        torch.testing.assert_close(scores, torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(4))
        torch.testing.assert_close(pattern.sum(-1), torch.ones(2, 3, length, dtype=torch.float64))
        for head, i in itertools.product(range(3), range(length)):
            window = variant["windows"][layer][head] if variant["windows"] else None
            first = 0 if window is None else max(0, i - window + 1)
            weights = scores[:, head, i, first : i + 1].exp()
            torch.testing.assert_close(pattern[:, head, i, first : i + 1], weights / weights.sum(-1, keepdim=True))
            assert not pattern[:, head, i, :first].any()
            assert not pattern[:, head, i, i + 1 :].any()


def test_scores_are_scaled_by_the_head_width(build: Build, draw_tokens: DrawTokens) -> None:
    model = build(head_width=5)
    assert model.blocks[0].attention.out.weight.shape == (12, 15)
    _, recorded = model(draw_tokens(2, 6), record=["0.q", "0.k", "0.z", "0.scores", "0.head_out"])
    assert recorded["0.z"].shape == (2, 3, 6, 5)
    assert recorded["0.head_out"].shape == (2, 3, 6, 12)
    expected = torch.einsum("bhid,bhjd->bhij", recorded["0.q"], recorded["0.k"]) / math.sqrt(5)
    torch.testing.assert_close(recorded["0.scores"], expected)


# --- local windows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_window_ends_where_it_says(build: Build, draw_tokens: DrawTokens, window: int) -> None:
    """One layer of heads with one window: the last logits feel the latest `window` tokens and none before."""
    model, tokens = build(layers=1, windows=[[window] * 3], position="none"), draw_tokens(2, 9)
    with torch.no_grad():
        last = model(tokens)[:, -1]
        for t in range(9):
            changed = tokens.clone()
            changed[:, t] = (changed[:, t] + 1) % 11
            assert torch.equal(model(changed)[:, -1], last) == (t < 9 - window)


# --- smeared keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", POSITIONS)
def test_smeared_keys_by_a_loop(build: Build, draw_tokens: DrawTokens, position: str) -> None:
    """From the keys of the same weights without smear, after any rotation (Olsson et al. 2022, Argument 2)."""
    smeared = build(position=position, key="smeared", dtype=torch.float64)
    plain = build(position=position, dtype=torch.float64)
    plain.load_state_dict({n: w for n, w in smeared.state_dict().items() if not n.endswith("alpha")})
    tokens = draw_tokens(2, 6)
    with torch.no_grad():
        key = plain(tokens, record=["0.k"])[1]["0.k"]
        recorded = smeared(tokens, record=["0.k"])[1]["0.k"]
    alpha = smeared.blocks[0].attention.alpha
    for head in range(3):
        s = 1 / (1 + math.exp(-alpha[head].item()))
        assert torch.equal(recorded[:, head, 0], key[:, head, 0])
        for j in range(1, 6):
            expected = s * key[:, head, j] + (1 - s) * key[:, head, j - 1]
            torch.testing.assert_close(recorded[:, head, j], expected, rtol=0, atol=1e-13)


def test_a_saturated_smear_is_a_plain_key(build: Build, draw_tokens: DrawTokens) -> None:
    smeared, plain, tokens = build(key="smeared"), build(), draw_tokens()
    plain.load_state_dict({n: w for n, w in smeared.state_dict().items() if not n.endswith("alpha")})
    assert not torch.equal(smeared(tokens), plain(tokens))
    for block in smeared.blocks:
        torch.nn.init.constant_(block.attention.alpha, 20.0)
    seen, _ = smeared(tokens, record=["0.k", "1.k"])  # by the same attention as of plain keys
    assert torch.equal(seen, plain(tokens))
    torch.testing.assert_close(smeared(tokens), plain(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("windows", [None, WINDOWS], ids=["dense", "local"])
@pytest.mark.parametrize("position", ["shortformer", "rotary"])
def test_keys_are_smeared_in_the_op_unless_a_tap_asks_for_them(
    build: Build, draw_tokens: DrawTokens, position: str, windows: Any, dtype: torch.dtype
) -> None:
    """`smeared_attention` and attention on smeared keys: logits and every gradient, to rounding."""
    model, tokens = build(position=position, key="smeared", windows=windows, dtype=dtype), draw_tokens(3, 9)
    results = [
        (logits, torch.autograd.grad(logits.pow(2).mean(), list(model.parameters())))
        for logits in (model(tokens), *(model(tokens, record=sites)[0] for sites in (["0.k", "1.k"], ATTENTION)))
    ]
    rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (1e-10, 1e-11)
    for explicit in results[1:]:
        torch.testing.assert_close(results[0], explicit, rtol=rtol, atol=atol)
    assert not torch.equal(results[0][0], results[1][0])  # so that it is two ways that agree


def test_smear_starts_half_way() -> None:
    model = Transformer(TransformerConfig(layers=1, width=8, heads=2, vocab=5, context=4, key="smeared"))
    assert torch.equal(model.blocks[0].attention.alpha, torch.zeros(2))


# --- positions -------------------------------------------------------------------------------------------------------


def test_shortformer_keeps_positions_out_of_values_and_residual_stream(build: Build, draw_tokens: DrawTokens) -> None:
    """With another position table, only queries and keys change; with the patterns forced, nothing else ever does."""
    model, tokens = build(position="shortformer", mlp=True), draw_tokens()
    free = ["embed", "0.resid_pre", "0.v"]
    with torch.no_grad():
        logits, before = model(tokens, record=[*free, "0.q", "0.k", *EXPLICIT])
        force = [Intervention.set(name, before[name]) for name in EXPLICIT]
        forced = model(tokens, interventions=force)
        model.position.weight.normal_()
        other, after = model(tokens, record=[*free, "0.q", "0.k"])
        assert all(torch.equal(before[name], after[name]) for name in free)
        assert (before["0.q"] != after["0.q"]).all()
        assert (before["0.k"] != after["0.k"]).all()
        assert not torch.allclose(logits, other)
        assert torch.equal(model(tokens, interventions=force), forced)


@pytest.mark.parametrize(
    ("position", "invariant"),
    [("shortformer", True), ("none", True), ("rotary", True), ("learned", False), ("sinusoidal", False)],
)
def test_order_is_lost_where_only_the_pattern_knows_it(
    build: Build, draw_tokens: DrawTokens, position: str, invariant: bool
) -> None:
    """All patterns uniform: the last logits see the earlier tokens as a set, unless the stream carries positions."""
    model, tokens = build(position=position, dtype=torch.float64), draw_tokens(2, 7)
    uniform = torch.full((2, 3, 7, 7), 1 / 7, dtype=torch.float64)
    force = [Intervention.set(name, uniform) for name in EXPLICIT]
    permuted = torch.cat((tokens[:, torch.tensor([3, 0, 5, 1, 4, 2])], tokens[:, 6:]), 1)
    assert not torch.equal(permuted, tokens)
    with torch.no_grad():
        a, b = model(tokens, interventions=force)[:, -1], model(permuted, interventions=force)[:, -1]
    assert torch.allclose(a, b, rtol=0, atol=1e-12) == invariant


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_rotary_scores_depend_on_the_distance_alone(build: Build, interleaved: bool, fraction: float) -> None:
    """The same token everywhere: diagonals of the scores are constant, and differ from each other."""
    model = build(position="rotary", rotary_interleaved=interleaved, rotary_fraction=fraction, rotary_base=50.0)
    with torch.no_grad():
        scores = model(torch.full((1, 12), 3), record=["0.scores"])[1]["0.scores"][0]
    for offset in range(-11, 12):
        diagonal = scores.diagonal(offset, -2, -1)
        torch.testing.assert_close(diagonal, diagonal[:, :1].expand_as(diagonal), rtol=0, atol=1e-5)
    assert (scores[:, 5, 5] - scores[:, 5, 4]).abs().min() > 1e-3


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_rotary_by_a_loop(build: Build, draw_tokens: DrawTokens, interleaved: bool, fraction: float) -> None:
    """Su et al. 2021: the pair i of position t turns by t / base^(2i/width); the rest of the head is left as it is."""
    rotary = build(position="rotary", rotary_interleaved=interleaved, rotary_fraction=fraction, rotary_base=50.0)
    plain = build(position="none")
    plain.load_state_dict(rotary.state_dict())
    tokens = draw_tokens(2, 7)
    with torch.no_grad():
        before, after = (m(tokens, record=["0.q", "0.k", "0.v"])[1] for m in (plain, rotary))
    assert torch.equal(before["0.v"], after["0.v"])
    width = int(4 * fraction)
    for name in ("0.q", "0.k"):
        expected = before[name].clone()
        for t, i in itertools.product(range(7), range(width // 2)):
            angle = t / 50.0 ** (2 * i / width)
            a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + width // 2)
            x, y = before[name][..., t, a], before[name][..., t, b]
            expected[..., t, a] = x * math.cos(angle) - y * math.sin(angle)
            expected[..., t, b] = y * math.cos(angle) + x * math.sin(angle)
        torch.testing.assert_close(after[name], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("width", [12, 15])
def test_sinusoids(build: Build, draw_tokens: DrawTokens, width: int) -> None:
    """Vaswani et al. 2017, section 3.5, sines in the first half and cosines in the second; an odd width cuts one."""
    model, tokens = build(position="sinusoidal", width=width), draw_tokens(2, 7)
    half = (width + 1) // 2
    table = torch.tensor(
        [
            [(math.sin if c < half else math.cos)(t / 10_000 ** (c % half / half)) for c in range(width)]
            for t in range(7)
        ]
    )
    embedded = model(tokens, record=["embed"])[1]["embed"]
    torch.testing.assert_close(embedded, model.embed(tokens) + table, rtol=0, atol=1e-6)


@pytest.mark.parametrize("position", ["learned", "shortformer"])
def test_a_position_table_ends_and_the_other_kinds_do_not(build: Build, draw_tokens: DrawTokens, position: str) -> None:
    model = build(position=position)
    assert model.position.weight.shape == (16, 12)
    assert model(draw_tokens(1, 16)).shape == (1, 16, 11)
    for kind in ("sinusoidal", "rotary", "none"):
        assert build(position=kind).position is None
        assert build(position=kind)(draw_tokens(1, 40)).isfinite().all()


# --- norms, biases, sizes, inputs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "affine"), [("layer", True), ("layer", False), ("rms", True), ("none", True)])
@pytest.mark.parametrize("activation", ["solu", "solu_plain"])
def test_solu_and_no_norm(build: Build, draw_tokens: DrawTokens, norm: str, affine: bool, activation: str) -> None:
    """SoLU's own norm has a gain and a bias where those of the stream have; without norms the stream is read raw."""
    model = build(layers=1, mlp=True, activation=activation, norm=norm, norm_affine=affine, dtype=torch.float64)
    solu = {name for name, _ in model.named_parameters() if "mlp.1" in name}
    with_norm = activation == "solu" and norm == "layer" and affine
    assert solu == ({"blocks.0.mlp.1.norm.weight", "blocks.0.mlp.1.norm.bias"} if with_norm else set())
    record = ["0.resid_pre", "0.v", "0.resid_mid", "0.mlp_out", "0.resid_post", "final_norm"]
    with torch.no_grad():
        _, r = model(draw_tokens(), record=record)
        block = model.blocks[0]
        up = block.mlp[0](block.norm2(r["0.resid_mid"]))
        hidden = up * torch.exp(up) / torch.exp(up).sum(-1, keepdim=True)
        if activation == "solu":
            centred = hidden - hidden.mean(-1, keepdim=True)
            hidden = centred / (centred.square().mean(-1, keepdim=True) + model.config.norm_eps).sqrt()
            hidden = hidden * block.mlp[1].norm.weight + block.mlp[1].norm.bias if with_norm else hidden
        torch.testing.assert_close(r["0.mlp_out"], block.mlp[2](hidden))
        if norm == "none":
            assert not [name for name, _ in model.named_parameters() if "norm" in name]
            v = block.attention.v(r["0.resid_pre"])
            torch.testing.assert_close(r["0.v"].transpose(1, 2).flatten(2), v)
            torch.testing.assert_close(r["final_norm"], r["0.resid_post"])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("eps", [1e-5, 3.0])
def test_layer_norms(build: Build, draw_tokens: DrawTokens, affine: bool, eps: float) -> None:
    """All three kinds of LayerNorm by their formula, with the epsilon and the affine part of the config."""
    model = build(layers=1, mlp=True, norm_eps=eps, norm_affine=affine, dtype=torch.float64)
    assert any("norm" in name for name, _ in model.named_parameters()) == affine

    def norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + eps).sqrt()
        return x * layer.weight + layer.bias if affine else x

    block = model.blocks[0]
    record = ["0.resid_pre", "0.v", "0.resid_mid", "0.mlp_out", "0.resid_post", "final_norm"]
    with torch.no_grad():
        _, r = model(draw_tokens(), record=record)
        v = block.attention.v(norm(r["0.resid_pre"], block.norm1))
        torch.testing.assert_close(r["0.v"].transpose(1, 2).flatten(2), v)
        torch.testing.assert_close(r["0.mlp_out"], block.mlp(norm(r["0.resid_mid"], block.norm2)))
        torch.testing.assert_close(r["final_norm"], norm(r["0.resid_post"], model.final_norm))


def test_parameters_are_what_the_config_says(build: Build) -> None:
    def names(**changes: Any) -> set[str]:
        return {name for name, _ in build(layers=1, **changes).named_parameters()}

    plain = names()
    attention = {f"blocks.0.attention.{part}.bias" for part in ("q", "k", "v", "out")}
    assert names(attention_bias=True) - plain == attention
    assert names(unembed_bias=True) - plain == {"unembed.bias"}
    assert names(key="smeared") - plain == {"blocks.0.attention.alpha"}
    assert plain - names(position="none") == {"position.weight"}
    mlp = {f"blocks.0.mlp.{part}.{kind}" for part in (0, 2) for kind in ("weight", "bias")}
    assert names(mlp=True) - plain == mlp | {"blocks.0.norm2.weight", "blocks.0.norm2.bias"}
    assert build(mlp=True, mlp_ratio=3).blocks[0].mlp[0].weight.shape == (36, 12)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_activation(build: Build, activation: str) -> None:
    x = torch.linspace(-4, 4, 41)
    exact = x * (1 + torch.erf(x / math.sqrt(2))) / 2
    tanh = x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    expected = exact if activation == "gelu" else tanh
    assert (exact - tanh).abs().max() > 1e-4
    gelu = build(mlp=True, activation=activation).blocks[0].mlp[1]
    torch.testing.assert_close(gelu(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS[::5])
def test_embeddings_in_place_of_tokens(build: Build, draw_tokens: DrawTokens, variant: dict[str, Any]) -> None:
    model, tokens = build(**variant), draw_tokens()
    embeddings = model.embed(tokens).detach().requires_grad_()
    logits = model(embeddings)
    assert torch.equal(logits, model(tokens))
    logits.square().mean().backward()
    assert embeddings.grad is not None
    assert (embeddings.grad.abs().sum(-1) > 0).all()
    assert model.embed.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 1), (1, 7), (0, 5)])
def test_small_and_empty_batches(build: Build, batch: int, length: int, dtype: torch.dtype) -> None:
    model = build(key="smeared", mlp=True)
    tokens = torch.zeros(batch, length, dtype=dtype)
    for record in ([], EXPLICIT):
        logits, _ = model(tokens, record=record)
        assert logits.shape == (batch, length, 11)
        assert logits.isfinite().all()


def test_hidden_is_forward_before_the_unembedding(build: Build, draw_tokens: DrawTokens) -> None:
    model, tokens = build(unembed_bias=True), draw_tokens()
    zero = Intervention.zero("0.z", heads=[1])
    logits, r = model(tokens, record=["1.z"], interventions=[zero])
    hidden, recorded = model.hidden(tokens, record=["1.z"], interventions=[zero])
    assert torch.equal(model.unembed(hidden), logits)
    assert torch.equal(recorded["1.z"], r["1.z"])


@pytest.mark.parametrize("variant", VARIANTS[::3])
@pytest.mark.parametrize("record", [[], EXPLICIT], ids=["fused", "explicit"])
def test_bf16_autocast(build: Build, draw_tokens: DrawTokens, variant: dict[str, Any], record: list[str]) -> None:
    """Runs forward and backward and stays near float32: within 8 roundings of bfloat16 of the largest logit."""
    model, tokens = build(**variant), draw_tokens()
    expected = model(tokens).detach()
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = model(tokens, record=record)
    assert logits.dtype == torch.bfloat16
    assert (logits - expected).abs().max() < 8 * 2**-8 * expected.abs().max()
    logits.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# --- initial weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"width": 48}, {"width": 48, "tied": True}, {}, {"logit_cap": 2.0}])
def test_mean_loss_is_the_mean_of_the_losses(build: Build, draw_tokens: DrawTokens, changes: dict[str, Any]) -> None:
    """Where the loss makes its gradients at once (48 columns are whole vectors) and where it does not."""
    tokens, targets, model = draw_tokens(3, 9), draw_tokens(3, 9), build(**changes)
    losses = model.token_losses(model.hidden(tokens)[0], targets)
    mean, detached = model.mean_loss(model.hidden(tokens)[0], targets)
    assert not detached.requires_grad
    torch.testing.assert_close(detached, losses.detach())
    torch.testing.assert_close(mean, losses.mean())
    weights = list(model.parameters())
    for one, other in zip(torch.autograd.grad(mean, weights), torch.autograd.grad(losses.mean(), weights), strict=True):
        # of float32 sums of 27 rows, in two orders
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


def test_initial_weights_follow_the_seed_and_the_documented_laws() -> None:
    config = TransformerConfig(
        layers=1, width=64, heads=4, vocab=300, context=40, mlp=True, attention_bias=True, position="learned"
    )
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(Transformer(config))
    first, same, other = (torch.nn.utils.parameters_to_vector(m.parameters()) for m in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)

    model = models[0]
    assert abs(model.embed.weight.std().item() - 1) < 0.02
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == (1.0 if "norm" in name and name.endswith("weight") else 0.0)).all(), name
        elif name not in ("embed.weight", "position.weight"):
            bound = parameter.shape[1] ** -0.5
            assert 0.95 * bound < parameter.abs().max() <= bound, name
            assert abs(parameter.std().item() - bound / math.sqrt(3)) < 0.05 * bound, name
    sinusoidal = Transformer(config.model_copy(update={"position": "sinusoidal"}))
    table = sinusoidal(torch.zeros(1, 40, 64), record=["embed"])[1]["embed"][0]
    torch.testing.assert_close(model.position.weight, table)

    normal = Transformer(config.model_copy(update={"init_std": 0.03}))
    for name, parameter in normal.named_parameters():
        if parameter.ndim == 2:
            assert abs(parameter.std().item() - 0.03) < 0.003, name
            assert parameter.abs().max() > 0.03 * 2.5, name  # normal, not uniform
