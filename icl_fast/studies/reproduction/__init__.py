"""Whether what the two works say is found here: their claims as data, the trainings they need, the verdicts."""

from __future__ import annotations

from icl_fast.studies.reproduction import olsson, singh
from icl_fast.studies.reproduction.claim import SCALES, WORKS, Claim, Scale, Work

CLAIMS: dict[Work, tuple[Claim, ...]] = {"olsson": olsson.CLAIMS, "singh": singh.CLAIMS}

__all__ = ["CLAIMS", "SCALES", "WORKS", "Claim", "Scale", "Work"]
