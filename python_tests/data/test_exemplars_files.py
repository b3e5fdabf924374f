from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from icl_fast.data import Exemplars, read_exemplars, read_images, save_exemplars, write_contact_sheet
from icl_fast.errors import InputError

PIXELS = np.random.default_rng(0).random((3, 4, 5, 6), dtype=np.float32)


def full() -> Exemplars:
    features = torch.from_numpy(PIXELS).flatten(2)
    return Exemplars(features, torch.tensor([0, 0, 1]), ("α", "β", "γ"), (5, 6), "made up")


def same(a: Exemplars, b: Exemplars) -> bool:
    tensors = torch.equal(a.features, b.features) and torch.equal(a.base, b.base)
    return tensors and (a.names, a.image, a.source) == (b.names, b.image, b.source)


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    save_exemplars(tmp_path / "full.npz", full())
    assert same(read_exemplars(tmp_path / "full.npz"), full())
    plain = Exemplars(full().features, torch.arange(3))
    save_exemplars(tmp_path / "plain.npz", plain)
    assert same(read_exemplars(tmp_path / "plain.npz"), plain)
    with pytest.raises(InputError, match=r"written as \.npz"):
        save_exemplars(tmp_path / "full.h5", full())


def test_images_of_four_dims(tmp_path: Path) -> None:
    np.savez(tmp_path / "any.npz", pictures=(PIXELS * 255).astype(np.uint8))
    found = read_exemplars(tmp_path / "any.npz")
    assert found.image == (5, 6)
    torch.testing.assert_close(found.pixels, torch.from_numpy(PIXELS), atol=1 / 255, rtol=0)


def test_labels(tmp_path: Path) -> None:
    features, labels = np.arange(14, dtype=np.float64).reshape(7, 2), np.array([5, 2, 5, 2, 5, 9, 9])
    np.savez(tmp_path / "l.npz", features=features, labels=labels)
    found = read_exemplars(tmp_path / "l.npz", exemplars=2)
    assert found.names == ("2", "5", "9")
    assert found.features[:, :, 0].tolist() == [[2, 6], [0, 4], [10, 12]]
    with pytest.raises(InputError, match="class 2 has 2 exemplars and class 5 has 3; give exemplars=2"):
        read_exemplars(tmp_path / "l.npz")
    with pytest.raises(InputError, match="class 2 has 2 exemplars, fewer than exemplars=3"):
        read_exemplars(tmp_path / "l.npz", exemplars=3)


def test_h5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["features"], file["base"], file["names"] = PIXELS, [0, 0, 1], ["α", "β", "γ"]
        file["source"] = "made up"
    assert same(read_exemplars(tmp_path / "e.h5"), full())
    content = (tmp_path / "e.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="damaged or no HDF5 file"):
        read_exemplars(tmp_path / "cut.h5")


def test_h5_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "e.h5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"needs h5py; pip install 'icl_fast\[h5\]'"):
        read_exemplars(tmp_path / "e.h5")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"features": np.zeros((3, 4))}, r"needs an array features \[K,E,F\], or \[N,F\] with labels"),
        ({"a": np.zeros((3, 4, 2)), "b": np.zeros((3, 4, 2))}, r"it holds a \[3, 4, 2\], b"),
        ({}, "it holds nothing"),
        ({"features": np.full((2, 1, 1), np.nan)}, "class 0 holds NaN"),
        ({"features": np.full((2, 1, 1), 1e300)}, "class 0 holds NaN or infinity"),
        ({"features": np.array([[["a"]], [["b"]]])}, "features must be numbers"),
        ({"features": np.array([[[None]], [[1]]])}, "Python objects"),
        ({"features": PIXELS, "base": np.zeros(3)}, "base must be integers"),
        ({"features": PIXELS, "base": np.arange(2)}, r"base: must be an int64 tensor \[3\]"),
        ({"features": PIXELS, "names": np.array(["a"])}, "names: must be 3"),
        ({"features": PIXELS.reshape(3, 4, 30), "image": np.array([4, 4])}, r"image: \(4, 4\) is not"),
        ({"features": np.zeros((4, 2)), "labels": np.arange(3)}, r"labels are \[3\]"),
        ({"features": np.zeros((4, 2)), "labels": np.arange(4.0)}, "labels must be integers or text"),
        ({"features": np.zeros((4, 2)), "labels": np.zeros(4, int)}, "holds 1 classes"),
    ],
)
def test_bad_arrays(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=message):
        read_exemplars(tmp_path / "bad.npz")


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.9])
def test_truncated_npz(keep: float, tmp_path: Path) -> None:
    save_exemplars(tmp_path / "e.npz", full())
    content = (tmp_path / "e.npz").read_bytes()
    (tmp_path / "e.npz").write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(InputError, match="cannot be read"):
        read_exemplars(tmp_path / "e.npz")


def test_flipped_npz(tmp_path: Path) -> None:
    save_exemplars(tmp_path / "e.npz", full())
    content = bytearray((tmp_path / "e.npz").read_bytes())
    content[len(content) // 3] ^= 0xFF
    (tmp_path / "e.npz").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        read_exemplars(tmp_path / "e.npz")


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "e.pkl").write_bytes(b"")
    for path, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "no.npz", "does not exist"),
        (tmp_path / "e.pkl", r"\.h5"),
    ):
        with pytest.raises(InputError, match=message):
            read_exemplars(path)


def test_full_disk(small_disk: Path) -> None:
    large = Exemplars(torch.rand(20, 10, 2000), torch.arange(20))
    with pytest.raises(InputError, match="the disk is full"):
        save_exemplars(small_disk / "e.npz", large)
    assert not list(small_disk.iterdir())


@pytest.fixture
def omniglot(tmp_path: Path) -> Path:
    """Two alphabets, dark strokes on bright paper, as the data set comes: 1 bit a pixel, 105 pixels a side."""
    random = np.random.default_rng(3)
    folder = tmp_path / "omniglot"
    for half, alphabet, characters in (("images_background", "Greek", 2), ("images_evaluation", "Atlantean", 3)):
        for character in range(1, characters + 1):
            place = folder / half / alphabet / f"character{character:02d}"
            place.mkdir(parents=True)
            for drawing in range(1, 5):
                paper = np.full((105, 105), True)
                paper[tuple(random.integers(10, 90, 2))] = False
                paper[20 * character : 20 * character + 5, 10 : 20 * drawing] = False
                Image.fromarray(paper).save(place / f"{character:04d}_{drawing:02d}.png")
    return folder


def test_omniglot(omniglot: Path) -> None:
    found = read_images(omniglot, size=35)
    assert found.features.shape == (5, 4, 35 * 35)
    assert found.names[0] == "images_background/Greek/character01"
    assert found.names[-1] == "images_evaluation/Atlantean/character03"
    for name, drawings in zip(found.names, found.pixels, strict=True):
        for file, pixels in zip(sorted((omniglot / name).iterdir()), drawings, strict=True):
            ink = 1 - np.asarray(Image.open(file)).astype(float)
            blocks = ink.reshape(35, 3, 35, 3).mean((1, 3))
            np.testing.assert_allclose(pixels, blocks, atol=0.51 / 255)
    half = read_images(omniglot / "images_evaluation", size=35, exemplars=2)
    assert torch.equal(half.features, found.features[2:, :2])


def test_folders_follow_the_content_not_the_cache(omniglot: Path) -> None:
    first = read_images(omniglot)
    assert torch.equal(read_images(omniglot).features, first.features)
    file = omniglot / "images_background" / "Greek" / "character01" / "0001_01.png"
    Image.new("1", (105, 105), 1).save(file)
    assert float(read_images(omniglot).features[0, 0].sum()) == 0


def test_bright_ink_stays(tmp_path: Path) -> None:
    for name, value in (("a", 40), ("b", 80)):
        (tmp_path / "d" / name).mkdir(parents=True)
        Image.new("RGB", (20, 30), (value, value, value)).save(tmp_path / "d" / name / "x.JPG")
    found = read_images(tmp_path / "d", size=9)
    assert found.features.mean((1, 2)).tolist() == pytest.approx([40 / 255, 80 / 255], abs=2 / 255)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "text", "missing"])
def test_damaged_images(damage: str, omniglot: Path) -> None:
    file = omniglot / "images_evaluation" / "Atlantean" / "character02" / "0002_03.png"
    content = file.read_bytes()
    file.write_bytes(
        {"truncated": content[: len(content) // 2], "emptied": b"", "text": b"text", "missing": b""}[damage]
    )
    message = r"^images: .*0002_03\.png is no image or damaged"
    if damage == "missing":
        file.unlink()
        message = "has 3 exemplars and class images_background/Greek/character01 has 4; give exemplars=3"
    with pytest.raises(InputError, match=message):
        read_images(omniglot)


def test_bad_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, message in (
        (tmp_path / "no", "does not exist; give a folder"),
        (tmp_path / "file", "is no folder"),
        (tmp_path, "0 classes"),
    ):
        with pytest.raises(InputError, match=message):
            read_images(folder)
    with pytest.raises(InputError, match="size: must be 1"):
        read_images(tmp_path, size=0)


def test_killed_while_caching_images(omniglot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICL_FAST_CACHE", str(tmp_path / "cache"))
    code = (
        "import os, signal, sys\n"
        "os.fsync = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from icl_fast.data import read_images\n"
        "read_images(sys.argv[1])"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(omniglot)], env=dict(os.environ), capture_output=True)
    assert killed.returncode == -9
    assert list((tmp_path / "cache" / "images").glob(".tmp-*"))
    read_images(omniglot)
    (entry,) = (path for path in (tmp_path / "cache" / "images").iterdir() if path.is_dir())
    assert sorted(path.name for path in entry.iterdir()) == ["manifest.json", "pixels.npy"]


def test_full_disk_in_the_cache(omniglot: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICL_FAST_CACHE", str(small_disk))
    with pytest.raises(InputError, match="the disk is full"):
        read_images(omniglot, size=128)
    assert not list(small_disk.iterdir())


def test_contact_sheet(tmp_path: Path) -> None:
    write_contact_sheet(tmp_path / "s.png", full(), rows=2, panels=2, scale=1)
    sheet = np.asarray(Image.open(tmp_path / "s.png"))
    assert sheet.shape == (2 * 7, 2 * (4 * 8) + 12)
    ink = 255 - np.round(PIXELS * 255)
    np.testing.assert_array_equal(sheet[1:6, 1:7], ink[0, 0])
    np.testing.assert_array_equal(sheet[8:13, 9:15], ink[1, 1])
    np.testing.assert_array_equal(sheet[1:6, 44 + 25 : 44 + 31], ink[2, 3])
    with pytest.raises(InputError, match=r"written as \.png"):
        write_contact_sheet(tmp_path / "s.jpg", full())
    with pytest.raises(InputError, match="rows: must be 1 or more"):
        write_contact_sheet(tmp_path / "s.png", full(), rows=0)
    for name in ("panels", "scale"):
        with pytest.raises(InputError, match=r"panels \d+, scale \d+: needs .* of memory"):
            write_contact_sheet(tmp_path / "s.png", full(), **{name: 10**12})
