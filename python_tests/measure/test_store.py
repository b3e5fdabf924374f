"""Stores: what is not as it was written is named and refused, whatever it is; only what is ours is replaced."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from icl_fast import files
from icl_fast.errors import InputError
from icl_fast.measure import DamagedResults, OtherResults, open_results, save_results
from icl_fast.measure.store import PARTIAL, Workspace
from icl_fast.measure.store_files import CHECKSUMS, check_files

IDENTITY = {"what": "losses", "snapshots": {"0": "ab", "5": "cd"}}
VARIABLES = {"loss": ("snapshot", "head"), "snapshot": ("snapshot",), "name": ("snapshot",)}
Change = Callable[[Path], object]


def dataset() -> xr.Dataset:
    return xr.Dataset(
        {"loss": (("snapshot", "head"), np.arange(6.0).reshape(2, 3)), "name": ("snapshot", [1, 2])},
        coords={"snapshot": [0, 5], "head": ["a", "b", "c"], "piece": ("head", np.array(["x", "", "ü"], object))},
        attrs={"measurement": json.dumps(IDENTITY), "scale": float("nan")},
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    save_results(dataset(), tmp_path / "results.zarr")
    return tmp_path / "results.zarr"


def without_checksums(store: Path, change: Callable[[dict[str, Any]], object] = lambda metadata: None) -> None:
    """Make a store one of an earlier version, with its metadata changed."""
    consolidated = json.loads((store / ".zmetadata").read_text())
    metadata = consolidated["metadata"]
    del metadata[".zattrs"][CHECKSUMS]
    change(metadata)
    (store / ".zmetadata").write_text(json.dumps({"metadata": metadata, "zarr_consolidated_format": 1}))
    attributes = json.loads((store / ".zattrs").read_text())
    del attributes[CHECKSUMS]
    (store / ".zattrs").write_text(json.dumps(attributes))


def work(out: Path, *, repair: bool = False) -> Workspace:
    return Workspace(out, IDENTITY, "measurement", variables=VARIABLES, repair=repair)


# --- as it was saved -------------------------------------------------------------------------------------------------


def test_opens_as_it_was_saved_and_as_any_zarr_store(store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    (copy / ".DS_Store").write_text("of a file manager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in (store, copy):
            assert open_results(path).equals(dataset())
            assert CHECKSUMS not in open_results(path).attrs
            assert check_files(path)
        for consolidated in (True, False):
            group = zarr.open_group(str(store), mode="r", use_consolidated=consolidated)
            assert sorted(group.array_keys()) == ["head", "loss", "name", "piece", "snapshot"]
            with xr.open_zarr(store, consolidated=consolidated) as found:
                assert found.load().equals(dataset())


def test_one_of_an_earlier_version_opens(store: Path) -> None:
    without_checksums(store)
    assert open_results(store).equals(dataset())
    assert not check_files(store)
    assert work(store).finished()


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "results.zarr"
    save_results(dataset(), path)
    return path


@settings(max_examples=150)
@given(data=st.data())
def test_any_change_of_any_file_is_named(whole: Path, data: st.DataObject) -> None:
    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file())
    name, what = (
        data.draw(st.sampled_from(names)),
        data.draw(st.sampled_from(["flip", "cut", "extend", "gone", "swap"])),
    )
    contents, changed = (whole / name).read_bytes(), {name}
    with TemporaryDirectory() as folder:
        store = Path(shutil.copytree(whole, Path(folder) / "results.zarr"))
        if what == "flip":
            at, bits = data.draw(st.integers(0, len(contents) - 1)), data.draw(st.integers(1, 255))
            (store / name).write_bytes(contents[:at] + bytes([contents[at] ^ bits]) + contents[at + 1 :])
        elif what == "cut":
            (store / name).write_bytes(contents[: data.draw(st.integers(0, len(contents) - 1))])
        elif what == "extend":
            (store / name).write_bytes(contents + data.draw(st.binary(min_size=1, max_size=3)))
        elif what == "gone":
            (store / name).unlink()
        else:
            others = [other for other in names if (store / other).read_bytes() != contents]
            other = data.draw(st.sampled_from(others))
            (store / name).write_bytes((store / other).read_bytes())
            (store / other).write_bytes(contents)
            changed.add(other)
        if data.draw(st.booleans()):  # something besides
            new = str(Path(name).with_name(data.draw(st.sampled_from(["7", "0.9", "1.0"]))))
            (store / new).write_bytes(contents)
            changed.add(new)
        with pytest.raises(DamagedResults, match=r"results .*results.zarr: damaged: .*") as raised:
            open_results(store)
        assert "\n" not in str(raised.value)
        if ".zmetadata" in changed:  # of what is left, it cannot be said what the others were
            assert set(raised.value.files) == {".zmetadata"}
        else:
            assert set(raised.value.files) == changed


def entry(name: str, **values: Any) -> Change:
    return lambda store: without_checksums(store, lambda metadata: metadata[name].update(values))


def resaved(store: Path, **attributes: Any) -> None:
    found = open_results(store).assign_attrs(attributes)
    shutil.rmtree(store)
    found.to_zarr(store, mode="w", zarr_format=2, consolidated=True)


def replaced(name: str, make: Callable[[Path], object]) -> Change:
    def change(store: Path) -> None:
        (store / name).unlink()
        make(store / name)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (entry("loss/.zarray", dtype="|O", filters=[{"id": "pickle"}]), "loss/.zarray cannot be read .*pickle"),
        (entry("loss/.zarray", dtype="|O", filters=[{"id": "json2"}]), "loss/.zarray cannot be read .*json2"),
        (entry("loss/.zarray", dtype="|O"), "loss/.zarray cannot be read"),
        (entry("loss/.zarray", compressor={"id": "pickle"}), "loss/.zarray cannot be read .*pickle"),
        (entry("loss/.zarray", compressor="blosc"), "loss/.zarray cannot be read"),
        (entry("loss/.zarray", dtype=[["a", "<i4"]]), "loss/.zarray cannot be read"),
        (entry("loss/.zarray", dtype="<f3"), "loss/.zarray cannot be read"),
        (entry("loss/.zarray", shape=[10**15, 3]), "loss/.zarray cannot be read .*chunks"),
        (entry("loss/.zarray", shape=[10**15, 3], chunks=[10**15, 3]), "holds .* TiB, and .* of memory are free"),
        (entry("loss/.zarray", chunks=[10**15, 3]), "holds .* TiB, and .* of memory are free"),
        (entry("loss/.zarray", shape=[-1, 3]), "loss/.zarray cannot be read"),
        (entry("loss/.zarray", shape=[2.0, 3]), "loss/.zarray cannot be read"),
        (entry("loss/.zarray", shape=[6]), "loss/.zarray cannot be read"),
        (entry("loss/.zarray", zarr_format=3), "loss/.zarray cannot be read"),
        (entry("loss/.zarray", fill_value={}), "cannot be read"),
        (entry("loss/.zattrs", _ARRAY_DIMENSIONS=3), "cannot be read"),
        (
            lambda store: without_checksums(store, lambda found: found.update({"../x/.zarray": {}})),
            "no metadata of ours",
        ),
        (lambda store: (store / ".zmetadata").write_text("[" * 100_000), ".zmetadata has other bytes"),
        (lambda store: (store / ".zmetadata").write_bytes(b"\xff"), ".zmetadata has other bytes"),
        (lambda store: (store / "zarr.json").write_text("{}"), "zarr.json is of zarr format 3"),
        (lambda store: os.truncate(store / ".zmetadata", 2**40), ".zmetadata has 1 TiB"),
        (lambda store: os.truncate(store / "loss" / "0.0", 2**42), "loss/0.0 has 4 TiB"),
        (replaced("loss/0.0", os.mkfifo), "loss/0.0 is a pipe"),
        (replaced(".zmetadata", os.mkfifo), ".zmetadata is a pipe"),
        (replaced("loss/0.0", lambda path: path.symlink_to("/etc/hostname")), "loss/0.0 is a link"),
        (lambda store: (store / "more").symlink_to("/etc"), "more is a link"),
        (lambda store: (store / "loss" / "0").mkdir(), "loss/0 is a folder"),
        (lambda store: resaved(store, measurement="{"), ".zattrs attribute measurement is not a JSON object"),
        (lambda store: resaved(store, measurement="[1]"), ".zattrs attribute measurement is not a JSON object"),
        (lambda store: resaved(store, measurement=3), ".zattrs attribute measurement is not a JSON object"),
        (lambda store: resaved(store, left_out="none"), ".zattrs attribute left_out is not a JSON object"),
        (lambda store: resaved(store, plan="1" * 5_000), ".zattrs attribute plan is not a JSON object"),
    ],
)
def test_what_is_no_store_of_ours_is_refused(
    store: Path, change: Change, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    change(store)
    with pytest.raises(DamagedResults, match=message) as raised:
        open_results(store)
    assert "\n" not in str(raised.value)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_no_environment_variable_makes_a_store_run_code(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    array = {"dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}], "compressor": None, "fill_value": None}
    without_checksums(store, lambda metadata: metadata["loss/.zarray"].update(array))
    (store / "loss" / "0.0").write_bytes(pickle.dumps(Bomb(str(tmp_path / "ran"))))
    with pytest.raises(DamagedResults, match="pickle"):
        open_results(store)
    assert not (tmp_path / "ran").exists()


def test_larger_than_memory(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icl_fast.measure.store_files.available", lambda: 100)
    with pytest.raises(InputError, match=r"holds .* and 100 bytes of memory are free") as raised:
        open_results(store)
    assert not isinstance(raised.value, DamagedResults)  # it is as it was written


def test_what_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, message in (("file", "is a file"), ("nowhere", "do not exist"), ("empty", "is no zarr store")):
        with pytest.raises(InputError, match=message):
            open_results(tmp_path / name)


# --- replaced, or not ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda found: found.drop_vars("loss"), "loss is missing"),
        (lambda found: found.rename(head="h"), r"loss is \['snapshot', 'h'\]"),
        (lambda found: found.transpose("head", ...), r"loss is \['head', 'snapshot'\]"),
        (lambda found: found.isel(snapshot=[0]), "snapshot holds other steps"),
        (lambda found: found.drop_vars("snapshot"), "snapshot is missing"),
        (lambda found: found.assign(loss=found["loss"].astype(str)), "loss holds no numbers"),
    ],
)
def test_what_an_earlier_version_wrote_must_be_whole(
    store: Path, change: Callable[[xr.Dataset], xr.Dataset], wrong: str
) -> None:
    found = change(open_results(store))
    shutil.rmtree(store)
    found.to_zarr(store, mode="w", zarr_format=2, consolidated=True)
    with pytest.raises(DamagedResults, match=f"{wrong}.*; --repair measures it again"):
        work(store).finished()
    assert not work(store, repair=True).finished()


@pytest.mark.parametrize(
    "change",
    [
        lambda store: (store / ".zmetadata").unlink(),
        lambda store: (store / ".zattrs").write_text("{"),
        lambda store: [(store / name).unlink() for name in (".zmetadata", ".zattrs", ".zgroup")],
        lambda store: (without_checksums(store), (store / "loss" / "0.0").write_text("")),
        replaced("loss/0.0", lambda path: path.symlink_to("/etc/hostname")),
    ],
)
def test_repair_replaces_what_is_ours(store: Path, change: Change) -> None:
    change(store)
    with pytest.raises(DamagedResults, match="--repair measures it again"):
        work(store).finished()
    again = work(store, repair=True)
    assert not again.finished()
    with again.begin():
        again.finish(dataset().drop_attrs())
    assert work(store).finished()
    assert os.listdir(store.parent) == ["results.zarr"]


@pytest.mark.parametrize(
    "change",
    [
        lambda store: (store / "notes.txt").write_text("mine"),
        lambda store: (store / "loss" / "more").mkdir(),
        lambda store: shutil.copytree(store, store / "another"),
        lambda store: (resaved(store, measurement=3), shutil.rmtree(store / "loss"), shutil.rmtree(store / "name")),
    ],
)
def test_repair_leaves_what_may_not_be_ours(store: Path, change: Change) -> None:
    change(store)
    before = sorted(store.rglob("*"))
    with pytest.raises(DamagedResults, match="--repair would not replace it; move it away"):
        work(store, repair=True).finished()
    assert sorted(store.rglob("*")) == before


def test_repair_keeps_what_is_whole_and_refuses_what_is_of_something_else(store: Path) -> None:
    assert work(store, repair=True).finished()
    other = Workspace(store, {**IDENTITY, "what": "scores"}, "measurement", variables=VARIABLES, repair=True)
    with pytest.raises(OtherResults, match="other what"):
        other.finished()


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def unfinished(tmp_path: Path) -> Workspace:
    begun = work(tmp_path / "out.zarr")
    with begun.begin():
        for step in (0, 5):
            begun.write(step, None, {"loss": np.arange(3.0) + step, "none": np.zeros((0, 2), np.int8)})
        begun.write(5, 1, {"loss": np.arange(3.0)})
    return begun


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_part_is_no_part(unfinished: Workspace, data: st.DataObject) -> None:
    path = unfinished.partial / "00000000.npz"
    whole = path.read_bytes()
    at, bits = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :])
    if unfinished.has(0):  # such as the date in the zip file
        assert unfinished.read(0)["loss"].tolist() == [0, 1, 2]
        assert unfinished.read(0)["none"].shape == (0, 2)
    path.write_bytes(whole)
    assert unfinished.has(0)


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edit(path: Path) -> None:
        with np.load(path) as file:
            arrays = dict(file)
        change(arrays)
        np.savez(path, **arrays)

    return edit


@pytest.mark.parametrize(
    "change",
    [
        edited(lambda arrays: arrays.pop("none")),
        edited(lambda arrays: arrays.update(more=np.zeros(1))),
        edited(lambda arrays: arrays.update(loss=arrays["loss"][:2])),
        edited(lambda arrays: arrays.update(loss=arrays["loss"].astype("f4"))),
        edited(lambda arrays: arrays.update(loss=arrays["loss"] * np.nan)),
        edited(lambda arrays: arrays.pop("sha256 of this part")),
        edited(lambda arrays: arrays.update({"sha256 of this part": np.zeros((2, 2))})),
        lambda path: path.write_bytes((path.parent / "00000005.npz").read_bytes()),
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_text("text"),
        lambda path: np.savez(path, loss=np.array([{}], object)),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: path.unlink(),
    ],
)
def test_parts_that_were_edited_are_measured_again(unfinished: Workspace, change: Callable[[Path], object]) -> None:
    change(unfinished.partial / "00000000.npz")
    assert not unfinished.has(0)
    assert not unfinished.has(0, 3)
    assert unfinished.has(5)
    assert unfinished.has(5, 1)


def test_parts_of_another_plan_are_none(unfinished: Workspace) -> None:
    (unfinished.partial / "plan.json").unlink()
    other = Workspace(unfinished.out, {**IDENTITY, "what": "scores"}, "measurement")
    with other.begin():
        assert not other.has(0)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"what": 1, "what": 2}', None]
)
def test_a_damaged_plan(unfinished: Workspace, text: bytes | None) -> None:
    plan = unfinished.partial / "plan.json"
    plan.write_bytes(plan.read_bytes().replace(b"losses", b"scores") if text is None else text)
    for look in (work(unfinished.out).begin().__enter__, lambda: Workspace.parts(unfinished.partial)):
        with pytest.raises(InputError, match=r"out: .*plan.json"):
            look()
    again = work(unfinished.out, repair=True)
    with again.begin():
        assert again.has(0)
    with work(unfinished.out).begin():
        pass
    assert all(Workspace.parts(unfinished.partial).values())


def test_a_plan_of_an_earlier_version(unfinished: Workspace) -> None:
    (unfinished.partial / "plan.json").write_text(json.dumps(IDENTITY))
    with work(unfinished.out).begin():
        (unfinished.partial / "plan.json").write_text("{}")
    with pytest.raises(OtherResults, match="other what"):
        work(unfinished.out, repair=True).begin().__enter__()
    assert unfinished.partial.name == "out.zarr" + PARTIAL


def test_a_store_that_a_kill_left_under_another_name_is_read(tmp_path: Path) -> None:
    """Between the two renames that replace a store its place is empty."""
    data = xr.Dataset({"x": ("i", np.arange(3.0))})
    dead = f"{files._host()}.999999999.0-00000000"
    left = tmp_path / "left"
    left.mkdir()
    for name, what in ((f".old-{dead}-a.zarr", 0), (f".tmp-{dead}-b.zarr", 1), (f".old-{dead}-b.zarr", 0)):
        save_results(data + what, tmp_path / "made.zarr")
        (tmp_path / "made.zarr").rename(left / name)
    assert open_results(left / "a.zarr").identical(data)
    assert open_results(left / "b.zarr").identical(data + 1)  # what was to replace it was whole
    assert sorted(path.name for path in left.iterdir()) == ["a.zarr", "b.zarr"]
