from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from icl_fast.data import DataConfig, load_text
from icl_fast.data import cache as cache_module
from icl_fast.data import windows as windows_module
from icl_fast.data.cache import cache_folder, cached
from icl_fast.errors import InputError

FILES = ["held_out.npy", "manifest.json", "tokenizer.json", "train.npy"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("ICL_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "text"


@pytest.fixture
def digest(corpus_folder: Path) -> Callable[[], str]:
    return lambda: load_text(DataConfig(corpus=str(corpus_folder), vocab=280, context=24)).evaluation().digest


def entry_of(folder: Path) -> Path:
    (entry,) = (path for path in folder.iterdir() if path.is_dir())
    assert sorted(path.name for path in entry.iterdir()) == FILES
    return entry


def count_builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    builds: list[int] = []
    train = windows_module.train_tokenizer
    monkeypatch.setattr(windows_module, "train_tokenizer", lambda *a: (builds.append(1), train(*a))[1])
    return builds


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICL_FAST_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"
    monkeypatch.delenv("ICL_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/icl_fast")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/icl_fast"


@pytest.mark.parametrize("variable", ["", "XDG_CACHE_HOME", "ICL_FAST_CACHE"])
def test_no_home(variable: str, monkeypatch: pytest.MonkeyPatch, digest: Callable[[], str]) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "ICL_FAST_CACHE"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "~no-such-user/cache")

    def unknown(_: object) -> None:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(InputError, match=r"^cache: this user has no home folder to keep it in; set ICL_FAST_CACHE"):
        digest()


def test_second_load_builds_nothing(folder: Path, digest: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    builds = count_builds(monkeypatch)
    assert digest() == digest()
    assert len(builds) == 1


def test_entries_follow_the_content(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds = count_builds(monkeypatch)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in "abcd":
        (corpus / f"{name}.txt").write_text(f"all about {name}\n" * 30)
    config = DataConfig(corpus=str(corpus), vocab=260, context=8)
    load_text(config)
    load_text(config.model_copy(update={"context": 9, "repeat": True, "evaluation_examples": 3}))
    assert len(builds) == 1  # none of these changes what is stored
    shutil.copytree(corpus, tmp_path / "moved")
    load_text(config.model_copy(update={"corpus": str(tmp_path / "moved")}))
    assert len(builds) == 1
    (corpus / "a.txt").write_text("all about A\n" * 30)
    load_text(config)
    assert len(builds) == 2
    load_text(config.model_copy(update={"vocab": 261}))
    load_text(config.model_copy(update={"holdout": 0.6}))
    assert len(builds) == 4


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "removed"])
def test_damaged_entries_are_rebuilt(
    name: str, damage: str, folder: Path, digest: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = count_builds(monkeypatch)
    whole = digest()
    file = entry_of(folder) / name
    content = file.read_bytes()
    if damage == "removed":
        file.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.write_bytes({"truncated": content[:-20], "flipped": flipped, "emptied": b""}[damage])
    assert digest() == whole
    assert len(builds) == 2
    assert (entry_of(folder) / name).read_bytes() == content


@pytest.mark.parametrize(
    "manifest", ["[]", "{}", "3", '{"train.npy": 1}', '["train.npy"]', '{"ENTRY": {}}', '{"ENTRY": 3}', "[" * 10**5]
)
def test_manifests_that_say_nothing(manifest: str, folder: Path, digest: Callable[[], str]) -> None:
    whole = digest()
    entry = entry_of(folder)
    (entry / "manifest.json").write_text(manifest.replace("ENTRY", entry.name))
    assert digest() == whole
    assert (entry_of(folder) / "manifest.json").read_text() != manifest


@pytest.mark.parametrize("kind", ["another entry", "file", "link to nowhere", "link", "pipe inside", "more inside"])
def test_what_is_no_entry_is_rebuilt(
    kind: str, folder: Path, digest: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = count_builds(monkeypatch)
    whole = digest()
    entry = entry_of(folder)
    if kind == "pipe inside":
        (entry / "train.npy").unlink()
        os.mkfifo(entry / "train.npy")
    elif kind == "more inside":
        (entry / "more").write_text("")
    elif kind == "another entry":
        manifest = (entry / "manifest.json").read_text()
        (entry / "manifest.json").write_text(manifest.replace(entry.name, "0" * 32))
    else:
        entry.rename(folder.parent / "moved")
        if kind == "file":
            entry.write_text("in the way")
        else:
            entry.symlink_to(folder.parent / ("moved" if kind == "link" else "nowhere"))
    assert digest() == whole
    assert len(builds) == (1 if kind == "link" else 2)
    entry_of(folder)


LOAD = (
    "import sys\n"
    "from icl_fast.data import DataConfig, load_text\n"
    "print(load_text(DataConfig(corpus=sys.argv[1], vocab=280, context=24)).evaluation().digest)"
)
KILLED = (
    "import os, signal\n"
    "real, countdown = os.{call}, [{after}]\n"
    "def dying(*args, **kwargs):\n"
    "    countdown[0] -= 1\n"
    "    if countdown[0] < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
    "    return real(*args, **kwargs)\n"
    "os.{call} = dying\n"
)


@pytest.mark.parametrize(("call", "after"), [("fsync", 0), ("fsync", 2), ("replace", 0), ("replace", 1)])
def test_killed_while_writing(
    call: str, after: int, folder: Path, corpus_folder: Path, digest: Callable[[], str]
) -> None:
    code = KILLED.format(call=call, after=after) + LOAD
    killed = subprocess.run([sys.executable, "-c", code, str(corpus_folder)], capture_output=True)
    assert killed.returncode == -9
    assert list(folder.glob(".tmp-*"))
    assert digest() == digest()
    entry_of(folder)  # what the killed process left is gone too


def test_builders_at_the_same_time(folder: Path, corpus_folder: Path, digest: Callable[[], str]) -> None:
    run = [sys.executable, "-c", LOAD, str(corpus_folder)]
    builders = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = {builder.communicate()[0].strip() for builder in builders}
    assert [builder.returncode for builder in builders] == [0, 0, 0]
    assert printed == {digest()}
    entry_of(folder)


def test_a_waiting_builder_takes_what_the_first_one_built(tmp_path: Path) -> None:
    builds: list[Path] = []
    both_inside = threading.Barrier(2)

    def build(folder: Path) -> None:
        builds.append(folder)
        with contextlib.suppress(threading.BrokenBarrierError):
            both_inside.wait(timeout=1)  # time for the other builder to come in too, if nothing holds it
        (folder / "file").write_text("built")

    with ThreadPoolExecutor(2) as pool:
        entries = list(pool.map(lambda _: cached(tmp_path / "entry", build), range(2)))
    assert [(entry / "file").read_text() for entry in entries] == ["built", "built"]
    assert len(builds) == 1


def test_full_disk(small_disk: Path, digest: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICL_FAST_CACHE", str(small_disk))
    with pytest.raises(InputError, match="the disk is full"):
        digest()
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_no_space_left(call: str, folder: Path, digest: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(InputError, match="the disk is full"):
            digest()
    assert not folder.exists()
    digest()


def test_cache_that_cannot_be_written(
    tmp_path: Path, digest: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ICL_FAST_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"ICL_FAST_CACHE.* cannot be written"):
        digest()


def test_read_only_cache_is_read(folder: Path, digest: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = digest()
    monkeypatch.setattr(cache_module, "locked", lambda *_, **__: pytest.fail("locked only to read"))
    assert digest() == whole
