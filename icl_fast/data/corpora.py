"""Text that is already on the machine, as documents in an order that does not depend on the machine.

Named corpora:

- `stdlib`: the running Python's own library without its tests; `stdlib+tests`: with them.
- `docs`: the Debian packages linux-doc, python3-doc and perl-doc. Each ships its source text beside the HTML made from
  it; only the source text is read, so that nothing comes twice. Translations are left out.
- `docstrings`: of the packages that icl_fast itself needs, numpy, scipy, torch and some more: English about programs,
  wherever it is installed.
- `books`: Austen's six novels (r-cran-janeaustenr), An Anarchist FAQ (anarchism) and Newton's Opticks
  (golang-github-andybalholm-brotli-dev, as a compression test). Debian 12 has no package with the works of Shakespeare
  or Milton; the Opticks of 1704 stands in for them. For the real ones, point `data.corpus` at a folder.

Of `docs` and `books` those packages are read that are installed. Debian's slim container images drop /usr/share/doc on
installation: there, most of both stays missing.

`NAME:WEIGHT,NAME:WEIGHT,...` is a mix of corpora, `stdlib:0.5,docs:0.25,books:0.25`: see `read_corpus`.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import importlib.util
import inspect
import io
import os
import re
import struct
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from icl_fast.data.input_files import files_below, printable, read_file
from icl_fast.errors import InputError
from icl_fast.files import regular_file
from icl_fast.memory import check_fits

NAMES = ("stdlib", "stdlib+tests", "docstrings", "docs", "books")
MIX_EXAMPLE = "stdlib:0.5,docstrings:0.5"
FOLDER_SUFFIXES = (".txt", ".md", ".py")
LONGEST_DOCUMENT = 2**17  # characters; a longer one is cut at line ends, or one book could be all of the held-out text
_TESTS = frozenset({"test", "tests", "idle_test"})
# the longer first: the mark of UTF-16 begins that of UTF-32
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NOT_OURS = frozenset({"site-packages", "dist-packages", "__pycache__"})
# those that icl_fast needs and what these need, by the names under which Python imports them
_DOCUMENTED = ("matplotlib", "networkx", "numpy", "pandas", "scipy", "sklearn", "sympy", "torch", "xarray")
_DOCSTRING = re.compile(r"^[ \t]*[rRuU]?(\"\"\"|''')(.+?)\1", re.MULTILINE | re.DOTALL)
_MIX = re.compile(r"([^,]+:\d*\.?\d+)(,[^,]+:\d*\.?\d+)+")


@dataclass(frozen=True)
class Document:
    """A text and the name of its file, relative to where its corpus was found (`name#2`: its second part)."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents sorted by name, none empty, no two the same.

    Attributes:
        name: as in `data.corpus`.
        folders: where the text was found.
        files: files read (binary, empty and duplicate ones not counted).
        bytes: bytes of the documents in UTF-8.
        binary: files left out because they hold a zero byte.
        not_utf8: files with U+FFFD, which bytes become that are not UTF-8.
        missing: packages of `docs` and `books` that are not installed.
        shares: of a mix, the bytes of each corpus in it.
    """

    name: str
    folders: tuple[Path, ...]
    files: int
    bytes: int
    documents: tuple[Document, ...]
    binary: int = 0
    not_utf8: int = 0
    missing: tuple[str, ...] = ()
    shares: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class _Source:
    """Files of one Debian package: `folder` is a glob below the root, `marker` a file only that package puts there."""

    package: str
    folder: str
    marker: str
    suffixes: tuple[str, ...]
    skip: frozenset[str] = frozenset()


_DEBIAN: dict[str, tuple[_Source, ...]] = {
    "docs": (
        _Source(
            "linux-doc",
            "usr/share/doc/linux-doc-*/Documentation",
            "index.rst.gz",
            (".rst", ".txt"),
            frozenset({"translations"}),
        ),
        _Source("python3-doc", "usr/share/doc/python3.*[0-9]/html/_sources", "about.rst.txt", (".rst.txt",)),
        _Source("perl-doc", "usr/share/perl/5.*/pod", "perlop.pod", (".pod",)),
    ),
    "books": (
        _Source("anarchism", "usr/share/doc/anarchism/markdown", "secA1.md.gz", (".md",)),
        _Source("r-cran-janeaustenr", "usr/lib/R/site-library/janeaustenr/data", "Rdata.rdb", (".rdb",)),
        _Source(
            "golang-github-andybalholm-brotli-dev",
            "usr/share/gocode/src/github.com/andybalholm/brotli/testdata",
            "Isaac.Newton-Opticks.txt",
            ("opticks.txt",),
        ),
    ),
}


def read_corpus(name: str, *, root: str | Path = "/") -> Corpus:
    """Read a named corpus, a folder of .txt/.md/.py files (recursive; hidden files and folders are skipped), or a mix.

    Links in a folder are followed. Text is UTF-8, or UTF-16 or UTF-32 where it begins with their mark; bytes that are
    neither become U+FFFD, and other files that hold a zero byte are binary and left out. `root` is where Debian's
    packages are installed.

    Of a mix the weights are the shares of its bytes, to within a document. It is as large as its scarcest corpus
    allows: of the others some documents, the same each time, are left out. None comes twice.

    Raises:
        InputError: no such corpus or folder, nothing in it, a link to nowhere, a file that cannot be read, more text
            than memory, or packages to install; a mix with a weight of 0 or a corpus twice.
    """
    if weights := _weights(name):
        return _mixed(name, {part: read_corpus(part, root=root) for part in weights}, list(weights.values()))
    argument = f"data.corpus {name}"
    if name in ("stdlib", "stdlib+tests"):
        folder, files = _stdlib(with_tests=name.endswith("+tests"))
        return _read(name, [folder], files, argument)
    if name == "docstrings":
        return _read(name, *_documented(), argument)
    if name in _DEBIAN:
        folders, files, missing = _debian(name, Path(root))
        return replace(_read(name, folders, files, argument), missing=missing)
    folder, files = _folder(name)
    return _read(name, [folder], files, argument)


def absolute_name(name: str) -> str:
    """The name with folders written out, so that they are found from any working directory."""
    if _weights(name):
        items = [part.rpartition(":") for part in name.split(",")]
        return ",".join(f"{absolute_name(part)}:{weight}" for part, _, weight in items)
    return name if name in NAMES else str(Path(name).expanduser().absolute())


def _weights(name: str) -> dict[str, float]:
    """Of a mix its corpora and their weights, else none."""
    if not _MIX.fullmatch(name):
        return {}
    items = [part.rpartition(":") for part in name.split(",")]
    weights = {part.strip(): float(weight) for part, _, weight in items}
    if len(weights) < len(items):
        raise InputError(f"data.corpus {name}: a corpus is given twice; give each once")
    if not all(weights.values()):
        raise InputError(f"data.corpus {name}: a weight is 0; leave that corpus out")
    return weights


def _mixed(name: str, corpora: dict[str, Corpus], weights: list[float]) -> Corpus:
    seen: set[str] = set()
    texts = []  # of each corpus, without those that an earlier one holds
    for corpus in corpora.values():
        texts.append([document for document in corpus.documents if document.text not in seen])
        seen.update(document.text for document in corpus.documents)
    sizes = [np.array([len(document.text.encode()) for document in documents]) for documents in texts]
    scale = min(size.sum() / weight for size, weight in zip(sizes, weights, strict=True))
    chosen: list[Document] = []
    shares = []
    for part, documents, size, weight in zip(corpora, texts, sizes, weights, strict=True):
        order = np.random.default_rng(0).permutation(len(documents))
        order = np.sort(order[np.cumsum(size[order]) <= scale * weight * (1 + 1e-9)])
        if not len(order):
            share = f"{scale * weight:,.0f} bytes of {part}"
            raise InputError(f"data.corpus {name}: {share} are less than a document; give it more weight")
        chosen += [Document(f"{part}/{documents[index].name}", documents[index].text) for index in order]
        shares.append((part, int(size[order].sum())))
    return Corpus(
        name,
        tuple(dict.fromkeys(folder for corpus in corpora.values() for folder in corpus.folders)),
        sum(corpus.files for corpus in corpora.values()),
        sum(size for _, size in shares),
        tuple(chosen),
        sum(corpus.binary for corpus in corpora.values()),
        sum(corpus.not_utf8 for corpus in corpora.values()),
        tuple(package for corpus in corpora.values() for package in corpus.missing),
        tuple(shares),
    )


def read_text(source: str | Path) -> Corpus:
    """As `read_corpus`, or the one file of that path, whatever its name ends in.

    Raises:
        InputError: as `read_corpus`; a file without text.
    """
    path = Path(source).expanduser()
    if str(source) in NAMES or not os.path.isfile(path):
        try:
            return read_corpus(str(source))
        except InputError as error:
            raise InputError(str(error).replace("data.corpus ", "text: ", 1)) from None
    argument = f"text: {path}"
    return _read(printable(path), [path.parent], {path.name: regular_file(path, argument)}, argument)


def _read(name: str, folders: list[Path], files: dict[str, Path], argument: str) -> Corpus:
    # bytes, text, tokens, windows
    check_fits(4 * sum(path.stat().st_size for path in files.values()), f"{argument}: {len(files):,} files")
    seen: set[str] = set()
    documents: list[Document] = []
    counted = binary = not_utf8 = 0
    for label, path in files.items():
        texts = list(_texts(label, path, argument))
        if name == "docstrings":
            texts = [(title, _docstrings(text)) for title, text in texts]
        # the same text under two names would be seen twice in training, or in training and evaluation
        parts = [part for text in texts for part in _documents(*text) if part.text not in seen]
        seen.update(part.text for part in parts)
        documents += parts
        counted += bool(parts)
        binary += not texts
        not_utf8 += any("\ufffd" in part.text for part in parts)
    if not documents:
        raise InputError(f"{argument}: no text in {folders[0]}; it needs {'/'.join(FOLDER_SUFFIXES)} files")
    size = sum(len(document.text.encode()) for document in documents)
    return Corpus(name, tuple(folders), counted, size, tuple(documents), binary, not_utf8)


def _stdlib(with_tests: bool) -> tuple[Path, dict[str, Path]]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    if with_tests and not (folder / "test").is_dir():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise InputError(
            f"data.corpus stdlib+tests: this Python came without its tests ({folder / 'test'} is missing); "
            f"on Debian's own Python apt-get install libpython{version}-testsuite, or use stdlib"
        )
    skip = _NOT_OURS if with_tests else _NOT_OURS | _TESTS
    return folder, files_below(folder, _or_zipped((".py",)), "data.corpus stdlib", skip=skip, links=False)


def _documented() -> tuple[list[Path], dict[str, Path]]:
    specs = [spec for name in _DOCUMENTED if (spec := importlib.util.find_spec(name)) is not None]
    folders = [Path(folder) for spec in specs for folder in spec.submodule_search_locations or ()]
    files = {
        f"{folder.name}/{label}": path
        for folder in folders
        for label, path in files_below(
            folder, (".py",), "data.corpus docstrings", skip=_NOT_OURS | _TESTS, links=False
        ).items()
    }
    return folders, files


def _docstrings(source: str) -> str:
    """What stands in triple quotes at the beginning of a line, without its indentation."""
    return "".join(f"{inspect.cleandoc(match[2])}\n\n" for match in _DOCSTRING.finditer(source))


def _debian(name: str, root: Path) -> tuple[list[Path], dict[str, Path], tuple[str, ...]]:
    sources = _DEBIAN[name]
    found = [_newest(source, root) for source in sources]
    missing = [source.package for source, folder in zip(sources, found, strict=True) if folder is None]
    if len(missing) == len(sources):
        hint = f"; for a folder of your own of that name give ./{name}" if Path(name).is_dir() else ""
        packages = " ".join(missing)
        raise InputError(
            f"data.corpus {name}: not on this machine; apt-get install --no-install-recommends {packages}{hint}"
        )
    installed = [(source, folder) for source, folder in zip(sources, found, strict=True) if folder is not None]
    files = {
        f"{source.package}/{label}": path
        for source, folder in installed
        for label, path in _packaged(name, source, folder).items()
    }
    return [folder for _, folder in installed], dict(sorted(files.items())), tuple(missing)


def _packaged(name: str, source: _Source, folder: Path) -> dict[str, Path]:
    return files_below(folder, _or_zipped(source.suffixes), f"data.corpus {name}", skip=source.skip, links=False)


def _or_zipped(suffixes: tuple[str, ...]) -> tuple[str, ...]:
    return (*suffixes, *(f"{suffix}.gz" for suffix in suffixes))


def _folder(name: str) -> tuple[Path, dict[str, Path]]:
    folder = Path(os.path.expanduser(name))
    if not os.path.exists(folder):  # unlike Path.exists, no error for a name that no file system takes
        raise InputError(
            f"data.corpus {name}: no such folder; give one that exists, one of {', '.join(NAMES)}, or a mix such as "
            f"{MIX_EXAMPLE}"
        )
    if not folder.is_dir():
        raise InputError(f"data.corpus {name}: is a file; give the folder that holds it")
    return folder, files_below(folder, _or_zipped(FOLDER_SUFFIXES), f"data.corpus {name}", skip={"__pycache__"})


def _newest(source: _Source, root: Path) -> Path | None:
    # several versions of a package can be installed side by side, and hold nearly the same text
    folders = [Path(folder) for folder in glob.glob(f"{glob.escape(str(root))}/{source.folder}")]
    folders = [folder for folder in folders if (folder / source.marker).exists()]
    return max(folders, key=lambda folder: [int(n) for n in re.findall(r"\d+", str(folder))], default=None)


def _documents(title: str, text: str) -> Iterator[Document]:
    parts = list(_parts(text))
    for number, part in enumerate(parts, start=1):
        yield Document(title if len(parts) == 1 else f"{title}#{number}", part)


def _texts(label: str, path: Path, argument: str) -> Iterator[tuple[str, str]]:
    """The texts in a file with their names; none in a binary one."""
    try:
        data = read_file(path, argument)
        if path.suffix.lower() == ".gz":
            data = _unzipped(data, f"{argument}: {path}")
        if path.suffix == ".rdb":
            yield from ((f"{label}:{n}", book) for n, book in enumerate(_r_books(data), start=1))
        elif (text := _decoded(data)) is not None:
            yield label, text
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise InputError(f"{argument}: {path} is damaged ({error}); mend or remove it") from error


def _unzipped(data: bytes, what: str) -> bytes:
    parts: list[bytes] = []
    with gzip.open(io.BytesIO(data)) as file:
        while part := file.read(2**24):
            parts.append(part)
            check_fits(8 * 2**24 * len(parts), what)  # some kilobytes can stand for terabytes
    return b"".join(parts)


def _decoded(data: bytes) -> str | None:
    encoding = next((encoding for mark, encoding in _MARKS.items() if data.startswith(mark)), None)
    if encoding is not None:
        with suppress(UnicodeDecodeError):
            text = data.decode(encoding)
            return None if "\0" in text else text
    return None if b"\0" in data else data.decode("utf-8", errors="replace")


def _parts(text: str) -> Iterator[str]:
    """Cut a text at line ends into parts of at most LONGEST_DOCUMENT characters; an empty text has none."""
    start = 0
    while start < len(text):
        end = start + LONGEST_DOCUMENT
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


def _r_books(data: bytes) -> Iterator[str]:
    """Each vector of strings in an R lazy-load database, joined as lines.

    The file is a row of (4-byte length, zlib stream) records; a stream is R's XDR serialisation, version 3: a header,
    the name of the encoding, the type (16, strings), the count, then per string a 4-byte type, a length and its bytes.
    """
    while data:
        stream = zlib.decompressobj()
        record = stream.decompress(data[4:])
        if not stream.eof:
            raise EOFError("it ends early")
        data = stream.unused_data
        (encoding,) = struct.unpack_from(">i", record, 14)
        kind, count = struct.unpack_from(">ii", record, 18 + encoding)
        if kind & 0xFF != 16:
            continue
        at = 26 + encoding
        lines: list[str] = []
        for _ in range(count):
            (length,) = struct.unpack_from(">i", record, at + 4)
            lines.append(record[at + 8 : at + 8 + max(length, 0)].decode("utf-8", errors="replace"))
            at += 8 + max(length, 0)  # a missing string (NA) has length -1 and no bytes
        yield "\n".join(lines) + "\n"
