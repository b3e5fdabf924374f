"""How many bytes activations take, by definition and in the fast engine; the weights and the tokens come on top.

The estimates decide how many examples are computed at a time, and so a sweep's parts: an interrupted sweep goes on only
if they have not changed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from icl_fast.errors import InputError
from icl_fast.measure.ablation.costs import Method, PassSize
from icl_fast.ops.linear_cross_entropy import LOGITS_AT_A_TIME

# most that a step of the fast engine asks for itself, weights and activations aside: a loss op, or a slice of ablations
WORK_BYTES = 96 << 20
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_memory(text: str | int) -> int:
    """Bytes, from a number or text such as `2GiB` or `500MB`.

    Raises:
        InputError: not of that form, or not positive.
    """
    given = str(text.item() if hasattr(text, "item") else text)  # of numpy or torch
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([a-z]*)", given.strip().lower())
    if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
        raise InputError(f"memory: {text!r} is not an amount of memory such as 2GiB or 500MB")
    return int(float(match[1]) * _UNITS[match[2]])


def too_little(size: PassSize, needed: int, budget: int) -> InputError:
    """The error of a budget of bytes in which not even one example fits."""
    return InputError(
        f"memory: one example of {size.context} tokens needs about {needed / 2**20:.0f} MiB, "
        f"the budget is {budget / 2**20:.0f} MiB"
    )


def base_bytes(size: PassSize) -> int:
    """The fast engine's run of the whole model, which all ablations read: one example."""
    config, inner, hidden = size.config, size.inner, (2 if size.config.gated else 1) * size.hidden
    numbers = size.context * (6 * config.width + 8 * inner + 2 * hidden) + size.rows * 4 * config.width
    if size.device == "cpu":  # and what it takes to bring one ablation through a layer, which then are few at a time
        numbers += size.context * (5 * max(config.width, inner) + 4 * size.hidden)
    if size.few:  # patterns of the rows, as they are and weighted
        numbers += 4 * config.heads * size.rows * size.context
    return size.itemsize * numbers


def variant_bytes(size: PassSize, method: Method) -> int:
    """What the fast engine holds of one example and ablation, beside the run of the whole model."""
    config = size.config
    rows = size.itemsize * size.rows * 2 * config.width + 8 * size.rows
    if method == "low rank":
        return size.itemsize * size.rows * config.d_head + 8 * size.rows
    if method == "source sums":  # the results that are removed, and what the rows' patterns become
        removed = size.itemsize * 4 * size.context * config.d_head + rows
        if size.device == "cpu":
            return removed
        # all at once: five arrays as wide as the results in float32, the patterns weighted in two ways
        return removed + size.context * (20 * config.d_head + 2 * size.itemsize * config.heads * size.rows)
    if method == "delta" and size.device == "cpu":  # what is removed; of few rows, before and after they are taken
        return size.itemsize * (size.context + size.few * size.rows) * config.width + 8 * size.rows
    # the stream, its norm's output, values, their weighted sums, copies of these; hidden layers of the MLP
    stream = size.context * (3 * config.width + 3 * size.inner + 3 * size.hidden)
    return size.itemsize * stream + rows


def example_bytes(size: PassSize, methods: Sequence[Method]) -> int:
    """One example in the fast engine, with all these ablations at once."""
    return base_bytes(size) + sum(variant_bytes(size, method) for method in methods)


def definition_bytes(size: PassSize, recorded: Sequence[str]) -> int:
    """One example by definition: a run of the whole model, and the sites that the first run recorded."""
    config = size.config
    stream, head = size.context * config.width, size.context * size.inner
    square = config.heads * size.context**2
    numbers = sum(square if name.endswith(".pattern") else head for name in recorded)
    # one layer at work: scores, masked scores, pattern and the forced pattern; q, k, v, z and their split copies
    numbers += 4 * square if any(name.endswith("pattern") for name in recorded) else square
    numbers += 8 * head + 6 * stream + 3 * size.context * size.hidden
    numbers += size.rows * (config.width + 4)
    return size.itemsize * numbers


def definition_examples(size: PassSize, recorded: Sequence[str], budget: int, whole_logits: bool = False) -> int:
    """How many examples a run by definition may hold within `budget` bytes.

    Args:
        whole_logits: whether logits at all positions are held.

    Raises:
        InputError: not even one example fits; the message says how much it needs.
    """
    each = definition_bytes(size, recorded)
    # the loss op works on blocks of logits, so that many examples share one bounded workspace
    rows, at_a_time = (size.context, sys.maxsize) if whole_logits else (size.rows, LOGITS_AT_A_TIME)
    logits, most_logits = 12 * rows * size.config.vocab, 12 * at_a_time
    fitting = max(budget // (each + logits), (budget - most_logits) // each)
    if fitting < 1:
        raise too_little(size, each + min(logits, most_logits), budget)
    return fitting
