"""atomic_write: a reader sees the old or the new, whole, whatever happens to the writer."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_fast import files
from icl_fast.errors import InputError
from icl_fast.files import TEMPORARY_PREFIX, atomic_write, disk_error, locked, regular_file, sha256, sweep, to_json


def everything_in(folder: Path) -> dict[str, bytes | None]:
    """All paths below, hidden ones too, with the contents of the files."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def fill(folder: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


# --- success ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_text", [False, True])
def test_a_file_appears_under_its_name_at_the_end_only(tmp_path: Path, as_text: bool) -> None:
    path = tmp_path / "a" / "b" / "result.json"
    with atomic_write(str(path) if as_text else path) as temporary:
        assert temporary.parent == path.parent  # the same file system, or the rename would be a copy
        assert temporary.name.startswith(TEMPORARY_PREFIX)
        assert not temporary.exists()
        temporary.write_bytes(b"new")
        assert not path.exists()
    assert everything_in(tmp_path) == {"a": None, "a/b": None, "a/b/result.json": b"new"}


def test_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with atomic_write("result") as temporary:
        temporary.write_bytes(b"new")
    assert everything_in(tmp_path) == {"result": b"new"}


@settings(max_examples=40)
@given(
    old=st.none() | st.binary(max_size=100),
    new=st.binary(max_size=100),
    name=st.text(st.characters(blacklist_characters="/\0", codec="utf-8"), min_size=1, max_size=40).filter(
        lambda n: n not in (".", "..")
    ),
    fails=st.booleans(),
)
def test_any_bytes_any_name(old: bytes | None, new: bytes, name: str, fails: bool) -> None:
    """Exactly the new bytes, or, if the body fails half-way, exactly the old ones; and no other file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        if old is not None:
            path.write_bytes(old)
        try:
            with atomic_write(path) as temporary:
                temporary.write_bytes(new)
                if fails:
                    temporary.write_bytes(new[: len(new) // 2])
                    raise KeyError("stop")
        except KeyError:
            assert fails
        expected = old if fails else new
        assert everything_in(Path(folder)) == ({} if expected is None else {name: expected})


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "data.zarr"
    for contents in ({"x/0": b"1", "x/1": b"2", "meta": b"m"}, {"y/0": b"3"}, {}):
        with atomic_write(path) as temporary:
            temporary.mkdir()
            fill(temporary, contents)
        folders = {str(Path(name).parent): None for name in contents if "/" in name}
        assert everything_in(path) == {**contents, **folders}
        assert os.listdir(tmp_path) == ["data.zarr"]


def test_a_link_is_replaced_and_what_it_points_to_is_kept(tmp_path: Path) -> None:
    fill(tmp_path, {"real/kept": b"k", "file": b"f"})
    (tmp_path / "to-folder").symlink_to("real")
    (tmp_path / "to-file").symlink_to("file")
    with atomic_write(tmp_path / "to-folder") as temporary:
        fill(temporary, {"new": b"n"})
    with atomic_write(tmp_path / "to-file") as temporary:
        temporary.write_bytes(b"n")
    assert everything_in(tmp_path) == {
        "real": None, "real/kept": b"k", "file": b"f", "to-folder": None, "to-folder/new": b"n", "to-file": b"n",
    }  # fmt: skip


def test_leftovers_of_killed_writers_are_no_hindrance(tmp_path: Path) -> None:
    """Every write takes a temporary name of its own, so that nothing stale gets into it, whoever left it behind."""
    path = tmp_path / "data"
    names = []
    for content in (b"1", b"2"):
        with atomic_write(path) as temporary:
            assert not temporary.exists()
            fill(temporary, {"new": content})
        names.append(temporary)
        fill(temporary, {"stale": b"s"})
    assert names[0] != names[1]
    assert all(name.name.startswith(TEMPORARY_PREFIX) and name.parent == tmp_path for name in names)
    assert everything_in(path) == {"new": b"2"}


def test_two_threads_writing_the_same_file(tmp_path: Path) -> None:
    """The last one wins, whole."""
    both_inside = threading.Barrier(2)

    def write(content: bytes) -> None:
        with atomic_write(tmp_path / "file") as temporary:
            temporary.write_bytes(content[:10])
            both_inside.wait()
            temporary.write_bytes(content)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, (b"a" * 1000, b"b" * 1000)))
    assert everything_in(tmp_path)["file"] in (b"a" * 1000, b"b" * 1000)
    assert len(everything_in(tmp_path)) == 1


def test_data_is_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync of every file of a folder, then the rename."""
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    links = Path("/proc/self/fd")

    def logged_fsync(descriptor: int) -> None:
        events.append(os.readlink(links / str(descriptor)).rpartition("/")[2] if links.exists() else "file")
        fsync(descriptor)

    def logged_replace(source: Path, target: Path) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", logged_fsync)
    monkeypatch.setattr(files.os, "replace", logged_replace)
    with atomic_write(tmp_path / "data") as temporary:
        fill(temporary, {"a": b"", "deep/b": b"1", "deep/er/c": b"2"})
    assert events[-1] == "rename"
    assert len(events) == 4
    if links.exists():
        assert sorted(events[:-1]) == ["a", "b", "c"]


def test_readers_never_see_half(tmp_path: Path) -> None:
    """A thread that reads all the time while the file is replaced 200 times."""
    path = tmp_path / "result"
    contents = [bytes([i]) * 100_000 for i in range(4)]
    path.write_bytes(contents[0])
    stop, seen = threading.Event(), set[bytes]()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(200):
        with atomic_write(path) as temporary:
            temporary.write_bytes(contents[i % 4])
    stop.set()
    reader.join()
    assert seen <= set(contents)


# --- failure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("folder", [False, True])
def test_an_exception_inside_passes_and_leaves_the_old(tmp_path: Path, error: BaseException, folder: bool) -> None:
    path = tmp_path / "result"
    fill(tmp_path, {"result/kept": b"old"} if folder else {"result": b"old"})
    before = everything_in(tmp_path)
    with pytest.raises(type(error)) as caught, atomic_write(path) as temporary:  # noqa: PT012
        fill(temporary if folder else tmp_path, {"x" if folder else temporary.name: b"new"})
        raise error
    assert caught.value is error
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full; free some space or write elsewhere, then run it again"),
        (errno.EDQUOT, "the disk is full; free some space or write elsewhere, then run it again"),
        (errno.EACCES, "cannot be written (Permission denied); choose another place"),
        (errno.EROFS, "cannot be written (Read-only file system); choose another place"),
        (errno.EIO, "cannot be written (Input/output error); choose another place"),
    ],
)
def test_a_failed_write_is_bad_input_with_one_line(tmp_path: Path, number: int, message: str) -> None:
    path = tmp_path / "result"
    path.write_bytes(b"old")
    with pytest.raises(InputError) as caught, atomic_write(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"ne")
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == f"{path}: {message}"
    assert isinstance(caught.value.__cause__, OSError)
    assert everything_in(tmp_path) == {"result": b"old"}


def test_an_error_without_a_number_keeps_its_words() -> None:
    assert str(disk_error("x", OSError("odd"))) == "x: cannot be written (odd); choose another place"


def test_a_disk_that_is_full(small_disk: Path) -> None:
    path = small_disk / "result"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="the disk is full"), atomic_write(path) as temporary:
        temporary.write_bytes(b"x" * 1_000_000)
    with pytest.raises(InputError, match="the disk is full"), atomic_write(small_disk / "new") as temporary:
        fill(temporary, {f"part{i}": b"x" * 100_000 for i in range(9)})
    assert everything_in(small_disk) == {"result": b"old"}
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"x" * 200_000)


def test_a_disk_that_is_read_only(small_disk: Path) -> None:
    (small_disk / "result").write_bytes(b"old")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for path in (small_disk / "result", small_disk / "new" / "deep"):
        with pytest.raises(InputError, match=rf"^{path}: cannot be written \(Read-only file system\)"), \
                atomic_write(path) as temporary:  # fmt: skip
            temporary.write_bytes(b"new")
    assert everything_in(small_disk) == {"result": b"old"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_a_folder_that_must_not_be_written(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=mode)
    try:
        with pytest.raises(InputError, match="Permission denied"), atomic_write(folder / "x") as temporary:
            temporary.write_bytes(b"new")
    finally:
        folder.chmod(0o700)
    assert everything_in(folder) == {}


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"old")
    for path in (tmp_path / "run" / "x", tmp_path / "run" / "deep" / "x"):
        with pytest.raises(InputError, match=rf"^{path}: cannot be written \(.*\); choose another place$"), \
                atomic_write(path) as temporary:  # fmt: skip
            temporary.write_bytes(b"new")
    assert everything_in(tmp_path) == {"run": b"old"}


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="File name too long"), atomic_write(tmp_path / ("x" * 255)) as temporary:
        temporary.write_bytes(b"new")
    assert everything_in(tmp_path) == {}


def test_a_folder_and_a_file_do_not_replace_each_other(tmp_path: Path) -> None:
    fill(tmp_path, {"folder/kept": b"k", "file": b"f"})
    before = everything_in(tmp_path)
    with pytest.raises(InputError, match="Is a directory"), atomic_write(tmp_path / "folder") as temporary:
        temporary.write_bytes(b"new")
    with pytest.raises(InputError, match="Not a directory"), atomic_write(tmp_path / "file") as temporary:
        fill(temporary, {"x": b"new"})
    assert everything_in(tmp_path) == before


def test_a_body_that_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"), atomic_write(tmp_path / "x"):
        pass
    assert everything_in(tmp_path) == {}


def test_a_folder_whose_second_rename_fails_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"data/kept": b"old"})
    rename, calls = os.rename, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(files.os, "rename", second_fails)
    with pytest.raises(InputError, match="Input/output error"), atomic_write(tmp_path / "data") as temporary:
        fill(temporary, {"x": b"new"})
    assert len(calls) == 3
    assert everything_in(tmp_path) == {"data": None, "data/kept": b"old"}


# --- SIGKILL ---------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from icl_fast import files

path, moment, kind = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if moment in ("fsync", "replace", "rename"):
    setattr(files.os, moment, die)
elif moment == "second rename":
    rename = os.rename
    files.os.rename = lambda *paths: die() if not path.exists() else rename(*paths)
elif moment == "removal":
    files._remove = die
with files.atomic_write(path) as temporary:
    if moment == "before":
        die()
    if kind == "folder":
        temporary.mkdir()
    target = temporary / "part" if kind == "folder" else temporary
    with open(target, "wb") as file:
        file.write(b"ne")
        if moment == "middle":
            file.flush()
            die()
        file.write(b"w")
die()
"""


@pytest.mark.parametrize("old", [False, True], ids=["new-place", "over-old"])
@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize(
    "moment", ["before", "middle", "fsync", "replace", "rename", "second rename", "removal", "after"]
)
def test_killed(tmp_path: Path, moment: str, kind: str, old: bool) -> None:
    """At any moment before the rename the old stands (or nothing), after it the new; and the next write succeeds."""
    path = tmp_path / "result"
    contents = (lambda b: {"result": None, "result/part": b}) if kind == "folder" else (lambda b: {"result": b})
    if old:
        fill(tmp_path, {name: content for name, content in contents(b"old").items() if content is not None})
    run = subprocess.run([sys.executable, "-c", KILLED, path, moment, kind], capture_output=True, cwd=os.getcwd())
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    replaced_by_rename = kind == "folder" and old
    never_called = {"replace"} if replaced_by_rename else {"rename", "second rename"}
    done = moment in {"after", "removal", *never_called}
    visible = {n: c for n, c in everything_in(tmp_path).items() if not n.startswith((".tmp-", ".old-"))}
    lost = replaced_by_rename and moment == "second rename"
    assert visible == ({} if lost else contents(b"new") if done else contents(b"old") if old else {})
    sweep(tmp_path)
    assert everything_in(tmp_path) == (contents(b"new") if done or lost else contents(b"old") if old else {})
    with atomic_write(path) as temporary:
        fill(tmp_path, {f"{temporary.name}/part" if kind == "folder" else temporary.name: b"next"})
    visible = {n: c for n, c in everything_in(tmp_path).items() if not n.startswith(TEMPORARY_PREFIX)}
    assert visible == contents(b"next")


# --- checksums -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3_000_000])
def test_sha256(tmp_path: Path, size: int) -> None:
    content = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    (tmp_path / "x").write_bytes(content)
    assert sha256(tmp_path / "x") == sha256(str(tmp_path / "x")) == hashlib.sha256(content).hexdigest()


def test_sweep_leaves_the_living_and_the_strange(tmp_path: Path) -> None:
    """What another process writes right now, another machine's fresh files, and files that only look like ours stay."""
    host, other = files._host(), "00000000" if files._host() != "00000000" else "11111111"
    kept = [
        f".tmp-{files._owner()}-00000000-mine",
        f".tmp-{host}.{os.getppid()}.{files._began(os.getppid())}-00000000-parents",
        f".tmp-{other}.999999999.0-00000000-elsewhere",
        ".tmp-notes",
        "data.tmp",
    ]
    dead = [
        f".tmp-{host}.999999999.0-00000000-x",
        f".tmp-{host}.{os.getpid()}.1-00000000-of an earlier process with this number",
        f".old-{host}.999999999.0-00000000-data.tmp",
        f".tmp-{other}.999999999.0-00000000-forgotten",
    ]
    for name in kept + dead:
        (tmp_path / name).write_bytes(b"half")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as zombie:
        dead.append(f".tmp-{host}.{zombie.pid}.{files._began(zombie.pid)}-00000000-killed, but not waited for")
        (tmp_path / dead[-1]).write_bytes(b"half")
        zombie.kill()
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        os.utime(tmp_path / dead[-2], (0, 0))
        sweep(tmp_path)
    assert set(everything_in(tmp_path)) == set(kept)
    sweep(tmp_path / "no folder")


# --- locks -----------------------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from icl_fast.files import locked
with locked(sys.argv[1], "out: x"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time_and_a_killed_one_keeps_nobody_away(tmp_path: Path) -> None:
    lock = tmp_path / "new" / ".lock-x"
    with subprocess.Popen([sys.executable, "-c", HOLDER, lock], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"out: x is being written by another process \({holder.pid}\)"):
            locked(lock, "out: x").__enter__()
        holder.kill()
    assert lock.exists()
    with locked(lock, "out: x"), pytest.raises(InputError), locked(lock, "out: x"):
        pass
    assert not lock.exists()


def test_waiting_for_a_lock_never_lets_two_in(tmp_path: Path) -> None:
    inside: list[int] = []

    def work(_: int) -> int:
        with locked(tmp_path / "lock", "out: x", wait=True):
            inside.append(1)
            count = len(inside)
            inside.pop()
            return count

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(work, range(200))) == {1}
    assert everything_in(tmp_path) == {}


def test_a_lock_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(InputError, match="out: x: cannot be written"),
        locked(tmp_path / "file" / "l", "out: x"),
    ):
        pass


# --- what is read ----------------------------------------------------------------------------------------------------


def test_regular_files_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "broken").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe")
    assert regular_file(tmp_path / "link", "text") == tmp_path / "link"
    for name, why in {
        "none": "does not exist", "broken": "link to a file that is gone", "pipe": "is a pipe; give a file",
        ".": "is a folder", "file/below": "cannot be read", "n" * 300: "cannot be read", "n\0": "cannot be read",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=f"^text: .*{why}"):
            regular_file(tmp_path / name, "text")
    with pytest.raises(InputError, match="text: /dev/zero is a device"):
        regular_file("/dev/zero", "text")


# --- JSON ------------------------------------------------------------------------------------------------------------


@given(st.recursive(st.floats() | st.text() | st.none(), lambda of: st.lists(of) | st.dictionaries(st.text(), of)))
def test_json_has_neither_nan_nor_infinity(value: object) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    def finite(one: object) -> object:
        if isinstance(one, dict):
            return {name: finite(inner) for name, inner in one.items()}
        if isinstance(one, list):
            return [finite(inner) for inner in one]
        return None if isinstance(one, float) and one - one != 0 else one

    assert json.loads(to_json(value), parse_constant=refuse) == finite(value)
