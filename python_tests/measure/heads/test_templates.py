"""The template task: against loops over lines, with models whose answer is known, and over snapshots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from icl_fast import InputError, Transformer, TransformerConfig
from icl_fast.data import template_text
from icl_fast.data.tokenizer import train_tokenizer
from icl_fast.measure import measure_templates, open_results
from icl_fast.measure.heads import TokenisedText, template_scores, tokenise
from icl_fast.runs import open_series, parse_config
from icl_fast.training import train

Values = dict[str, dict[str, Any]]
VOCAB = 300


@pytest.fixture(scope="module")
def tables() -> list[TokenisedText]:
    tokenizer = train_tokenizer([template_text(200, 9).text], VOCAB)
    return [tokenise(template_text(12, seed), tokenizer, 90) for seed in range(5)]


def model(position: str = "rotary") -> Transformer:
    torch.manual_seed(0)
    shape = {"layers": 2, "width": 16, "heads": 2, "position": position}
    return Transformer(TransformerConfig(vocab=VOCAB, context=90, **shape)).double()


def labels(table: TokenisedText) -> list[tuple[int, int]]:
    return [(position, category) for position, category in enumerate(table.categories.tolist()) if category >= 0]


def test_against_loops(tables: list[TokenisedText]) -> None:
    reader = model()
    scores = template_scores(reader, tables)
    for number, table in enumerate(tables):
        with torch.no_grad():
            logits, sites = reader(table.inputs[None], record=["0.pattern", "1.pattern"])
        token_of = {category: int(table.targets[position]) for position, category in labels(table)}
        hits, right, wrong = [], [], []
        for position, category in labels(table):
            earlier = [(at, other) for at, other in labels(table) if at < position]
            if category not in [other for _, other in earlier]:
                continue
            guess = max(token_of, key=lambda other: float(logits[0, position, token_of[other]]))
            hits.append(guess == category)
            rows = torch.stack([sites[f"{layer}.pattern"][0, :, position] for layer in range(2)])
            right.append(sum(rows[..., at + 1] for at, other in earlier if other == category))
            wrong.append(sum((rows[..., at + 1] for at, other in earlier if other != category), torch.zeros(2, 2)))
        assert scores.accuracy[number].item() == pytest.approx(np.mean(hits))
        torch.testing.assert_close(scores.right[..., number], torch.stack(right).mean(0))
        torch.testing.assert_close(scores.wrong[..., number], torch.stack(wrong).mean(0))


class Oracle(Transformer):
    """Knows what comes next, or if `sign` is -1 what does not."""

    table: TokenisedText
    sign = 1

    def forward(self, tokens: Tensor, **options: Any) -> Any:
        logits = super().forward(tokens, **options)
        return logits + self.sign * 100 * torch.nn.functional.one_hot(self.table.targets, VOCAB)[None]


def test_models_whose_answer_is_known(tables: list[TokenisedText]) -> None:
    oracle = Oracle(model().config).double()
    for table in tables:
        oracle.table = table
        for oracle.sign, accuracy in ((1, 1.0), (-1, 0.0)):
            assert template_scores(oracle, [table]).accuracy.tolist() == [accuracy]


@pytest.fixture(scope="module")
def run(tiny_values: Values, tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = {**tiny_values, "data": {**tiny_values["data"], "context": 120}}
    return train(parse_config(values), tmp_path_factory.mktemp("runs") / "templates").path


def test_over_snapshots(run: Path) -> None:
    results, series = open_results(measure_templates(run, tables=6, lines=20)), open_series(run)
    assert results["snapshot"].values.tolist() == [0, 6, 12]
    texts = [tokenise(template_text(20, seed), series.tokenizer(), 120) for seed in range(6)]
    for step in (0, 12):
        scores = template_scores(series.load(step).model, texts)
        at = results.sel(snapshot=step)
        for name, values in vars(scores).items():
            np.testing.assert_allclose(at[name], values.mean(-1), err_msg=name)
            np.testing.assert_allclose(at[f"{name}_sem"], values.std(-1) / 6**0.5, err_msg=name)
    assert results.attrs["chance"] == pytest.approx(
        np.mean([1 / len({category for _, category in labels(text)}) for text in texts])
    )
    assert 0.1 < results.attrs["blind"] < 0.6


def test_bad_input(tiny_run: Path, run: Path, tables: list[TokenisedText], noisy: Callable[..., Transformer]) -> None:
    with pytest.raises(InputError, match="in 24 tokens of context some table has no two lines of one category"):
        measure_templates(tiny_run)
    with pytest.raises(InputError, match="tables: must be"):
        measure_templates(run, tables=1)
    with pytest.raises(InputError, match="tokens"):
        template_scores(noisy(), tables)
