"""What one model makes of one text: losses token by token, and every head's attention and direct effect on it.

Olsson et al. 2022, Argument 1, "Per-token losses on Harry Potter", and Argument 4.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from tokenizers import Encoding, Tokenizer, pre_tokenizers
from torch import Tensor

from icl_fast.arguments import whole_number
from icl_fast.data import Text
from icl_fast.data.tokenizer import BOS_ID
from icl_fast.errors import InputError
from icl_fast.measure.heads.attribution import direct_logits, head_outputs, output_scale, scaled_directions
from icl_fast.measure.of_model import measures_model, measures_weights
from icl_fast.measure.whole_pass import run_losses
from icl_fast.models import Intervention, Transformer, site
from icl_fast.models.positions import causal_mask

BOS_PIECE = "<bos>"


@dataclass(frozen=True, eq=False)
class TokenisedText:
    r"""A text as a model reads it: T tokens at most as long as its context.

    Attributes:
        name, title, kind, source: of the text.
        inputs: [T] int64, BOS then all targets but the last; without BOS the text's tokens but the last.
        targets: [T] int64, the text's tokens; without BOS all but the first.
        pieces: [T] what each target adds to the text. Bytes of a character that is spread over several tokens are
            written `\xe2`, or, where the tokenizer is not a byte-level BPE, the character stands at the first of them;
            the other pieces, joined, are the text.
        categories: [T] int64, where the target is a label of a template text its category, else -1.
        left_out: tokens of the text beyond the context.
        first: the piece that is read first, `<bos>` or that of the first token.
    """

    name: str
    title: str
    kind: str
    source: str
    inputs: Tensor
    targets: Tensor
    pieces: tuple[str, ...]
    categories: Tensor
    left_out: int
    first: str = BOS_PIECE


def tokenise(text: Text, tokenizer: Tokenizer, context: int, bos: int | None = BOS_ID) -> TokenisedText:
    """Tokens of the front of a text, as many as the model's context holds.

    Args:
        text: the text.
        tokenizer: of the model.
        context: the most targets.
        bos: id of the token that begins what is read; None: none does, and the first token is no target.

    Raises:
        InputError: no text, a context under 1, or a tokenizer that leaves out some of the text.
    """
    whole_number("context", context, 1)
    encoding = tokenizer.encode(text.text, add_special_tokens=False)
    ids = encoding.ids
    unread = int(bos is None)
    if len(ids) <= unread:
        raise InputError(f"text {text.name}: is {'empty' if not ids else 'one token'}; give one with some text")
    parts = _pieces(text.text, encoding)
    if parts is None:
        raise InputError(f"tokenizer: its tokens do not give text {text.name} back; give one that leaves out no text")
    whole = torch.tensor(ids[: context + unread], device="cpu")
    targets = whole[unread:]
    categories = torch.full_like(targets, -1)
    ends = list(accumulate(map(len, parts)))
    for mark in text.marks:
        position = bisect_right(ends, len(text.text[: mark.start].encode())) - unread
        if 0 <= position < len(targets):
            categories[position] = mark.category
    return TokenisedText(
        name=text.name,
        title=text.title,
        kind=text.kind,
        source=text.source,
        inputs=whole[:-1] if bos is None else F.pad(whole[:-1], (1, 0), value=bos),
        targets=targets,
        pieces=tuple(part.decode("utf-8", "backslashreplace") for part in parts[unread : len(whole)]),
        first=BOS_PIECE if bos is not None else parts[0].decode("utf-8", "backslashreplace"),
        categories=categories,
        left_out=len(ids) - len(whole),
    )


def token_pieces(text: str, encoding: Encoding) -> list[str] | None:
    """What each token adds to a text, as in `TokenisedText.pieces`; None where the tokens leave out some of it."""
    parts = _pieces(text, encoding)
    return None if parts is None else [part.decode("utf-8", "backslashreplace") for part in parts]


def _pieces(text: str, encoding: Encoding) -> list[bytes] | None:
    """What each token adds to a text: the bytes that it spells, or else those up to where it says that it ends."""
    parts = [_bytes(token) for token in encoding.tokens]
    if b"".join(parts) == text.encode():
        return parts
    ends = list(accumulate((end for _, end in encoding.offsets), max))
    parts = [text[start:end].encode() for start, end in zip([0, *ends], ends, strict=False)]
    return parts if b"".join(parts) == text.encode() else None


@measures_model
def token_losses(model: Transformer, text: TokenisedText) -> Tensor:
    """Per-token losses in nats, [T] float32 on the CPU; the model's input and targets are the text's.

    Raises:
        InputError: tokens that the model does not have, or more of them than its context.
    """
    _check_vocabulary(model, text)
    losses, _ = run_losses(model, text.inputs[None].to(model.device), text.targets[None].to(model.device))
    return losses[0].float().cpu()


@measures_weights
def head_views(
    model: Transformer, text: TokenisedText, heads: Sequence[tuple[int, int]] | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of A heads, and their direct-path logit attribution of the true next token.

    The second is `icl_fast.measure.logit_attribution` of each head with the text's targets. The model runs once, and
    beside the result no more is held than what one layer's heads need.

    Args:
        heads: (layer, head) of each; None: all, in order.

    Returns:
        pattern and logits, each [A,T,T] float32 on the CPU: destinations, then sources.

    Raises:
        InputError: tokens that the model does not have, or more of them than its context.
    """
    config, device = model.config, model.device
    _check_vocabulary(model, text)
    heads = list(np.ndindex(config.layers, config.heads)) if heads is None else heads
    length = len(text.inputs)
    pattern = torch.empty(len(heads), length, length, dtype=torch.float32, device="cpu")
    logits = torch.empty_like(pattern)
    places = {
        layer: [place for place, (of, _) in enumerate(heads) if of == layer]
        for layer in sorted({of for of, _ in heads})
    }
    chosen = {layer: [heads[place][1] for place in at] for layer, at in places.items()}

    def recording(layer: int) -> Intervention:
        def record(value: Tensor) -> Tensor:
            pattern[places[layer]] = value[0, chosen[layer]].float().cpu()
            return value

        return Intervention.apply(site("pattern", layer), record)

    last = site("resid_post", config.layers - 1)
    _, sites = model.hidden(
        text.inputs[None].to(device),
        record=[last, *(site(name, layer) for layer in places for name in "vz")],
        interventions=[recording(layer) for layer in places],
    )
    directions = scaled_directions(model, text.targets[None, :, None].to(device), sites[last])
    for layer, at in places.items():
        # no name for what is computed: it would be held while the next layer's is
        logits[at] = (
            direct_logits(
                head_outputs(model.blocks[layer])[chosen[layer]],
                directions,
                sites[site("v", layer)][:, chosen[layer]],
                pattern[at].to(device)[None],
                output_scale(model.blocks[layer], sites[site("z", layer)]),
            )[0, ..., 0]
            .float()
            .cpu()
        )
    return pattern, logits


_VIEW = ("viewed", "shown", "position", "source")
TEXT_VARIABLES: dict[str, tuple[str, ...]] = {  # of `text_dataset`: name -> dims
    **{"loss": ("snapshot", "position"), "pattern": _VIEW, "logits": _VIEW},
    **{"snapshot": ("snapshot",), "tokens": ("snapshot",), "viewed": ("viewed",)},
    **{name: ("shown",) for name in ("layer", "head")},
    **{name: ("position",) for name in ("position", "input", "target", "category")},
}


def text_dataset(
    text: TokenisedText,
    steps: Sequence[int],
    tokens: Sequence[int],
    losses: Tensor,
    heads: Sequence[tuple[int, int]],
    viewed: Sequence[int],
    pattern: Tensor,
    logits: Tensor,
) -> xr.Dataset:
    """All that is known of a text and a run, as one Dataset.

    Args:
        text: T tokens.
        steps: of the snapshots, rising.
        tokens: seen by then.
        losses: [snapshot,T] of `token_losses`.
        heads: (layer, head) of each that is shown.
        viewed: steps of the W snapshots whose heads were read, some of `steps`, rising.
        pattern, logits: [W,A,T,T] of `head_views` of these.

    Returns:
        `loss` [snapshot, position] and `pattern`, `logits` [viewed, shown, position, source] with coords `snapshot`
        (steps), `tokens`, `viewed` (steps), `layer` and `head` of those shown, `position` (1-based), `input` and
        `target` (pieces of the token that is read there, first "<bos>" where there is one, and of the one that is
        predicted), `category` (of a label that is predicted there, else -1); attributes name, title, kind, source,
        left_out_tokens.
    """
    return xr.Dataset(
        {
            "loss": (TEXT_VARIABLES["loss"], losses.numpy(), {"units": "nats"}),
            "pattern": (TEXT_VARIABLES["pattern"], pattern.numpy(), {"long_name": "attention"}),
            "logits": (
                TEXT_VARIABLES["logits"],
                logits.numpy(),
                {"long_name": "direct effect on the target's logit over the mean logit"},
            ),
        },
        coords={
            "snapshot": list(steps),
            "tokens": ("snapshot", list(tokens)),
            "viewed": list(viewed),
            "layer": ("shown", [layer for layer, _ in heads]),
            "head": ("shown", [head for _, head in heads]),
            "position": np.arange(1, len(text.pieces) + 1),
            # as objects: numpy's own strings lose a zero character at the end
            "input": ("position", np.array([text.first, *text.pieces[:-1]], dtype=object)),
            "target": ("position", np.array(text.pieces, dtype=object)),
            "category": ("position", text.categories.numpy()),
        },
        attrs={
            "name": text.name,
            "title": text.title,
            "kind": text.kind,
            "source": text.source,
            "left_out_tokens": text.left_out,
        },
    )


def template_attention(pattern: Tensor, categories: Tensor) -> tuple[Tensor, Tensor]:
    """How far heads look at the right lines of a template text (Olsson et al. 2022, Argument 4, behavior 3).

    Where a label is predicted, a head that matches the pattern attends to the labels of earlier lines of the same
    category: the paper's example does with "about 65% of its attention".

    Args:
        pattern: [...,T,T] attention of any heads.
        categories: [T], as in `TokenisedText`.

    Returns:
        The attention to the label tokens of all earlier lines of the same category, and that to those of all earlier
        lines of other categories, each [...] float64: means over the labels that have an earlier line of their category
        (NaN if none has).
    """
    length = len(categories)
    read = torch.full_like(categories, -1)  # the category of the label that is read at each source
    read[1:] = categories[:-1]  # a label is read one position after it was predicted
    labels = (categories >= 0)[:, None] & (read >= 0)[None, :] & causal_mask(length, device=categories.device)
    same = labels & (categories[:, None] == read[None, :])
    other = labels & ~same
    counted = same.any(-1)
    rows = pattern[..., counted, :].double()
    to_same, to_other = ((rows * chosen[counted]).sum(-1).mean(-1) for chosen in (same, other))
    return to_same, to_other


def _check_vocabulary(model: Transformer, text: TokenisedText) -> None:
    largest = int(text.targets.max())
    if largest >= model.config.vocab:
        raise InputError(
            f"text {text.name}: holds token {largest}, but the model's vocabulary is 0 to {model.config.vocab - 1}; "
            "tokenise it with the model's own tokenizer"
        )


def _byte_of_symbol() -> dict[str, int]:
    """Byte-level BPE writes each byte as a character: a printable one as itself, the others in order from U+0100."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_of = {symbol: ord(symbol) for symbol in alphabet if ord(symbol) < 256}
    others = sorted(set(range(256)) - set(bytes_of.values()))
    return bytes_of | dict(zip((symbol for symbol in alphabet if ord(symbol) >= 256), others, strict=True))


_BYTES = _byte_of_symbol()


def _bytes(token: str) -> bytes:
    # a symbol of another kind of tokenizer becomes text of its own, so that the whole is not the text
    return b"".join(bytes([_BYTES[symbol]]) if symbol in _BYTES else b"\xff" for symbol in token)
