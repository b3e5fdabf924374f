"""Direct-path logit attribution against all logits written out, against the model's own logits, and on known heads."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from icl_fast import InputError, Transformer
from icl_fast.measure import logit_attribution
from icl_fast.measure.heads import TokenisedText, head_views

Build = Callable[..., Transformer]
Shapes = st.SearchStrategy[dict[str, Any]]


def text(batch: int = 2, length: int = 6) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, 17, (batch, length + 1), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1], tokens[:, 1:]


@given(st.data())
@settings(max_examples=20)
def test_against_all_logits_written_out(noisy: Build, shapes: Shapes, data: st.DataObject) -> None:
    model = noisy(**data.draw(shapes))
    config = model.config
    layer, head = data.draw(st.integers(0, config.layers - 1)), data.draw(st.integers(0, config.heads - 1))
    inputs, targets = text()
    last = f"{config.layers - 1}.resid_post"
    gain = model.final_norm.weight if config.norm_affine else torch.ones(config.width)
    columns = slice(head * config.d_head, (head + 1) * config.d_head)
    with torch.no_grad():
        _, sites = model(inputs, record=[f"{layer}.v", f"{layer}.pattern", last])
        everything = torch.zeros(2, 6, 6, config.vocab, dtype=torch.float64)
        for b, i, j in product(range(2), range(6), range(6)):
            stream = sites[last][b, i]
            scale = (((stream - stream.mean()) ** 2).mean() + config.norm_eps).sqrt()
            result = model.blocks[layer].attention.out.weight[:, columns] @ sites[f"{layer}.v"][b, head, j]
            added = sites[f"{layer}.pattern"][b, head, i, j] * (result - result.mean()) * gain / scale
            logits = model.unembed.weight @ added
            everything[b, i, j] = logits - logits.mean()
    found = logit_attribution(model, inputs, targets, layer, head)
    torch.testing.assert_close(found.pattern, sites[f"{layer}.pattern"][:, head])
    torch.testing.assert_close(
        found.logits, everything.gather(3, targets[:, :, None, None].expand(-1, -1, 6, 1))[..., 0]
    )
    every = torch.arange(config.vocab).expand(2, 6, -1)
    torch.testing.assert_close(logit_attribution(model, inputs, every, layer, head).logits, everything)


@pytest.mark.parametrize("norm", ["none", "rms"])
def test_without_centring(noisy: Build, norm: str) -> None:
    """Nothing is centred; where there is no norm at all, what a head adds is in the logits as it is."""
    model = noisy(norm=norm, norm_affine=False)
    inputs, _ = text()
    every = torch.arange(model.config.vocab).expand(2, 6, -1)
    with torch.no_grad():
        _, sites = model(inputs, record=["1.head_out", "1.resid_post"])
        added = sites["1.head_out"][:, 0] @ model.unembed.weight.T
        if norm == "rms":
            added /= (sites["1.resid_post"].square().mean(-1, keepdim=True) + model.config.norm_eps).sqrt()
    found = logit_attribution(model, inputs, every, 1, 0).logits.sum(2)
    torch.testing.assert_close(found, added - added.mean(-1, keepdim=True))


@given(st.data())
@settings(max_examples=20)
def test_heads_and_the_rest_make_the_logits(noisy: Build, shapes: Shapes, data: st.DataObject) -> None:
    """All heads' attributions, and the paths of embedding, MLPs and biases, sum to the target's logit over the mean."""
    model = noisy(**data.draw(shapes))
    config = model.config
    inputs, targets = text()
    layers = range(config.layers)
    record = ["embed", f"{config.layers - 1}.resid_post"] + [f"{layer}.mlp_out" for layer in layers if config.mlp]
    with torch.no_grad():
        logits, sites = model(inputs, record=record)
        rest = sum(value for name, value in sites.items() if name in record and "resid" not in name)
        for layer in layers:
            bias = model.blocks[layer].attention.out.bias
            rest = rest if bias is None else rest + bias
        stream = sites[record[1]]
        scale = (stream.var(-1, correction=0, keepdim=True) + config.norm_eps).sqrt()
        normed = (rest - rest.mean(-1, keepdim=True)) / scale
        if config.norm_affine:
            normed = normed * model.final_norm.weight + model.final_norm.bias
        total = model.unembed(normed)
        total = (total - total.mean(-1, keepdim=True)).gather(2, targets[:, :, None])[..., 0]
        for layer, head in product(layers, range(config.heads)):
            total += logit_attribution(model, inputs, targets, layer, head).logits.sum(-1)
        expected = (logits - logits.mean(-1, keepdim=True)).gather(2, targets[:, :, None])[..., 0]
    torch.testing.assert_close(total, expected)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_architecture(architectures: Shapes, random_model: Callable[..., Transformer], data: st.DataObject) -> None:
    """As above, whatever norms there are; logits are those before a cap."""
    model = random_model(data.draw(architectures), torch.float64)
    config, (inputs, targets) = model.config, text()
    layers = range(config.layers)

    def normed(norm: torch.nn.Module, rows: Tensor, stream: Tensor) -> Tensor:
        """What a norm makes of a part of a stream, without its bias."""
        if isinstance(norm, torch.nn.Identity):
            return rows
        if isinstance(norm, torch.nn.LayerNorm):
            rows, stream = (x - x.mean(-1, keepdim=True) for x in (rows, stream))
        rows = rows / (stream.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()
        return rows if norm.weight is None else rows * norm.weight

    record = ["embed", *(f"{layer}.mlp_out" for layer in layers if config.mlp)]
    _, sites = model(inputs, record=[*record, *(f"{layer}.z" for layer in layers)])
    rest = sum(sites[name] for name in record)
    stream = rest
    for layer in layers:
        block = model.blocks[layer]
        written = block.attention.out(sites[f"{layer}.z"].transpose(1, 2).flatten(2))
        constant = block.attention.out(torch.zeros(config.heads * config.d_head, dtype=torch.float64))
        rest = rest + normed(block.after1, constant.expand_as(written), written)
        rest = rest + (getattr(block.after1, "bias", None) if getattr(block.after1, "bias", None) is not None else 0)
        stream = stream + block.after1(written)
    logits = model.unembed(model.final_norm(stream))
    torch.testing.assert_close(model.capped(logits), model(inputs))
    total = model.unembed(normed(model.final_norm, rest, stream))
    bias = getattr(model.final_norm, "bias", None)
    total = total if bias is None else total + bias @ model.unembed.weight.T
    added = torch.zeros(2, 6, dtype=torch.float64)
    for layer, head in product(layers, range(config.heads)):
        added += logit_attribution(model, inputs, targets, layer, head).logits.sum(-1)
    expected = (logits - total) - (logits - total).mean(-1, keepdim=True)
    torch.testing.assert_close(added, expected.gather(2, targets[:, :, None])[..., 0])
    words = TokenisedText("x", "", "", "", inputs[0], targets[0], tuple("a" * 6), torch.full((6,), -1), 0)
    _, views = head_views(model, words)
    torch.testing.assert_close(views.sum((0, 2)).double(), added[0], rtol=1e-4, atol=1e-5)


def test_a_perfect_induction_head(induction: Build) -> None:
    """On a text said twice, all of the head's effect on the next token comes from the source that was that token."""
    model = induction(40, 17)
    said = torch.randperm(39, generator=torch.Generator().manual_seed(0))[:8] + 1
    whole = torch.cat((torch.tensor([0]), said, said, said[:1]))[None]
    inputs, targets = whole[:, :-1], whole[:, 1:]
    found = logit_attribution(model, inputs, targets, 1, 0)
    for i in range(9, 17):
        assert found.pattern[0, i, i - 7].item() == pytest.approx(1, abs=1e-9)
        assert found.logits[0, i, i - 7] > 1
        assert found.logits[0, i].sum().item() == pytest.approx(found.logits[0, i, i - 7].item(), abs=1e-9)
    assert (found.logits[0, :8] < 1e-9).all()  # the next token is new: only others are raised
    # the first head writes where the unembedding does not read
    torch.testing.assert_close(logit_attribution(model, inputs, targets, 0, 0).logits, torch.zeros(1, 17, 17).double())


def test_a_head_of_known_strength(noisy: Build) -> None:
    """One layer, every source alike: `A_ij` of 1/(i+1) times what a constant value adds, by hand."""
    model = noisy(layers=1, heads=1, head_width=1, position="none", attention_bias=True)
    attention = model.blocks[0].attention
    with torch.no_grad():
        for parameter in (*attention.parameters(), *model.embed.parameters(), model.unembed.weight):
            parameter.zero_()
        attention.v.bias.fill_(2)
        attention.out.weight[:2, 0] = torch.tensor([1.0, -1.0])  # centred; the stream is 2 and -2, then zeros
        model.final_norm.weight.fill_(3)
        model.unembed.weight[5, 0] = 1
    inputs, targets = torch.zeros(1, 4, dtype=torch.int64), torch.full((1, 4), 5)
    scale = (8 / 7 + model.config.norm_eps) ** 0.5
    rows = torch.tril(torch.ones(4, 4)).double() / torch.arange(1, 5)[:, None]
    found = logit_attribution(model, inputs, targets, 0, 0)
    torch.testing.assert_close(found.logits[0], rows * (2 * 3 / scale) * (1 - 1 / 17))
    other = logit_attribution(model, inputs, torch.full((1, 4, 2), 5) - torch.arange(2), 0, 0)  # tokens 5 and 4
    torch.testing.assert_close(other.logits[0, ..., 0], found.logits[0])
    torch.testing.assert_close(other.logits[0, ..., 1], rows * (2 * 3 / scale) * (-1 / 17))


def test_nothing_is_as_large_as_the_text_squared_times_the_vocabulary(noisy: Build, sizes: Any) -> None:
    model = noisy(vocab=503, context=20)
    inputs = torch.zeros(1, 20, dtype=torch.int64)
    with sizes:
        logit_attribution(model, inputs, inputs, 0, 0)
    assert sizes.largest <= 503 * 7  # the weights; logits would be 20 x 503 for one source


def test_other_dtypes(noisy: Build) -> None:
    model = noisy()
    inputs, targets = text()
    expected = logit_attribution(model, inputs, targets, 1, 1).logits
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 0.03)):
        found = logit_attribution(model.to(dtype), inputs, targets, 1, 1)
        assert found.pattern.dtype == dtype
        assert (found.logits - expected).norm() < tolerance * expected.norm()


def test_bad_input(noisy: Build) -> None:
    model = noisy()
    inputs, targets = text()
    for layer, head, message in ((2, 0, "layer: 2 is not"), (0, 2, "head: 2 is not"), (-1, 0, "layer: -1 is not")):
        with pytest.raises(InputError, match=message):
            logit_attribution(model, inputs, targets, layer, head)
    for wrong in (targets[:, :-1], targets[0], targets.float(), targets[:1]):
        with pytest.raises(InputError, match="targets must be integers"):
            logit_attribution(model, inputs, wrong, 0, 0)
    for token in (-1, 17):
        with pytest.raises(InputError, match=rf"^targets holds {token}, but there are 17"):
            logit_attribution(model, inputs, torch.full_like(targets, token), 0, 0)
    with pytest.raises(InputError, match=r"^inputs holds 17"):
        logit_attribution(model, torch.full_like(inputs, 17), targets, 0, 0)
