"""Arrays packed for the page: unpacked here by another reader, they are what they were."""

from __future__ import annotations

import base64
import gzip
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from icl_fast import InputError
from icl_fast.report.page.payload import Blob, to_json


def unpacked(blob: Blob, reference: int) -> np.ndarray[Any, Any]:
    """As the page does it: the k-th byte of number i lies at offset + k * count + i."""
    raw = gzip.decompress(base64.b64decode(blob.encode()))
    entry = blob.index[reference]
    dtype, count = np.dtype(entry["dtype"]), math.prod(entry["shape"])
    numbers = bytearray()
    for i in range(count):
        for k in range(dtype.itemsize):
            numbers.append(raw[entry["offset"] + k * count + i])
    return np.frombuffer(bytes(numbers), dtype).reshape(entry["shape"])


ARRAYS = st.one_of(
    *(
        hnp.arrays(dtype, hnp.array_shapes(max_dims=3, max_side=5))
        for dtype in (np.float32, np.int16, np.uint8, np.bool_)
    ),
    hnp.arrays(np.int64, hnp.array_shapes(max_dims=2, max_side=5), elements=st.integers(-(2**53), 2**53)),
    hnp.arrays(np.float64, 3, elements=st.floats(-1e30, 1e30)),
)


@given(st.lists(ARRAYS, min_size=1, max_size=5))
def test_arrays_come_back(arrays: list[np.ndarray[Any, Any]]) -> None:
    blob = Blob()
    references = [blob.add(array) for array in arrays]
    for reference, array in zip(references, arrays, strict=True):
        found = unpacked(blob, reference)
        assert found.shape == array.shape
        whole = array.dtype.kind in "biu" or (np.isfinite(array).all() and (array == np.trunc(array)).all())
        # whole numbers to the last digit, others as the nearest float32
        expected = array if whole and (np.abs(array.astype(float)) <= 2.0**53).all() else array.astype(np.float32)
        np.testing.assert_array_equal(found.astype(np.float64), expected.astype(np.float64))


def test_narrowest_dtype() -> None:
    blob = Blob()
    tokens = np.array([0.0, 2**24 + 1, 2**40])  # float32 would miss the second
    cases = [
        (np.arange(1, 513), "uint16"),
        (np.array([-1, 3]), "int8"),
        (np.array([True, False]), "uint8"),
        (np.array([0.0, 255.0]), "uint8"),
        (np.array([0.5, np.nan]), "float32"),
        (np.array([1.0, np.nan]), "float32"),
        (tokens, "float64"),
    ]
    for array, dtype in cases:
        assert blob.index[blob.add(array)]["dtype"] == dtype
    np.testing.assert_array_equal(unpacked(blob, blob.add(tokens)), tokens)


def test_equal_arrays_are_held_once() -> None:
    blob = Blob()
    first = blob.add(np.linspace(0, 1, 7))
    assert blob.add(np.linspace(0, 1, 7)) == first
    assert blob.add(np.linspace(0, 1, 7).reshape(7, 1)) != first
    assert blob.add(np.linspace(0, 1, 8)) != first
    assert blob.encode() == blob.encode()


def test_an_empty_array_keeps_its_shape() -> None:
    blob = Blob()
    assert unpacked(blob, blob.add(np.zeros((0, 3)))).shape == (0, 3)


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([1j]), np.array([2**60]), np.array([1e300, 0.5])])
def test_what_cannot_be_kept_is_refused(array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(InputError, match="array: "):
        Blob().add(array)


def test_json_cannot_end_its_script_element() -> None:
    value = {"</script><script>": ["<!--", "é\u2028"]}
    text = to_json(value)
    assert "<" not in text
    assert json.loads(text) == value
    for bad in (float("nan"), np.float32(1), object()):
        with pytest.raises(InputError, match="page's data"):
            to_json([bad])
