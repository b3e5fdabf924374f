"""The two context positions that the in-context-learning score compares."""

from __future__ import annotations

PAPER_CONTEXT, PAPER_EARLY, PAPER_LATE = 512, 50, 500


def icl_positions(context: int) -> tuple[int, int]:
    """The 1-based positions (early, late) of the ICL score: 50 and 500, scaled where the context is under 512.

    Olsson et al. 2022, Analyses: "the average loss of the 500th token minus the average loss of the 50th token
    (for a length-512 context)".
    """
    if context >= PAPER_CONTEXT:
        return PAPER_EARLY, PAPER_LATE
    return max(1, round(PAPER_EARLY * context / PAPER_CONTEXT)), max(1, round(PAPER_LATE * context / PAPER_CONTEXT))
