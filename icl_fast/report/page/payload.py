"""Arrays and JSON inside an HTML file: small, exact to float32, and inert until the page's scripts decode them."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_fast.errors import InputError

_INTEGERS = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32)
_LARGEST_WHOLE = 2**53  # beyond it float64, and so JavaScript, skips whole numbers


class Blob:
    """Arrays packed one after the other; `add` gives the number by which the page's `ICL.array` finds an array again.

    Equal arrays are held once. Each is stored by its bytes of equal significance together (all first bytes, then all
    second ones, ...), which gzip packs smaller: the high bytes of neighbouring floats are nearly alike.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._known: dict[tuple[str, str, tuple[int, ...]], int] = {}
        self.index: list[dict[str, Any]] = []

    def add(self, array: NDArray[Any]) -> int:
        """Keep an array of booleans, whole numbers or floats, any shape.

        Whole numbers, of whatever dtype, are kept exactly in the narrowest dtype that holds them all; other floats as
        float32, NaN included.

        Raises:
            InputError: another dtype, or a value that neither float32 nor a whole number under 2^53 can be.
        """
        values = np.ascontiguousarray(_narrow(np.asarray(array)))
        shape = np.shape(array)
        raw = values.tobytes()
        key = (values.dtype.name, hashlib.sha256(raw).hexdigest(), shape)
        if key not in self._known:
            self._known[key] = len(self.index)
            self.index.append({"dtype": values.dtype.name, "shape": list(shape), "offset": self._size})
            self._parts.append(np.frombuffer(raw, np.uint8).reshape(-1, values.itemsize).T.tobytes())
            self._size += len(raw)
        return self._known[key]

    def encode(self) -> str:
        """All arrays, gzip, base64; the same for the same arrays."""
        # at level 9 attention patterns take ten times as long, to be 6% smaller
        return base64.b64encode(gzip.compress(b"".join(self._parts), compresslevel=6, mtime=0)).decode()


def to_json(value: Any) -> str:
    """JSON that can stand in a `<script>` element: no `<` in it, so nothing in it ends the element or begins another.

    Raises:
        InputError: a number that is not finite (JSON has none), or something that JSON cannot hold.
    """
    try:
        text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InputError(f"the page's data: {error}; give arrays to Blob.add and None for what is not known") from error
    return text.replace("<", "\\u003c")


def _narrow(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind not in "biuf":
        raise InputError(f"array: must hold booleans, whole numbers or floats, got {values.dtype}")
    if values.size == 0:
        return values.astype(np.float32)
    if values.dtype.kind in "biu" or (np.isfinite(values).all() and (values == np.trunc(values)).all()):
        low, high = int(values.min()), int(values.max())
        for dtype in _INTEGERS:
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return values.astype(dtype)
        if max(-low, high) <= _LARGEST_WHOLE:
            return values.astype(np.float64)
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    if values.dtype.kind in "biu" or (np.isinf(single) & np.isfinite(values)).any():
        raise InputError("array: holds a number too large for the page (float32, or whole numbers up to 2^53)")
    return single
