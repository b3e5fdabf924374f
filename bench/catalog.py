"""The benches, in the order in which they run: bench_NAME.py each. Needs the standard library alone."""

from __future__ import annotations

import source_tree  # noqa: F401 - before icl_fast

from icl_fast import OPS

NAMES = (*OPS, "sweep", "head_scores", "exemplar_training", "text_training", "call_overhead", "toy")
