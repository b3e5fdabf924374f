from __future__ import annotations

import gzip
import struct
import sysconfig
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_fast.data import corpora, read_corpus
from icl_fast.errors import InputError


def write(folder: Path, **files: str | bytes) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_folder_is_read_in_order_whatever_order_it_was_written_in(tmp_path: Path) -> None:
    first = write(tmp_path / "1", b_txt="bee", a__z_py="zed", a_md="ay")
    second = write(tmp_path / "2", a_md="ay", a__z_py="zed", b_txt="bee")
    corpus = read_corpus(str(first))
    assert [document.name for document in corpus.documents] == ["a.md", "a/z.py", "b.txt"]
    assert corpus.documents == read_corpus(str(second)).documents
    assert (corpus.files, corpus.bytes, corpus.folders) == (3, 8, (first,))


def test_what_a_folder_skips(tmp_path: Path) -> None:
    write(tmp_path, good_txt="good", image_png="png", binary_txt=b"a\0b", empty_txt="", copy_txt="good")
    write(tmp_path / ".git", hidden_txt="hidden")
    corpus = read_corpus(str(tmp_path))
    assert [document.text for document in corpus.documents] == ["good"]
    assert (corpus.files, corpus.binary, corpus.not_utf8) == (1, 1, 0)


def test_bytes_that_are_not_utf8_are_replaced(tmp_path: Path) -> None:
    corpus = read_corpus(str(write(tmp_path, a_txt=b"caf\xe9", b_txt="caf\xe9")))
    assert [document.text for document in corpus.documents] == ["caf\ufffd", "caf\xe9"]
    assert (corpus.binary, corpus.not_utf8) == (0, 1)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("order", ["le", "be"])
def test_text_that_begins_with_its_mark(encoding: str, order: str, tmp_path: Path) -> None:
    text = "caf\xe9 \U0001f600\r\n"
    data = f"\ufeff{text}".encode(f"{encoding}-{order}")
    corpus = read_corpus(str(write(tmp_path, a_TXT=data, b_txt=data[:-1], c_txt=data + bytes(4))))
    assert [document.text for document in corpus.documents] == [text]
    assert corpus.binary == 2  # cut off within a character; with a zero


def test_a_linked_folder(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", b_txt="bee")
    folder = write(tmp_path / "folder", a_txt="ay")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert [document.name for document in read_corpus(str(folder)).documents] == ["a.txt", "linked/b.txt"]


def test_a_zip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icl_fast.memory.available", lambda: 2**28)
    write(tmp_path, a_txt_gz=gzip.compress(bytes(2**27)))
    with pytest.raises(InputError, match=r"a\.txt\.gz: needs \S+ \SiB of memory and 256 MiB are free"):
        read_corpus(str(tmp_path))


def test_gzipped_text(tmp_path: Path) -> None:
    write(tmp_path, a_txt_gz=gzip.compress(b"zipped"))
    assert read_corpus(str(tmp_path)).documents[0].text == "zipped"


def test_long_documents_are_cut_and_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "LONGEST_DOCUMENT", 100)
    text = "".join(f"line {n} of a long book\n" for n in range(40))
    documents = read_corpus(str(write(tmp_path, book_txt=text))).documents
    assert "".join(document.text for document in documents) == text
    assert all(len(document.text) <= 100 and document.text.endswith("\n") for document in documents)
    assert [document.name for document in documents[:2]] == ["book.txt#1", "book.txt#2"]


@given(st.text(alphabet="ab\n\u00e9\U0001f600", max_size=60), st.integers(1, 12))
def test_parts_put_together_are_the_text(text: str, longest: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "LONGEST_DOCUMENT", longest)
        parts = list(corpora._parts(text))
    assert "".join(parts) == text
    assert all(0 < len(part) <= longest for part in parts)


def test_stdlib_has_no_tests_and_nothing_installed() -> None:
    corpus = read_corpus("stdlib")
    folders = {part for document in corpus.documents for part in document.name.split("/")[:-1]}
    assert {"asyncio", "json"} <= folders
    assert not {"test", "tests", "idle_test", "site-packages"} & folders
    assert len({document.text for document in corpus.documents}) == len(corpus.documents)


def test_stdlib_with_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = write(tmp_path / "lib", a_py="a", test__b_py="b", json__tests__c_py="c")
    write(library / "site-packages", d_py="d")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(library)})
    assert [document.text for document in read_corpus("stdlib").documents] == ["a"]
    assert [document.text for document in read_corpus("stdlib+tests").documents] == ["a", "c", "b"]
    (library / "test" / "b.py").unlink()
    (library / "test").rmdir()
    with pytest.raises(InputError, match=r"without its tests.*libpython3\.\d+-testsuite"):
        read_corpus("stdlib+tests")


@pytest.fixture
def debian(tmp_path: Path) -> Path:
    """What the packages of `docs` and `books` put on a disk, in small."""
    share = tmp_path / "usr/share"
    for version, text in (("6.1", "old"), ("6.10", "linux")):
        linux = share / f"doc/linux-doc-{version}/Documentation"
        write(linux, index_rst_gz=gzip.compress(text.encode()), translations__zh_rst="translated")
        write(linux.parent / "html", index_html="<p>linux</p>")
    write(share / "doc/python3.11/html/_sources", about_rst_txt="python")
    write(share / "perl/5.36.0/pod", perlop_pod="perl")
    write(share / "doc/anarchism/markdown", secA1_md_gz=gzip.compress(b"anarchy"))
    write(share / "doc/anarchism/html", secA1_html="<p>anarchy</p>")
    austen = write(tmp_path / "usr/lib/R/site-library/janeaustenr/data")
    austen.mkdir(parents=True)
    (austen / "Rdata.rdb").write_bytes(r_record(["EMMA", "", "h\u00e9"]) + r_record(["PERSUASION"]))
    opticks = share / "gocode/src/github.com/andybalholm/brotli/testdata/Isaac.Newton-Opticks.txt"
    opticks.parent.mkdir(parents=True)
    opticks.write_text("light")
    return tmp_path


def r_record(lines: list[str]) -> bytes:
    """A vector of strings as R's lazy-load database holds it."""
    data = b"X\n" + struct.pack(">iiii", 3, 0x40201, 0x30500, 5) + b"UTF-8" + struct.pack(">ii", 16, len(lines))
    for line in lines:
        data += struct.pack(">ii", 0x40009, len(line.encode())) + line.encode()
    return struct.pack(">i", len(data)) + zlib.compress(data)


def test_docs_and_books(debian: Path) -> None:
    docs = read_corpus("docs", root=debian)
    assert [document.text for document in docs.documents] == ["linux", "perl", "python"]
    assert [folder.name for folder in docs.folders] == ["Documentation", "_sources", "pod"]
    books = read_corpus("books", root=debian)
    assert [document.text for document in books.documents] == [
        "anarchy",
        "light",
        "EMMA\n\nh\u00e9\n",
        "PERSUASION\n",
    ]


def test_missing_packages_are_named(
    debian: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("no folder of that name here"))
    (debian / "usr/share/doc/python3.11/html/_sources/about.rst.txt").unlink()
    with pytest.raises(InputError, match=r"docs: not on this machine; apt-get install.* python3-doc$"):
        read_corpus("docs", root=debian)
    with pytest.raises(InputError, match=r"anarchism r-cran-janeaustenr golang-github-andybalholm-brotli-dev$"):
        read_corpus("books", root=tmp_path_factory.mktemp("bare"))


@pytest.mark.parametrize("content", [b"", b"not zlib", r_record(["whole"])[:-3]])
def test_damaged_r_database(debian: Path, content: bytes) -> None:
    (debian / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").write_bytes(content)
    if content:
        with pytest.raises(InputError, match=r"Rdata\.rdb is damaged"):
            read_corpus("books", root=debian)
    else:
        assert read_corpus("books", root=debian).files == 2


def test_bad_corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "full", a_txt="a") / "a.txt"
    (tmp_path / "empty").mkdir()
    for name, message in {
        str(tmp_path / "gone"): "no such folder",
        "stdlibb": "one of stdlib, stdlib",
        "x" * 5000: "no such folder",
        str(file): "is a file",
        str(tmp_path / "empty"): "no text in .*needs .txt/.md/.py files",
    }.items():
        with pytest.raises(InputError, match=message):
            read_corpus(name)
    (tmp_path / "full" / "b.txt.gz").write_bytes(gzip.compress(b"text" * 99)[:-9])
    with pytest.raises(InputError, match=r"b\.txt\.gz is damaged"):
        read_corpus(str(tmp_path / "full"))


@given(st.binary(max_size=200))
def test_any_bytes_are_text_or_skipped(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), a_txt=data, z_txt="always there")
        assert read_corpus(folder).documents[-1].text == "always there"
