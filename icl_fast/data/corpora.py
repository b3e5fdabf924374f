"""Text that is already on the machine, as documents in an order that does not depend on the machine.

Named corpora:

- `stdlib`: the running Python's own library without its tests; `stdlib+tests`: with them.
- `docs`: the Debian packages linux-doc, python3-doc and perl-doc. Each ships its source text beside the HTML made from
  it; only the source text is read, so that nothing comes twice. Translations are left out.
- `books`: Austen's six novels (r-cran-janeaustenr), An Anarchist FAQ (anarchism) and Newton's Opticks
  (golang-github-andybalholm-brotli-dev, as a compression test). Debian 12 has no package with the works of Shakespeare
  or Milton; the Opticks of 1704 stands in for them. For the real ones, point `data.corpus` at a folder.

Debian's slim container images drop /usr/share/doc on installation: there, `docs` and `books` stay missing.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import io
import os
import re
import struct
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from icl_fast.data.input_files import files_below, printable, read_file
from icl_fast.errors import InputError
from icl_fast.files import regular_file
from icl_fast.memory import check_fits

NAMES = ("stdlib", "stdlib+tests", "docs", "books")
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
    """

    name: str
    folders: tuple[Path, ...]
    files: int
    bytes: int
    documents: tuple[Document, ...]
    binary: int = 0
    not_utf8: int = 0


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
    """Read a named corpus, or a folder of .txt/.md/.py files (recursive; hidden files and folders are skipped).

    Links in a folder are followed. Text is UTF-8, or UTF-16 or UTF-32 where it begins with their mark; bytes that are
    neither become U+FFFD, and other files that hold a zero byte are binary and left out. `root` is where Debian's
    packages are installed.

    Raises:
        InputError: no such corpus or folder, nothing in it, a link to nowhere, a file that cannot be read, more text
            than memory, or packages to install.
    """
    folders: list[Path]
    if name in ("stdlib", "stdlib+tests"):
        folders, files = _stdlib(with_tests=name.endswith("+tests"))
    elif name in _DEBIAN:
        folders, files = _debian(name, Path(root))
    else:
        folders, files = _folder(name)
    return _read(name, folders, files, f"data.corpus {name}")


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


def _stdlib(with_tests: bool) -> tuple[list[Path], dict[str, Path]]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    if with_tests and not (folder / "test").is_dir():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise InputError(
            f"data.corpus stdlib+tests: this Python came without its tests ({folder / 'test'} is missing); "
            f"on Debian's own Python apt-get install libpython{version}-testsuite, or use stdlib"
        )
    skip = _NOT_OURS if with_tests else _NOT_OURS | _TESTS
    return [folder], files_below(folder, _or_zipped((".py",)), "data.corpus stdlib", skip=skip, links=False)


def _debian(name: str, root: Path) -> tuple[list[Path], dict[str, Path]]:
    sources = _DEBIAN[name]
    found = [_newest(source, root) for source in sources]
    missing = [source.package for source, folder in zip(sources, found, strict=True) if folder is None]
    if missing:
        hint = f"; for a folder of your own of that name give ./{name}" if Path(name).is_dir() else ""
        packages = " ".join(missing)
        raise InputError(
            f"data.corpus {name}: not on this machine; apt-get install --no-install-recommends {packages}{hint}"
        )
    folders = [folder for folder in found if folder is not None]
    files = {
        f"{source.package}/{label}": path
        for source, folder in zip(sources, folders, strict=True)
        for label, path in _packaged(name, source, folder).items()
    }
    return folders, dict(sorted(files.items()))


def _packaged(name: str, source: _Source, folder: Path) -> dict[str, Path]:
    return files_below(folder, _or_zipped(source.suffixes), f"data.corpus {name}", skip=source.skip, links=False)


def _or_zipped(suffixes: tuple[str, ...]) -> tuple[str, ...]:
    return (*suffixes, *(f"{suffix}.gz" for suffix in suffixes))


def _folder(name: str) -> tuple[list[Path], dict[str, Path]]:
    folder = Path(os.path.expanduser(name))
    if not os.path.exists(folder):  # unlike Path.exists, no error for a name that no file system takes
        raise InputError(f"data.corpus {name}: no such folder; give one that exists, or one of {', '.join(NAMES)}")
    if not folder.is_dir():
        raise InputError(f"data.corpus {name}: is a file; give the folder that holds it")
    return [folder], files_below(folder, _or_zipped(FOLDER_SUFFIXES), f"data.corpus {name}", skip={"__pycache__"})


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
