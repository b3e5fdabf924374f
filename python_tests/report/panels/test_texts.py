"""What is packed of texts for the report page equals the arrays it was made from."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_fast.data import default_texts
from icl_fast.data.tokenizer import train_tokenizer
from icl_fast.errors import InputError
from icl_fast.measure.heads import tokenise
from icl_fast.report.panels.texts import LARGEST_SNAPSHOTS, compared, continuations, texts_payload, viewed_snapshots
from icl_fast.report.study import Study

MakeStudy = Callable[..., Study]
TEXTS = (("first", "passage"), ("again", "repeated"), ("lines", "template"))
LENGTH = 12


@pytest.fixture(scope="module")
def study(made_study: MakeStudy) -> Study:
    return made_study(texts=TEXTS, length=LENGTH)


class Kept(list[np.ndarray]):
    """What `texts_payload` gave to the page, found again by number."""

    def add(self, array: np.ndarray) -> int:
        self.append(np.asarray(array))
        return len(self) - 1

    def signed(self, reference: int) -> np.ndarray:
        values = self[reference].astype(np.int64)
        return np.where(values % 2 == 1, -(values + 1) // 2, values // 2)


def test_payload_equals_the_arrays(study: Study) -> None:
    kept = Kept()
    payload = texts_payload(study, kept.add)
    assert [model["name"] for model in payload["models"]] == list(study.models)
    for packed, model in zip(payload["models"], study.models.values(), strict=True):
        assert [payload["texts"][one["text"]]["name"] for one in packed["texts"]] == list(model.texts)
        viewed = [one["step"] for one in packed["viewed"]]
        assert viewed == next(iter(model.texts.values()))["viewed"].values.tolist()
        of_viewed = model.heads.sel(snapshot=viewed)
        assert [one["seen"] for one in packed["viewed"]] == of_viewed["tokens"].values.tolist()
        np.testing.assert_array_equal(kept[packed["prefix"]], of_viewed["prefix_matching"])
        np.testing.assert_array_equal(kept[packed["copying"]], of_viewed["copying"])
        assert (packed["before"], packed["after"]) == tuple(
            viewed.index(int(model.losses["snapshot"][at]))
            for at in compared(model.losses["snapshot"].values, model.interval)
        )
        np.testing.assert_array_equal(kept[packed["seen"]], model.losses["tokens"])
        assert packed["shown"] == [list(head) for head in np.ndindex(model.types.types.shape)]
        for one, text in zip(packed["texts"], model.texts.values(), strict=True):
            np.testing.assert_array_equal(kept[one["viewed"]], text["loss"].sel(snapshot=viewed))
            curves = kept.signed(one["losses"]).cumsum(1) * payload["step"]
            np.testing.assert_allclose(curves.T, text["loss"], rtol=0, atol=0.005 + 1e-6)
            for at in range(len(viewed)):
                both = ("pattern", kept[one["pattern"][at]]), ("logits", kept.signed(one["logits"][at]))
                for name, values in both:
                    for i in range(LENGTH):
                        row = values[:, i * (i + 1) // 2 :][:, : i + 1]
                        expected = [
                            [round(float(x) * 100) for x in head] for head in text[name].values[at, :, i, : i + 1]
                        ]
                        np.testing.assert_array_equal(row, expected)
            for name, rows in (("largest", slice(None)), ("largest_label", text["category"].values >= 0)):
                size = np.abs(text["logits"].values[..., rows, :]).max(initial=0)
                assert one[name] == pytest.approx(round(float(size), 2) or 1)
            direct = text["logits"].values.astype(np.float64).sum(-1)
            np.testing.assert_array_equal(kept.signed(one["direct"]), np.rint(direct * 100))


def test_ends_of_the_interval_or_first_trained_and_last(study: Study) -> None:
    assert compared([0, 10, 20, 30], (10, 20)) == (1, 2)
    assert compared([0, 10, 20, 30], None) == (1, 3)
    assert compared([5, 10, 20], None) == (0, 2)
    assert compared([0], None) == (0, 0)


def test_continuations_of_a_sentence() -> None:
    tokens = ["Mrs", "Dursley", "met", "Mrs", "Dursley", "and", "Mrs", "Potter"]
    kinds = continuations(["<bos>", *tokens[:-1]], tokens)
    assert kinds.tolist() == ["new", "new", "new", "new", "repeated", "changed", "new", "changed"]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30))
def test_continuations_by_definition(tokens: list[str]) -> None:
    inputs = ["<bos>", *tokens[:-1]]
    for p, kind in enumerate(continuations(inputs, tokens)):
        followers = [tokens[j] for j in range(p) if inputs[j] == inputs[p]]
        assert kind == ("new" if not followers else "repeated" if tokens[p] in followers else "changed")


@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=40).map(sorted), st.data(), st.integers(0, 12))
def test_viewed_snapshots(steps: list[int], data: st.DataObject, most: int) -> None:
    ends = st.sampled_from(steps)
    interval = data.draw(st.none() | st.tuples(ends, ends).map(lambda pair: (min(pair), max(pair))))
    viewed = viewed_snapshots(steps, interval, most)
    trained = [step for step in steps if step > 0]
    before, after = compared(steps, interval)
    needed = {steps[before], steps[after], *trained[:1], steps[-1]}
    assert viewed == sorted(set(viewed))
    assert needed <= set(viewed) <= set(steps)
    assert len(viewed) == max(len(needed), min(most, len(trained)))


def test_viewed_snapshots_lie_evenly_along_the_logarithm() -> None:
    steps = list(range(0, 4097))
    assert viewed_snapshots(steps, None, 5) == [1, 8, 64, 512, 4096]
    assert viewed_snapshots(steps, (100, 300), 4) == [1, 100, 300, 4096]


def test_a_page_has_fewer_snapshots_where_they_are_large(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = sum(text["pattern"][0].size for model in study.models.values() for text in model.texts.values())
    for room, count in (10**9, 4), (3 * cells, 3), (0, 2):
        monkeypatch.setattr("icl_fast.report.panels.texts.LARGEST_VIEWS", room)
        kept = Kept()
        one = texts_payload(study, kept.add)["models"][0]
        assert len(one["viewed"]) == count, room
        assert sum(kept[at].nbytes // kept[at].itemsize for at in one["texts"][0]["pattern"]) == (
            count * 2 * LENGTH * (LENGTH + 1) // 2
        )


def test_attention_on_labels(study: Study) -> None:
    kept = Kept()
    one = texts_payload(study, kept.add)["models"][1]["texts"][2]
    pattern = study.models["two_layer"].texts["lines"]["pattern"].values.astype(np.float64)
    # labels stand at positions 3, 6, 9, 12 (categories 0, 1, 0, 0) and are read one position later: sources 3, 6, 9
    right = (pattern[..., 8, 3] + pattern[..., 11, 3] + pattern[..., 11, 9]) / 2
    wrong = (pattern[..., 8, 6] + pattern[..., 11, 6]) / 2
    np.testing.assert_allclose(kept[one["labels"]["right"]], right)
    np.testing.assert_allclose(kept[one["labels"]["wrong"]], wrong)
    assert one["labels"]["blind"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_many_snapshots_are_thinned(made_study: MakeStudy) -> None:
    study = made_study(layers=(2,), snapshots=333, texts=TEXTS[:1])
    model = study.models["two_layer"]
    kept = Kept()
    packed = texts_payload(study, kept.add)["models"][0]
    tokens = kept[packed["seen"]]
    assert packed["snapshots"] == 333
    assert len(tokens) <= LARGEST_SNAPSHOTS
    assert (np.diff(tokens) > 0).all()
    of = dict(zip(model.losses["snapshot"].values, model.losses["tokens"].values, strict=True))
    assert {0, of[3320], *(packed["viewed"][packed[end]]["seen"] for end in ("before", "after"))} <= set(tokens)
    curves = kept.signed(packed["texts"][0]["losses"]).cumsum(1) / 100
    at = [index for index, seen in enumerate(model.losses["tokens"].values) if seen in tokens]
    np.testing.assert_allclose(curves.T, model.texts["first"]["loss"].values[at], rtol=0, atol=0.005 + 1e-6)


def test_texts_are_held_once_unless_the_tokens_differ(study: Study) -> None:
    payload = texts_payload(study, Kept().add)
    assert len(payload["texts"]) == len(TEXTS)
    model = study.models["one_layer"]
    changed = model.texts["first"].assign_coords(target=("position", ["other"] * LENGTH))
    other = dataclasses.replace(model, texts={**model.texts, "first": changed})
    payload = texts_payload(dataclasses.replace(study, models={**study.models, "one_layer": other}), Kept().add)
    assert len(payload["texts"]) == len(TEXTS) + 1


def test_a_value_that_is_not_finite_is_named(study: Study) -> None:
    model = study.models["one_layer"]
    text = model.texts["first"].copy(deep=True)
    text["logits"].values[0, 1, 2, 1] = np.nan
    broken = dataclasses.replace(model, texts={"first": text})
    with pytest.raises(InputError, match=r"one_layer, text first: logits.*position 3"):
        texts_payload(dataclasses.replace(study, models={"one_layer": broken}), Kept().add)


@pytest.mark.parametrize("vocab", [257, 300, 512, 1500])
@pytest.mark.parametrize("of", ["code", "the passage"])
def test_the_repeats_of_the_default_passage_are_within_the_context(vocab: int, of: str) -> None:
    """Whatever the tokenizer: of bytes alone, of other text, and of the text itself."""
    passage = default_texts()[0]
    source = inspect.getsource(inspect) + inspect.getsource(textwrap)
    tokenizer = train_tokenizer([source] if of == "code" else [source, *[passage.text] * 99], vocab)
    text = tokenise(passage, tokenizer, 256)
    assert text.left_out == 0
    kinds = continuations([text.first, *text.pieces[:-1]], text.pieces).tolist()
    assert kinds.count("repeated") >= 4
    assert kinds.count("changed") >= 4
