"""What can be asked of ablations: the options that the command line, sweeps and `ablate` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import NoneType
from typing import Any, Literal, TypedDict

import torch

from icl_fast.errors import InputError

Replacement = Literal["zero", "mean"]
Engine = Literal["fast", "definition"]
BFLOAT16_PRODUCTS = "bfloat16-products"
DTYPES = {  # of streams
    "float32": torch.float32,
    BFLOAT16_PRODUCTS: torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
AUTO = "auto"
CANDIDATES = {"cpu": ("float32", BFLOAT16_PRODUCTS), "cuda": ("float32", "bfloat16")}  # of auto, the safe one first


@dataclass(frozen=True)
class AblationOptions:
    """How heads are ablated, where losses are wanted, and what computes them.

    Attributes:
        mode: `full`, `pattern-preserving` (Olsson et al. 2022), `value-`, `key-`, `query-preserving`, `direct`
            (patterns and values), or any subset such as `pattern+k`: what the run with heads removed takes from the run
            of the whole model (see `AblationMode`).
        heads: which ablations, comma-separated or a list: `all` (each head alone), `0.3`, `1.*` (a layer), `*` (all
            together), `0.3+1.2` (a set), `~0.3` (all but it), `embed`, or `none` (see `parse_ablations`).
        positions: `all`, `paper` (one random position per example and those of the ICL score), or 1-based context
            positions, as integers or text such as `50,500`. None: `all` in `ablate`, `paper` in a sweep.
        replacement: a removed result becomes `zero`, or its `mean` over all examples and positions.
        preserve_heads: only these heads' activations are preserved, such as `1.0+1.2`; None: those of all heads.
        icl_positions: the two of the ICL score, early and late, such as `50,500`; None: those, scaled where the context
            is under 512 (the paper's).
        icl_window: how many positions around each of the ICL score's two are averaged (odd; the paper: 1).
        memory: what activations may take, in bytes or text such as `2GiB`; the weights come on top.
        engine: `fast` (see `icl_fast.measure.ablation.schedule`), or the slow `definition`: the whole model runs again
            for every ablation (see `icl_fast.measure.ablation.definition`).
        dtype: what is computed with, one of `DTYPES`; `bfloat16-products`: in float32, but that products of the fast
            engine's delta form round their operands (see `Products`). `auto`: what rounds more and is faster here
            (bfloat16-products where the processor multiplies bfloat16, bfloat16 on CUDA), if it is exact on a sample
            (see `Exactness`), else float32. None: the model's own in `ablate`, float32 in a sweep.
    """

    mode: str = "pattern-preserving"
    heads: str | Sequence[str] = "all"
    positions: str | Sequence[int] | None = None
    replacement: Replacement = "zero"
    preserve_heads: str | Sequence[str] | None = None
    icl_positions: str | Sequence[int] | None = None
    icl_window: int = 1
    memory: str | int = "2GiB"
    engine: Engine = "fast"
    dtype: str | None = None

    @classmethod
    def of(cls, options: AblationOptions | None, keywords: Mapping[str, Any]) -> AblationOptions:
        """These options, or the defaults, with some fields replaced by keyword arguments.

        Raises:
            InputError: a keyword that is no option.
        """
        names = [field.name for field in fields(cls)]
        if unknown := sorted(set(keywords) - set(names)):
            raise InputError(f"{unknown[0]}: there is no such option; those of an ablation are {', '.join(names)}")
        if not isinstance(options, (cls, NoneType)):
            raise InputError(f"options: must be AblationOptions, got {type(options).__name__}; or give keywords")
        return replace(options or cls(), **keywords)


class AblationKeywords(TypedDict, total=False):
    """The fields of `AblationOptions` as keyword arguments."""

    mode: str
    heads: str | Sequence[str]
    positions: str | Sequence[int] | None
    replacement: Replacement
    preserve_heads: str | Sequence[str] | None
    icl_positions: str | Sequence[int] | None
    icl_window: int
    memory: str | int
    engine: Engine
    dtype: str | None
