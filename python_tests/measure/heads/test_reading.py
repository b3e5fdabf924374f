"""Tokens, losses and views of one text against the tokenizer's, the model's and one head's own words."""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from icl_fast import InputError, Transformer
from icl_fast.data import Text, template_text
from icl_fast.data.texts import Mark
from icl_fast.data.tokenizer import BOS_ID, train_tokenizer
from icl_fast.measure.heads import (
    TokenisedText,
    head_views,
    logit_attribution,
    template_attention,
    text_dataset,
    token_losses,
    tokenise,
)

Build = Callable[..., Transformer]
Shapes = st.SearchStrategy[dict[str, Any]]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    # merges of whole words, of some characters' bytes, and of a space with half a character
    return train_tokenizer(["<script>the é “Ж” 0: 1\n ü 😀 red cat: 2\\xe2" * 3], 280)


def passage(text: str, *marks: Mark) -> Text:
    return Text("name", "A title", "passage", text, "a source", marks)


def of_ids(ids: Tensor) -> TokenisedText:
    """A text of these tokens, [T], behind a BOS."""
    inputs = torch.cat((torch.tensor([BOS_ID]), ids[:-1]))
    return TokenisedText(
        "name", "A title", "passage", "", inputs, ids, tuple(map(str, ids)), torch.full_like(ids, -1), 0
    )


def random_text(length: int = 6, vocab: int = 17) -> TokenisedText:
    return of_ids(torch.randint(0, vocab, (length,), generator=torch.Generator().manual_seed(1)))


any_text = st.text(min_size=1) | st.text(alphabet="a é\u2028“Ж😀\n\r\t\0\x1b\\xe2<>&�", min_size=1)


@given(any_text | st.sampled_from(["<script>alert(1)</script>", "<|bos|>", "\\xe2 é", "a\0"]), st.integers(1, 40))
@settings(max_examples=300)
def test_pieces_lose_nothing(tokenizer: Tokenizer, text: str, context: int) -> None:
    whole = tokenise(passage(text), tokenizer, 10_000)
    joined, partial = b"", False
    for piece, token in zip(whole.pieces, whole.targets.tolist(), strict=True):
        if piece == tokenizer.decode([token], skip_special_tokens=False):
            joined += piece.encode()
        else:  # bytes of a character: decoded alone, they are replaced
            partial = True
            assert re.search(r"\\x[89a-f][0-9a-f]", piece)
            parts = re.split(r"\\x([0-9a-f]{2})", piece)
            joined += b"".join(bytes.fromhex(part) if odd % 2 else part.encode() for odd, part in enumerate(parts))
    assert joined == text.encode()
    assert partial or "".join(whole.pieces) == text
    assert tokenizer.decode(whole.targets.tolist(), skip_special_tokens=False) == text
    cut = tokenise(passage(text), tokenizer, context)
    assert cut.pieces == whole.pieces[:context]
    assert cut.targets.equal(whole.targets[:context])
    assert cut.left_out == max(0, len(whole.targets) - context)
    assert whole.left_out == 0
    assert cut.inputs.tolist() == [BOS_ID, *cut.targets.tolist()[:-1]]


def test_pieces_by_hand() -> None:
    every_byte = train_tokenizer(["a"], 257)
    assert tokenise(passage("<é\0\u20ac"), every_byte, 9).pieces == (
        "<",
        r"\xc3",
        r"\xa9",
        "\0",
        r"\xe2",
        r"\x82",
        r"\xac",
    )


def test_categories_are_at_the_labels(tokenizer: Tokenizer) -> None:
    text = template_text(25)
    whole = tokenise(text, tokenizer, 10_000)
    before, found = "", []
    for piece, category in zip(whole.pieces, whole.categories.tolist(), strict=True):
        if category >= 0:
            place = before + piece
            assert place.rstrip().endswith(f": {category}")
            assert f": {category}" not in before[-2:]
            found.append(category)
        before += piece
    assert found == [mark.category for mark in text.marks]
    cut = tokenise(text, tokenizer, 60)
    assert cut.categories.equal(whole.categories[:60])
    assert 0 < (cut.categories >= 0).sum() < 25
    after_wide = tokenise(passage("é😀 1", Mark(3, 2)), train_tokenizer(["a"], 257), 20)  # 2 + 4 + 1 bytes before
    assert after_wide.categories.tolist() == [-1] * 7 + [2]
    assert (tokenise(passage("a 1"), tokenizer, 9).categories == -1).all()


def test_tokenise_bad_input(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="text name: is empty"):
        tokenise(passage(""), tokenizer, 5)
    with pytest.raises(InputError, match="context: must be 1 or more, got 0"):
        tokenise(passage("a"), tokenizer, 0)
    words = Tokenizer(models.WordLevel({"?": 0, "two": 1, "words": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert tokenise(passage("two  twö"), words, 5).pieces == ("two", "  twö")
    for text in ("two ", "two words "):
        with pytest.raises(InputError, match="tokenizer: its tokens do not give text name back"):
            tokenise(passage(text), words, 5)


@given(st.data())
@settings(max_examples=20)
def test_losses_against_all_logits(noisy: Build, shapes: Shapes, data: st.DataObject) -> None:
    model, text = noisy(**data.draw(shapes)), random_text()
    with torch.no_grad():
        chances = model(text.inputs[None])[0].softmax(-1)
    expected = [-math.log(chances[i, token]) for i, token in enumerate(text.targets.tolist())]
    for dtype in (torch.float64, torch.float32):
        losses = token_losses(model.to(dtype), text)
        assert losses.dtype == torch.float32
        torch.testing.assert_close(losses.double(), torch.tensor(expected).double(), rtol=2e-5, atol=2e-5)


@given(st.data())
@settings(max_examples=20)
def test_views_are_those_of_each_head(noisy: Build, shapes: Shapes, data: st.DataObject) -> None:
    model, text = noisy(**data.draw(shapes)), random_text()
    # a float64 model's views are rounded to float32; a float32 model itself rounds otherwise where it records less
    for dtype, rtol, atol in ((torch.float64, 2e-7, 0.0), (torch.float32, 1e-5, 1e-6)):
        model = model.to(dtype)
        pattern, logits = head_views(model, text)
        every = list(product(range(model.config.layers), range(model.config.heads)))
        assert pattern.shape == logits.shape == (len(every), 6, 6)
        assert pattern.dtype == logits.dtype == torch.float32
        for place, (layer, head) in enumerate(every):
            one = logit_attribution(model, text.inputs[None], text.targets[None], layer, head)
            torch.testing.assert_close(pattern[place], one.pattern[0].float(), rtol=rtol, atol=atol)
            torch.testing.assert_close(logits[place], one.logits[0].float(), rtol=rtol, atol=atol)
        some = every[::-2]  # in any order
        for views, of_all in zip(head_views(model, text, some), (pattern, logits), strict=True):
            expected = torch.stack([of_all[every.index(head)] for head in some])
            torch.testing.assert_close(views, expected, rtol=rtol, atol=atol)


def test_views_of_a_perfect_induction_circuit(induction: Build) -> None:
    said = torch.arange(1, 9)
    model = induction(40, 16)
    views = head_views(model, of_ids(torch.cat((said, said))))
    pattern, logits = (of.unflatten(0, (model.config.layers, model.config.heads)) for of in views)
    for i in range(1, 16):
        assert pattern[0, 0, i, i - 1] == pytest.approx(1, abs=1e-6)  # the previous token
    for i in range(9, 16):
        assert pattern[1, 0, i, i - 7] == pytest.approx(1, abs=1e-6)  # the token after the last time
        assert logits[1, 0, i, i - 7] > 1


class Held(TorchDispatchMode):
    """The most bytes that tensors hold at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.alive[id(tensor)] = (weakref.ref(tensor), storage._cdata, storage.nbytes())
        self.alive = {key: entry for key, entry in self.alive.items() if entry[0]() is not None}
        self.most = max(self.most, sum({cdata: size for _, cdata, size in self.alive.values()}.values()))
        return out


def test_the_model_runs_once_and_one_layer_is_held_at_a_time(noisy: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    length, heads, beside = 64, 3, []
    passes, embedded = 0, Transformer.embedded

    def counted(model: Transformer, tokens: Tensor) -> Any:
        nonlocal passes
        passes += 1
        return embedded(model, tokens)

    monkeypatch.setattr(Transformer, "embedded", counted)
    for layers in (1, 6):
        model = noisy(layers=layers, heads=heads, context=length).float()
        with Held() as held:
            pattern, logits = head_views(model, random_text(length))
        beside.append(held.most - pattern.nbytes - logits.nbytes)
    assert passes == 2
    squares = heads * length * length * 4  # bytes of one layer's patterns
    assert beside[0] >= squares  # what is counted is seen
    assert beside[1] - beside[0] < squares  # five more layers: their values, but no patterns


def test_tokens_that_a_model_does_not_have(noisy: Build) -> None:
    for read in (token_losses, head_views):
        for ids in ([1, 2, 17], [17, 1]):  # the last is only a target
            with pytest.raises(InputError, match=r"text name: holds token 17, but .* 0 to 16; tokenise it with"):
                read(noisy(), of_ids(torch.tensor(ids)))
        with pytest.raises(InputError, match="10 positions"):
            read(noisy(position="learned"), random_text(10))


def test_dataset(noisy: Build, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = noisy(vocab=tokenizer.get_vocab_size(), context=20)
    text = tokenise(passage("é<script>\0: 1 and what is left out", Mark(12, 3)), tokenizer, 9)
    losses = torch.stack([token_losses(model, text)] * 2)
    heads = [(1, 0), (0, 1)]
    pattern, logits = (of_one[None] for of_one in head_views(model, text, heads))
    made = text_dataset(text, [0, 5], [0, 100], losses, heads, [5], pattern, logits)
    made.to_zarr(tmp_path / "text", mode="w", zarr_format=2, consolidated=True)
    with xr.open_zarr(tmp_path / "text") as stored:
        for dataset in (made, stored.load()):
            assert dataset.loss.dims == ("snapshot", "position")
            assert dataset.pattern.dims == dataset.logits.dims == ("viewed", "shown", "position", "source")
            for name, values in (("loss", losses), ("pattern", pattern), ("logits", logits)):
                assert dataset[name].dtype == "float32"
                assert (dataset[name].values == values.numpy()).all()
            assert list(zip(dataset.layer.values, dataset["head"].values, strict=True)) == heads
            assert dataset.snapshot.values.tolist() == [0, 5]
            assert dataset.tokens.values.tolist() == [0, 100]
            assert dataset.viewed.values.tolist() == [5]
            assert dataset.position.values.tolist() == list(range(1, 10))
            assert dataset.target.values.tolist() == list(text.pieces)
            assert dataset.input.values.tolist() == ["<bos>", *text.pieces[:-1]]
            assert dataset.category.values.tolist() == text.categories.tolist()
            assert dataset.attrs == {
                "name": "name",
                "title": "A title",
                "kind": "passage",
                "source": "a source",
                "left_out_tokens": text.left_out,
            }
    assert any(piece.endswith("\0") for piece in text.pieces)
    assert text.left_out > 0


def test_template_attention_by_hand() -> None:
    # labels are predicted at 1, 3, 5, 7 and read at 2, 4, 6; those at 5 and 7 have an earlier line of their category
    categories = torch.tensor([-1, 0, -1, 1, -1, 0, -1, 0, -1])
    pattern = torch.zeros(9, 9)
    pattern[5, [2, 4, 5]] = torch.tensor([0.5, 0.25, 0.25])
    pattern[7, [2, 4, 6, 0]] = torch.tensor([0.25, 0.0, 0.625, 0.125])
    pattern[3, 2] = pattern[8, 2] = 1  # the first of its category; no label
    same, other = template_attention(pattern, categories)
    assert same.item() == (0.5 + 0.875) / 2
    assert other.item() == (0.25 + 0) / 2
    both = template_attention(torch.stack((pattern, torch.eye(9)))[None], categories)
    assert both[0].tolist() == [[same.item(), 0]]
    for alone in ([-1, 0, -1, 1, -1], [-1, -1], [2]):
        heads = torch.rand(2, len(alone), len(alone))
        assert all(value.isnan().all() for value in template_attention(heads, torch.tensor(alone)))


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=12), st.integers(0, 99))
def test_template_attention_by_definition(categories: list[int], seed: int) -> None:
    length = len(categories)
    pattern = torch.rand(2, length, length, generator=torch.Generator().manual_seed(seed))
    same, other = [], []
    for i, category in enumerate(categories):
        earlier = [j for j in range(i) if categories[j] >= 0]
        if category >= 0 and any(categories[j] == category for j in earlier):
            same.append(sum(pattern[:, i, j + 1].double() for j in earlier if categories[j] == category))
            other.append(
                sum((pattern[:, i, j + 1].double() for j in earlier if categories[j] != category), 0 * same[-1])
            )
    found = template_attention(pattern, torch.tensor(categories))
    for values, mean in zip((same, other), found, strict=True):
        expected = torch.stack(values).mean(0) if values else torch.full((2,), math.nan).double()
        torch.testing.assert_close(mean, expected, equal_nan=True)
