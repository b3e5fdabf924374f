"""What the claims of Olsson et al. 2022 about tokens and about other people's models are decided by."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from icl_fast.analysis.arrays import Floats
from icl_fast.analysis.claims import Chart, Curve, Measurement
from icl_fast.data import EvaluationText
from icl_fast.data.evaluation_text import RANDOM
from icl_fast.measure import ablate, copying_scores, prefix_matching_scores
from icl_fast.measure.ablation import UNABLATED
from icl_fast.measure.whole_pass import run_losses
from icl_fast.models import Transformer
from icl_fast.runs import ForeignOptions, Series, open_series
from icl_fast.studies.reproduction.olsson_change import TOKENS, curves
from icl_fast.studies.reproduction.trained import EXAMPLES, Runs, Trained, model

REPEAT = 4  # tokens that must have stood in the context before, in this order
CONTEXT, RANDOM_EXAMPLES = 128, 16  # of random tokens, whose second half repeats the first


def repeated_tokens(runs: Runs) -> Measurement:
    """How the losses change from the start to the end of the phase change, by what the context says of the token.

    The last four tokens stood in the context before, and what followed them then comes again (`repeated`), or does not
    (`broken`); `other`: they did not stand there. The interval is that of the training in the role `window`.
    """
    changes: dict[str, list[float]] = {"repeated": [], "broken": [], "other": []}
    lines = []
    for trained, of_window in zip(runs["model"], runs["window"], strict=False):
        window = curves(of_window)
        steps = window.data["snapshot"].values
        kinds = _kinds(trained)
        if window.start is None or window.end is None:
            for of_kind in changes.values():
                of_kind.append(float("nan"))
            continue
        after, before = (_losses(trained, int(steps[at])) for at in (window.end, window.start))
        for kind, of_kind in changes.items():
            of_kind.append(float((after - before)[kinds == kind].mean()))
        at = np.linspace(0, len(steps) - 1, 12).round().astype(int)
        at_each = [_losses(trained, int(steps[i])) for i in at]
        over = [[of_all[kinds == kind].mean() for of_all in at_each] for kind in changes]
        named = zip(changes, over, strict=True)
        lines += [Curve(f"{trained.label}: {kind}", window.tokens[at], of) for kind, of in named]
    quantities = {f"{kind}_change": of_kind for kind, of_kind in changes.items()}
    pairs = zip(changes["repeated"], changes["other"], strict=True)
    quantities["repeated_less_other"] = [repeated - other for repeated, other in pairs]
    return Measurement(quantities, Chart("Loss by what the context says of the token", TOKENS, "nats per token", lines))


def _kinds(trained: Trained) -> NDArray[np.str_]:
    """`[n,T]` of each target of the evaluation set: repeated, broken, other."""
    targets = open_series(trained.run.path).evaluation_set(EXAMPLES).targets.numpy()
    kinds = np.full(targets.shape, "other", dtype="<U8")
    for example, tokens in enumerate(targets.tolist()):
        followed: dict[tuple[int, ...], int] = {}
        for at in range(REPEAT, len(tokens)):
            context = tuple(tokens[at - REPEAT : at])
            if context in followed:
                kinds[example, at] = "repeated" if followed[context] == tokens[at] else "broken"
            followed[context] = tokens[at]
    return kinds


def _losses(trained: Trained, step: int) -> Floats:
    examples = open_series(trained.run.path).evaluation_set(EXAMPLES)
    whole = model(trained, step)
    with torch.inference_mode():
        chunks = zip(torch.split(examples.inputs, 32), torch.split(examples.targets, 32), strict=True)
        parts = [run_losses(whole, inputs, targets)[0] for inputs, targets in chunks]
    found: Floats = torch.cat(parts).double().numpy()
    return found


def public_heads(runs: Runs, *, shuffled: bool = False) -> Measurement:
    """How many heads of other people's last snapshot match prefixes, and how many of these copy.

    Args:
        shuffled: of the same model with the entries of every matrix in a random order (the control).
    """
    found, names = _public(runs, shuffled)
    ids = torch.from_numpy(found.ids)
    whole = found.load(found.steps[-1]).model if not shuffled else _shuffled(found.load(found.steps[-1]).model)
    matching = prefix_matching_scores(whole, bos=found.bos, ids=ids).double().numpy()
    copying = copying_scores(whole, ids=ids).double().numpy()
    match = matching > 0.5
    quantities = {
        "matching_heads": [float(match.sum())],
        "share_copying": [float((copying[match] > 0).mean()) if match.any() else float("nan")],
        "best": [float(matching.max())],
    }
    points = [Curve("heads", matching.ravel(), copying.ravel(), "points")]
    return Measurement(quantities, Chart(f"Heads of {names}", "prefix-matching score", "copying score", points))


def public_repeats(runs: Runs, *, best: bool = True) -> Measurement:
    """What removing ten heads costs on random tokens that are repeated, in nats, beside any of five tens of others.

    Patterns are preserved, as in the paper: without, some heads of early layers take the whole model with them.

    Args:
        best: the ten that match prefixes best; False: ten random ones in their place too (the control).
    """
    found, names = _public(runs, shuffled=False)
    whole = found.load(found.steps[-1]).model
    matching = prefix_matching_scores(whole, bos=found.bos, ids=torch.from_numpy(found.ids)).numpy()
    order = np.argsort(-matching.ravel(), kind="stable")
    *others, sixth = np.random.default_rng(0).permutation(order[10:])[: 6 * 10].reshape(6, 10)
    removed = {"the best ten": order[:10]} if best else {"ten at random": sixth}
    removed |= {f"other ten ({number})": ten for number, ten in enumerate(others, start=1)}
    width = matching.shape[1]
    sets = ["+".join(f"{head // width}.{head % width}" for head in sorted(of)) for of in removed.values()]
    tokens = torch.cat([(examples := found.evaluation_set()).inputs, examples.targets[:, -1:]], 1)
    data = ablate(whole, tokens, mode="pattern-preserving", heads=sets, positions="all")
    by_position = data["position_loss"]
    base = by_position.sel(ablation=UNABLATED).values
    late = slice(len(base) // 2 + 1, None)  # what was there before, but its first token
    rise, *of_others = [float((by_position.sel(ablation=name).values - base)[late].mean()) for name in sets]
    lines = [Curve("none removed", np.arange(1, len(base) + 1), base)]
    lines += [
        Curve(f"without {label}", np.arange(1, len(base) + 1), by_position.sel(ablation=name).values)
        for label, name in zip(removed, sets, strict=True)
    ]
    largest = max(of_others)
    quantities = {"rise": [rise], "largest_of_others": [largest], "ratio": [rise / max(largest, 1e-9)]}
    return Measurement(quantities, Chart(f"Random tokens, repeated: {names}", "context position", "nats", lines))


def _public(runs: Runs, shuffled: bool) -> tuple[Series, str]:
    options = ForeignOptions(text=EvaluationText((RANDOM,), context=CONTEXT, examples=RANDOM_EXAMPLES))
    series = open_series(runs["model"][0].run.path, "last", options)
    return series, f"{series.name}{', shuffled' if shuffled else ''}"


def _shuffled(whole: Transformer) -> Transformer:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in whole.parameters():
            flat = weights.reshape(-1)
            weights.copy_(flat[torch.randperm(len(flat), generator=generator)].reshape(weights.shape))
    return whole
