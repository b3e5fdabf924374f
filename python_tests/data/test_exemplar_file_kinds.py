"""Files of exemplars as other programs write them, damaged ones, and ones that are made to do harm."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_fast.data import read_exemplars
from icl_fast.data.exemplar_source import ExemplarSource, load_exemplars
from icl_fast.errors import InputError

PIXELS = np.random.default_rng(0).random((3, 4, 5, 6), dtype=np.float32)
FLAT = PIXELS.reshape(3, 4, 30)


def written(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "e.npz", **arrays)
    return folder / "e.npz"


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        *[(kind, 1) for kind in ("<f4", ">f4", ">f8", "f2", np.longdouble)],
        *[(kind, 255) for kind in ("u1",)],
        *[(kind, 65535) for kind in ("<u2", ">u2")],
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_images_of_any_type_go_from_0_to_1(dtype: Any, scale: int, order: str, tmp_path: Path) -> None:
    values = np.asarray(np.round(PIXELS * scale) if scale > 1 else PIXELS, dtype=dtype, order=order)  # type: ignore[call-overload]
    found = read_exemplars(written(tmp_path, features=values))
    np.testing.assert_allclose(found.pixels, PIXELS, atol=0.6 / 255 if scale == 255 else 1e-3)


@pytest.mark.parametrize("dtype", ["?", "i1", "i4", ">i8", "u4", ">u8"])
def test_integers_that_are_0_or_1_are_images(dtype: str, tmp_path: Path) -> None:
    found = read_exemplars(written(tmp_path, features=(PIXELS > 0.5).astype(dtype)))
    np.testing.assert_array_equal(found.pixels, PIXELS > 0.5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        *[({"features": (PIXELS * 255).astype(kind)}, f"images of {kind}") for kind in ("int16", "int64", "uint32")],
        ({"features": -np.ones((2, 2, 3, 3), int)}, "images of int64"),
        *[({"features": PIXELS.astype(kind)}, "must be numbers") for kind in ("c8", "M8[s]", "S3", "U3")],
        ({"features": np.zeros((2, 2, 2), [("a", "f4")])}, "must be numbers"),
        *[({"features": PIXELS * value}, "NaN or infinity") for value in (np.nan, np.inf, np.float64(1e300))],
        *[({"features": part}, "is empty") for part in (PIXELS[:0], PIXELS[:, :0], PIXELS[:, :, :0], FLAT[..., :0])],
        ({"features": PIXELS[:1]}, "needs 2 classes"),
        *[({"features": part}, "needs an array features") for part in (PIXELS[None], PIXELS[0, 0], np.float32(3))],
        *[
            ({"features": FLAT, "image": np.array(image)}, "image must be two integers|is not .height, width.")
            for image in ([np.nan, 6], [-5, -6], ["5", "6"], [5, 6, 1], 30, [[5, 6]], [5.0, 6.0], [0, 0])
        ],
        ({"features": FLAT, "image": np.array([2**63, 6], np.uint64)}, "is not .height, width."),
        ({"features": FLAT, "base": np.full(3, 2**63, np.uint64)}, "base: must be 0 or more"),
        ({"features": FLAT, "base": np.zeros((3, 1), int)}, "base: must be an int64 tensor"),
        ({"features": FLAT, "names": np.array("a")}, "names: must be 3"),
        ({"features": FLAT.reshape(12, 30), "labels": np.full(12, np.nan)}, "labels must be integers or text"),
        ({"features": FLAT.reshape(12, 30), "labels": np.zeros((12, 1), int)}, r"labels are \[12, 1\]"),
        ({"features": FLAT.reshape(12, 30)[:0], "labels": np.zeros(0, int)}, "is empty"),
        ({"features": FLAT, "names": np.array([None, "a", "b"])}, "Python objects"),
    ],
)
def test_arrays_that_cannot_be(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(tmp_path, **arrays)
    with pytest.raises(InputError, match=rf"^{path}: .*({message})"):
        read_exemplars(path)


def header(shape: tuple[Any, ...], dtype: str = "<f4") -> bytes:
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return np.lib.format.MAGIC_PREFIX + b"\1\0" + len(text).to_bytes(2, "little") + text


def npy(values: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.mark.parametrize(
    "member",
    [
        b"",
        b"hello",
        npy(FLAT)[:-5],
        npy(FLAT) + b"more",
        npy(FLAT).replace(b"(3, 4, 30)", b"(2, 4, 30)"),
        header((10**6, 10**6, 10)),
        header((2**62, 2**62, 2)),
        header((-1, 2, 3)),
        header((1.5, 2, 3)),
        header((2, 2, 2), "|O"),
        header((2, 2, 2), "zz"),
        header((10**9, 0, 10**9)),
        b"\x80\x04N.",  # a pickle
    ],
)
def test_members_that_are_no_arrays(member: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "e.npz", "w") as archive:
        archive.writestr("features.npy", member)
    with pytest.raises(InputError, match=r"e\.npz: (cannot be read, it is damaged|features .* is empty)"):
        read_exemplars(tmp_path / "e.npz")


def test_other_members_are_passed_over(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "E.NPZ", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("README.txt", "features of letters")
        archive.writestr("features.npy", npy(FLAT))
    np.testing.assert_array_equal(read_exemplars(tmp_path / "E.NPZ").features, FLAT)


def test_a_zip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icl_fast.memory.available", lambda: 2**20)
    np.savez_compressed(tmp_path / "e.npz", features=np.zeros((2, 2**10, 2**10), np.uint8))
    assert (tmp_path / "e.npz").stat().st_size < 2**14
    with pytest.raises(InputError, match=r"e\.npz: needs 6 MiB of memory"):
        read_exemplars(tmp_path / "e.npz")


@given(place=st.floats(0, 0.999), byte=st.integers(0, 255), keep=st.sampled_from([1.0, 0.7]))
def test_damaged_archives_are_noticed_or_whole(
    place: float, byte: int, keep: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    content = bytearray(written(folder, features=FLAT, base=np.arange(3)).read_bytes())
    content[int(place * len(content))] = byte
    (folder / "damaged.npz").write_bytes(content[: int(keep * len(content))])
    try:
        found = read_exemplars(folder / "damaged.npz").features.numpy()
    except InputError:
        found = FLAT
    np.testing.assert_array_equal(found, FLAT)


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (
            lambda h5py, file: file.create_dataset("features", (10**6, 10**6, 10), "f4", chunks=(9, 9, 9)),
            "TiB of memory",
        ),
        (lambda h5py, file: file.__setitem__("features", h5py.ExternalLink("/dev/zero", "x")), "it holds nothing"),
        (lambda h5py, file: file.__setitem__("features", h5py.SoftLink("/nowhere")), "it holds nothing"),
        (
            lambda h5py, file: file.create_dataset("features", (2, 2, 2), "f4", external=[("/dev/zero", 0, 32)]),
            "it holds nothing",
        ),
        (lambda h5py, file: file.__setitem__("features", h5py.Empty("f4")), "it holds nothing"),
        (lambda h5py, file: file.create_dataset("features", data=np.zeros((2, 2, 2), [("a", "f4")])), "be numbers"),
        (lambda h5py, file: file.create_group("features"), "it holds nothing"),
    ],
)
def test_h5_that_cannot_be(fill: Callable[[Any, Any], object], message: str, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "e.h5", "w") as file:
        fill(h5py, file)
    with pytest.raises(InputError, match=rf"e\.h5: .*{message}"):
        read_exemplars(tmp_path / "e.h5")


@pytest.mark.parametrize("name", [b"\xff.npz", b"[red].npz", b"a\nb.npz", b"\xfe.h5"])
def test_names_that_are_odd(name: bytes, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(name)
    if name.endswith(b".h5"):
        h5py = pytest.importorskip("h5py")
        with h5py.File(tmp_path / "e.h5", "w") as file:
            file["features"] = FLAT
        (tmp_path / "e.h5").rename(path)
    else:
        written(tmp_path, features=FLAT).rename(path)
    found = read_exemplars(path)
    np.testing.assert_array_equal(found.features, FLAT)
    assert found.source == name.decode(errors="backslashreplace")


def test_paths_in_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, features=FLAT)
    source = ExemplarSource(kind="vectors", path="~/e.npz", exemplars=4, encoder="none")
    np.testing.assert_array_equal(load_exemplars(source).features, FLAT)
    with pytest.raises(InputError, match=rf"^exemplars: path: {tmp_path}/none\.npz does not exist$"):
        load_exemplars(source.model_copy(update={"path": "~/none.npz"}))


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [("~/pipe", "is a pipe"), ("~", "is a folder"), ("/dev/zero", "is a device"), ("x.pt", "does not exist")],
)
def test_encoders_that_are_no_files(encoder: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    source = ExemplarSource(kind="vectors", path="none.npz", encoder=encoder)
    with pytest.raises(
        InputError, match=rf"^exemplars\.encoder {encoder}: must be .* or a TorchScript file .*{reason}"
    ):
        load_exemplars(source)
