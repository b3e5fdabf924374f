"""csrc/cuda/splits.h, compiled by itself, against all numbers of splits there are."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
BLOCK_START = Fraction(2, 5)
H100 = 132

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("splits")
    (folder / "splits.cpp").write_text(
        '#include "cuda/splits.h"\n'
        'extern "C" long best(long rows, long columns, long places, long least) {'
        " return icl::best_splits(rows, columns, places, least); }"
    )
    command = ["g++", "-shared", "-fPIC", "-std=c++20", "-O1", f"-I{CSRC}", "splits.cpp", "-o", "splits.so"]
    subprocess.run(command, cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "splits.so"))
    library.best.argtypes, library.best.restype = [ctypes.c_long] * 4, ctypes.c_long
    return library


def time(row_tiles: int, column_tiles: int, places: int, splits: int) -> Fraction:
    """What the busiest multiprocessor spends, in column tiles: so many rounds of blocks of so many tiles."""
    return -(-row_tiles * splits // places) * (-(-column_tiles // splits) + BLOCK_START)


def fastest(row_tiles: int, column_tiles: int, places: int, least: int = 1) -> int:
    allowed = range(min(least, column_tiles), column_tiles + 1)
    return min(allowed, key=lambda splits: (time(row_tiles, column_tiles, places, splits), splits))


@pytest.mark.parametrize("least", [1, 15, 132])
@pytest.mark.parametrize("places", [1, 7, 108, H100])
def test_no_number_of_splits_is_faster(library: ctypes.CDLL, places: int, least: int) -> None:
    rows = [*range(1, 12), 31, 64, 66, 128, 131, 132, 133, 264, 320, 1024]
    columns = [1, 2, 3, 5, 16, 17, 99, 131, 132, 133, 196, 197, 256, 264, 393, 512, 600]
    wrong = [
        (r, c, library.best(r, c, places, least), fastest(r, c, places, least))
        for r, c in itertools.product(rows, columns)
        if time(r, c, places, library.best(r, c, places, least)) > time(r, c, places, fastest(r, c, places, least))
        or library.best(r, c, places, least) < min(c, least)
    ]
    assert wrong == []


@pytest.mark.parametrize("v", [4096, 50257, 65536, 1_000_000])
@pytest.mark.parametrize("n", [1, 100, 4096, 8192, 16384, 40960])
def test_the_losses_of_an_h100(library: ctypes.CDLL, n: int, v: int) -> None:
    row_tiles, column_tiles = -(-n // 128), -(-v // 256)
    best = library.best(row_tiles, column_tiles, H100, 1)
    assert best == fastest(row_tiles, column_tiles, H100)
    idle = time(row_tiles, column_tiles, H100, best) / Fraction(row_tiles * column_tiles, H100)
    assert idle < 1.1 or row_tiles * column_tiles < 16 * H100


def test_a_block_that_starts_for_two_tiles_is_not_worth_it(library: ctypes.CDLL) -> None:
    """N = 16384, V = 65536: 125 rounds of two tiles each would take 250 tiles, less than 256, and 125 starts."""
    assert library.best(128, 256, H100, 1) == 1
    assert time(128, 256, H100, 128) == 125 * (2 + BLOCK_START)
