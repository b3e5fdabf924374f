"""What is read from outside: links followed once, nothing that may hang or that is not there passed over."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from icl_fast.data import (
    cluster_embeddings,
    load_tokenizer,
    read_corpus,
    read_exemplars,
    read_images,
    read_texts,
    render_glyphs,
)
from icl_fast.data.input_files import files_below, read_file
from icl_fast.errors import InputError


def names(folder: Path, **options: bool) -> list[str]:
    return list(files_below(folder, (".txt",), "texts", **options))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """a/1.txt, a/b/2.txt, and outside of it other/3.txt, other/deep/4.txt."""
    for name in ("in/a/1.txt", "in/a/b/2.txt", "other/3.txt", "other/deep/4.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path / "in"


def test_linked_folders_and_files_are_followed(tree: Path) -> None:
    (tree / "c").symlink_to(tree.parent / "other")
    (tree / "a" / "5.txt").symlink_to("../../other/3.txt")
    found = files_below(tree, (".txt",), "texts")
    assert list(found) == ["a/1.txt", "a/5.txt", "a/b/2.txt", "c/3.txt", "c/deep/4.txt"]
    assert found["c/3.txt"].read_text() == "other/3.txt"
    assert names(tree, links=False) == ["a/1.txt", "a/5.txt", "a/b/2.txt"]


@pytest.mark.parametrize(("link", "target"), [("a/b/up", ".."), ("top", "."), ("out", "../.."), ("root", "/")])
def test_loops_end(tree: Path, link: str, target: str) -> None:
    (tree / link).symlink_to(target)
    assert names(tree) == ["a/1.txt", "a/b/2.txt"]


def test_loops_through_other_folders_end(tree: Path) -> None:
    (tree / "c").symlink_to(tree.parent / "other")
    (tree.parent / "other" / "back").symlink_to(tree)
    (tree.parent / "other" / "deep" / "again").symlink_to(tree.parent / "other")
    assert names(tree) == ["a/1.txt", "a/b/2.txt", "c/3.txt", "c/deep/4.txt"]


@pytest.mark.parametrize("link", ["0", "a/0", "z"])
def test_a_folder_is_read_once_and_by_its_own_name(tree: Path, link: str) -> None:
    (tree / link).symlink_to(tree / "a" / "b")
    (tree / "y").symlink_to(tree.parent / "other" / "deep")
    (tree / "x").symlink_to(tree.parent / "other")
    assert names(tree) == ["a/1.txt", "a/b/2.txt", "x/3.txt", "x/deep/4.txt"]


@pytest.mark.parametrize("name", ["gone.txt", "class", "image.png"])
@pytest.mark.parametrize("target", ["nowhere", "itself"])
def test_links_to_nowhere_are_named(tree: Path, name: str, target: str) -> None:
    link = tree / "a" / name
    link.symlink_to(link if target == "itself" else tree / "gone")
    with pytest.raises(
        InputError, match=rf"^texts: {link} (is a link to a file that is gone|cannot be read \(Too many)"
    ):
        names(tree)
    assert names(tree, links=False) == ["a/1.txt", "a/b/2.txt"]


def test_hidden_ones_are_left_out(tree: Path) -> None:
    for name in (".hidden.txt", "a/._1.txt", ".git/x.txt", "__MACOSX/._2.txt", "a/.DS_Store", "a/Thumbs.db"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text("")
    (tree / ".#1.txt").symlink_to("someone@somewhere")
    os.mkfifo(tree / "a" / ".pipe.txt")
    assert names(tree) == ["a/1.txt", "a/b/2.txt"]


def test_upper_case_and_skipped_names(tree: Path) -> None:
    (tree / "a" / "3.TXT").write_text("")
    (tree / "skipped").mkdir()
    (tree / "skipped" / "4.txt").write_text("")
    found = files_below(tree, (".txt",), "texts", skip={"skipped", "b"})
    assert list(found) == ["a/1.txt", "a/3.TXT"]


def test_deep_folders(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 1200)  # deeper than Python's calls may nest
    down = [deep, *deep.parents][:1200]
    for folder in reversed(down):
        folder.mkdir()
    (deep / "1.txt").write_text("")
    assert len(names(tmp_path)) == 1
    (deep / "1.txt").unlink()
    for folder in down:  # shutil.rmtree nests its calls
        folder.rmdir()


def test_folders_and_files_that_may_not_be_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)  # chmod would not stop root
        with pytest.raises(InputError, match=rf"^texts: {tree} cannot be read \(Permission denied\); allow it$"):
            names(tree)
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(InputError, match=r"^texts: .*1\.txt cannot be read \(Permission denied\)$"):
        names(tree)


def test_names_that_are_not_utf8(tree: Path) -> None:
    name = os.fsdecode(b"\xff\n[red].txt")
    (tree / name).write_text("odd")
    assert names(tree) == ["a/1.txt", "a/b/2.txt", name]
    (text,) = read_texts([tree / name])
    assert text.title == "\\xff\n[red].txt"
    assert len(read_corpus(str(tree)).documents) == 3


def test_a_file_that_grows_is_read_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, opened = tmp_path / "log", open
    file.write_bytes(b"0123")
    assert read_file(file, "text") == b"0123"

    def growing(path: Path, mode: str) -> object:
        stream = opened(path, mode)
        size = os.fstat(stream.fileno()).st_size
        monkeypatch.setattr(os, "fstat", lambda _: os.stat_result([0] * 6 + [size] + [0] * 3))
        with opened(path, "ab") as more:
            more.write(b"456789")
        return stream

    monkeypatch.setattr("icl_fast.data.input_files.open", growing, raising=False)
    assert read_file(file, "text") == b"0123"


def test_files_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "large.txt", "wb") as file:
        file.truncate(2**26)
    monkeypatch.setattr("icl_fast.memory.available", lambda: 2**25)
    for read in (lambda: read_file(tmp_path / "large.txt", "text"), lambda: read_corpus(str(tmp_path))):
        with pytest.raises(InputError, match=r"needs \d+ MiB of memory and 32 MiB are free"):
            read()


@contextmanager
def not_files(folder: Path) -> Iterator[dict[str, Path]]:
    """What is no file, by what messages call it; reading most of them would never end."""
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    (folder / "to-zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(folder / "socket"))
        yield {
            "pipe": folder / "pipe",
            "folder": folder / "folder",
            "socket": folder / "socket",
            "device": folder / "to-zero",
        }


def image_classes(folder: Path, place: Path) -> None:
    for name in "ab":
        (folder / name).mkdir()
        Image.fromarray(np.eye(9, dtype=np.uint8) * 255).save(folder / name / "1.png")
    os.rename(place, folder / "a" / "2.png")


READERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: read_texts([path]),
    "exemplars": lambda path: read_exemplars(path.rename(path.with_suffix(".npz"))),
    "h5": lambda path: read_exemplars(path.rename(path.with_suffix(".h5"))),
    "embeddings": lambda path: cluster_embeddings(path.rename(path.with_suffix(".npz")), 2, 1),
    "tokenizer": load_tokenizer,
    "corpus": lambda path: read_corpus(str(path.rename(path.with_suffix(".txt")).parent)),
    "zipped corpus": lambda path: read_corpus(str(path.rename(path.with_suffix(".txt.gz")).parent)),
    "image": lambda path: (image_classes(path.parent, path), read_images(path.parent)),
    "font": lambda path: render_glyphs(2, 1, fonts=[path.rename(path.with_suffix(".ttf")).parent]),
}


@pytest.mark.parametrize(
    ("reader", "kind"),
    [
        (reader, kind)
        for reader in READERS
        for kind in ("pipe", "socket", "device", "folder")
        # of a tokenizer it is a run's; below a folder it is one more, whatever its name
        if kind != "folder" or reader in ("text", "exemplars", "h5", "embeddings")
    ],
)
def test_what_is_no_file_is_refused_at_once(
    reader: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with not_files(tmp_path) as places:
        path = tmp_path / "alone" / kind
        path.parent.mkdir()
        places[kind].rename(path)
        with pytest.raises(InputError, match=rf"^\S+( \S+)?: .* is a {kind}; give a file"):
            READERS[reader](path)


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "x/" * 3000])
@pytest.mark.parametrize("reader", ["text", "tokenizer", "exemplars", "images", "corpus", "fonts"])
def test_paths_that_no_system_has(path: str, reader: str) -> None:
    read: dict[str, Callable[[], object]] = {
        "text": lambda: read_texts([path]),
        "tokenizer": lambda: load_tokenizer(path),
        "exemplars": lambda: read_exemplars(path + ".npz"),
        "images": lambda: read_images(path),
        "corpus": lambda: read_corpus(path),
        "fonts": lambda: render_glyphs(2, 1, fonts=[path]),
    }
    with pytest.raises(
        InputError, match=r"cannot be read \((File name too long|embedded null)|no such folder|does not exist"
    ):
        read[reader]()
