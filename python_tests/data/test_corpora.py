from __future__ import annotations

import gzip
import inspect
import struct
import sysconfig
import tempfile
import zlib
from importlib.machinery import PathFinder
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
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


def test_what_is_installed_is_read_and_the_rest_is_named(
    debian: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("no folder of that name here"))
    (debian / "usr/share/doc/python3.11/html/_sources/about.rst.txt").unlink()
    docs = read_corpus("docs", root=debian)
    assert [document.text for document in docs.documents] == ["linux", "perl"]
    assert docs.missing == ("python3-doc",)
    with pytest.raises(InputError, match=r"anarchism r-cran-janeaustenr golang-github-andybalholm-brotli-dev$"):
        read_corpus("books", root=tmp_path_factory.mktemp("bare"))


def test_docstrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = '"""Of a module."""\n\nx = 1\n\ndef f():\n    r"""One.\n\n    Two.\n    """\n    return """no"""\n'
    package = write(tmp_path / "numpy", __init___py="", core__f_py=source, tests__t_py='"""Of a test."""')
    (package / "__init__.py").write_text('"""Of a package."""')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(corpora, "_DOCUMENTED", ("numpy", "no_such_package"))
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: PathFinder.find_spec(name, [str(tmp_path)])
    )  # numpy is imported
    corpus = read_corpus("docstrings")
    assert {document.name: document.text for document in corpus.documents} == {
        "numpy/__init__.py": "Of a package.\n\n",
        "numpy/core/f.py": "Of a module.\n\nOne.\n\nTwo.\n\n",
    }


def test_docstrings_are_where_the_package_is() -> None:
    text = "".join(document.text for document in read_corpus("docstrings").documents)
    assert inspect.cleandoc(np.take_along_axis.__doc__ or "") in text


def lines(folder: Path, what: str, sizes: list[int]) -> str:
    """A folder of files of so many different lines of 10 bytes."""
    for number, size in enumerate(sizes):
        content = "".join(f"{what}{number:02}{line:06}\n" for line in range(size))
        write(folder, **{f"{what}{number}_txt": content})
    return str(folder)


@given(
    sizes=st.lists(st.lists(st.integers(1, 9), min_size=3, max_size=8), min_size=2, max_size=3),
    weights=st.lists(st.sampled_from((0.1, 0.25, 0.5, 1.0, 3.0)), min_size=3, max_size=3),
)
@settings(max_examples=25, deadline=None)
def test_a_mix_has_its_shares_to_within_a_document(sizes: list[list[int]], weights: list[float]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folders = [lines(Path(place, what), what, of) for what, of in zip("abc", sizes, strict=False)]
        name = ",".join(f"{folder}:{weight}" for folder, weight in zip(folders, weights, strict=False))
        alone = [read_corpus(folder) for folder in folders]
        try:
            mix, again = read_corpus(name), read_corpus(name)
        except InputError as error:
            assume("less than a document" not in str(error))
            raise
    assert mix.documents == again.documents
    texts = [document.text for document in mix.documents]
    assert len(set(texts)) == len(texts)
    scale = min(corpus.bytes / weight for corpus, weight in zip(alone, weights, strict=False))
    for (part, size), corpus, weight, of in zip(mix.shares, alone, weights, sizes, strict=False):
        chosen = [document.text for document in corpus.documents if document.text in texts]
        assert part == corpus.name
        assert sum(map(len, chosen)) == size
        assert scale * weight - 10 * max(of) < size <= scale * weight + 1e-6
    assert mix.bytes == sum(map(len, texts))
    whole = [size == corpus.bytes for (_, size), corpus in zip(mix.shares, alone, strict=True)]
    assert any(whole)  # the scarcest is used up


def test_a_text_of_two_corpora_comes_once(tmp_path: Path) -> None:
    write(tmp_path / "a", one_txt="same\n", two_txt="a\n")
    write(tmp_path / "b", one_txt="same\n", two_txt="b2\n", three_txt="b3\n", four_txt="b4\n")
    mix = read_corpus(f"{tmp_path / 'a'}:1,{tmp_path / 'b'}:1")
    assert [document.text for document in mix.documents].count("same\n") == 1
    assert mix.shares == ((str(tmp_path / "a"), 7), (str(tmp_path / "b"), 6))


def test_a_share_that_is_less_than_a_document(tmp_path: Path) -> None:
    write(tmp_path / "a", one_txt="a\n")
    write(tmp_path / "b", one_txt="bee\n")
    with pytest.raises(InputError, match=r"2 bytes of \S*b are less than a document; give it more weight"):
        read_corpus(f"{tmp_path / 'a'}:1,{tmp_path / 'b'}:1")


def test_folders_of_a_mix_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert corpora.absolute_name("here:0.5,docs:1") == f"{tmp_path / 'here'}:0.5,docs:1"
    assert [corpora.absolute_name(name) for name in ("docs", "here")] == ["docs", str(tmp_path / "here")]


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
        "stdlib:0.5,stdlib:0.5": "a corpus is given twice",
        "stdlib:0.5,docs:0": "a weight is 0; leave that corpus out",
        "stdlib:0.5,docs": "or a mix such as stdlib:0.5,docstrings:0.5",
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
