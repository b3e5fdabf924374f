"""By what exemplars are known again: other fonts or changed images make others, with no change of any config."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from icl_fast.data.exemplars import Exemplars

_MOST = 64  # classes that are looked at
_TOLERANCE = 1e-3  # of a feature's deviation: what other processors make of the same images is closer by far


def fingerprint(exemplars: Exemplars) -> dict[str, Any]:
    """Plain data: the sizes of exemplars, and of some classes the mean of all features and their deviation."""
    classes, number, width = exemplars.features.shape
    chosen = torch.linspace(0, classes - 1, min(classes, _MOST)).round().long()
    some = exemplars.features[chosen.to(exemplars.features.device)].double().flatten(1)
    return {
        "classes": classes,
        "exemplars": number,
        "features": width,
        "mean": [round(value, 6) for value in some.mean(1).tolist()],
        "deviation": [round(value, 6) for value in some.std(1).tolist()],
    }


def is_same(found: dict[str, Any], noted: dict[str, Any]) -> bool:
    """Whether two fingerprints are of the same exemplars, up to rounding."""
    if any(found[name] != noted.get(name) for name in ("classes", "exemplars", "features")):
        return False
    scale = _TOLERANCE * max(1e-6, float(np.mean(found["deviation"])))
    return all(
        len(noted.get(name, ())) == len(found[name]) and np.allclose(found[name], noted[name], rtol=0, atol=scale)
        for name in ("mean", "deviation")
    )
