"""Ablation modes: what a run with heads removed takes from the run of the whole model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from icl_fast.errors import InputError
from icl_fast.models import PRESERVABLE, Preservable, TransformerConfig

MODES: dict[str, tuple[Preservable, ...]] = {
    "full": (),
    "pattern-preserving": ("pattern",),
    "value-preserving": ("v",),
    "key-preserving": ("k",),
    "query-preserving": ("q",),
    "direct": ("pattern", "v"),
}


@dataclass(frozen=True)
class AblationMode:
    """What the ablated run takes from the run of the whole model.

    "full" preserves nothing; "pattern-preserving" preserves the attention patterns, so that the ablation reaches later
    heads through their values alone (Olsson et al. 2022, Data Collection (2)); "direct" preserves patterns and values,
    which leaves the direct paths to the output. Any other subset is written like `pattern+k`.

    Attributes:
        preserve: the sites, of `PRESERVABLE`.
        heads: the 0-based (layer, head) pairs whose sites are preserved; None: all heads.
    """

    preserve: tuple[Preservable, ...]
    heads: tuple[tuple[int, int], ...] | None = None

    @classmethod
    def parse(cls, text: str, heads: tuple[tuple[int, int], ...] | None = None) -> AblationMode:
        """From a mode's name or a `+`-joined subset of pattern, q, k, v.

        Raises:
            InputError: neither of these.
        """
        if isinstance(text, str) and text in MODES:
            return cls(MODES[text], heads)
        parts = tuple(text.split("+")) if isinstance(text, str) else ("",)
        if not set(parts) <= set(PRESERVABLE) or len(set(parts)) < len(parts):
            raise InputError(
                f"mode: {text!r} is neither one of {', '.join(MODES)} "
                f"nor a subset of {', '.join(PRESERVABLE)} joined with +"
            )
        return cls(tuple(name for name in PRESERVABLE if name in parts), heads)

    def preserved_heads(self, name: str, layer: int, count: int) -> tuple[int, ...]:
        """The heads, of `count` in a layer, whose site `name` is preserved."""
        if name not in self.preserve:
            return ()
        if self.heads is None:
            return tuple(range(count))
        return tuple(head for at, head in self.heads if at == layer)

    def freezes_patterns(self, config: TransformerConfig) -> bool:
        """Whether every pattern of such a model is preserved, itself or by its queries and keys."""
        every = {(layer, head) for layer in range(config.layers) for head in range(config.heads)}
        frozen = "pattern" in self.preserve or {"q", "k"} <= set(self.preserve)
        return frozen and (self.heads is None or every <= set(self.heads))

    @property
    def preserved_values(self) -> Literal["none", "some", "all"]:
        """Of which heads the values are preserved."""
        if "v" not in self.preserve:
            return "none"
        return "all" if self.heads is None else "some"
