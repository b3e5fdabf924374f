"""Texts against what they promise: labels that follow from the words, sentences that are in every language."""

from __future__ import annotations

import calendar
import io
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_fast.data import default_texts, parallel_text, read_texts, template_text
from icl_fast.data.texts import LARGEST_TEXT
from icl_fast.errors import InputError

FRUITS = {"apple", "banana", "cherry", "grape", "lemon", "peach", "pineapple", "strawberry"}


def write_catalogue(folder: Path, language: str, name: str, messages: dict[str, str]) -> Path:
    """A gettext .mo file: magic, version, count, two tables of (length, offset), then the strings."""
    pairs = sorted({"": "Content-Type: text/plain; charset=UTF-8\n", **messages}.items())
    keys, values = ([text.encode() for text in column] for column in zip(*pairs, strict=True))
    start, tables, strings = 28 + 16 * len(pairs), b"", b""
    for text in (*keys, *values):
        tables += struct.pack("<2I", len(text), start + len(strings))
        strings += text + b"\0"
    path = folder / language / "LC_MESSAGES" / f"{name}.mo"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    path.write_bytes(head + tables + strings)
    return path


def test_default_texts() -> None:
    texts = {text.name: text for text in default_texts()}
    assert [text.kind for text in texts.values()] == ["passage", "passage", "repeated", "parallel", "template"]
    assert all(text.title and text.source for text in texts.values())
    assert list(texts.values()) == default_texts(0)
    assert texts["template"] != default_texts(1)[-1]
    passage = texts["passage"].text
    assert len(passage.encode()) < 256  # tokens, at most, whatever the tokenizer
    for phrase, times in (("And God", 3), ("the light", 3), ("the darkness", 2), ("there", 2), ("called", 2)):
        assert passage.count(phrase) == times
    half = len(texts["repeated"].text) // 2
    assert texts["repeated"].text[:half] == texts["repeated"].text[half:]


def test_the_code_is_python_that_runs() -> None:
    names: dict[str, Any] = {}
    exec(compile(default_texts()[1].text, "code", "exec"), names)
    reader = names["PointReader"](io.StringIO("1,2\n3,4\n"))
    assert repr(reader.read_points()) == "[Point(1.0, 2.0), Point(3.0, 4.0)]"
    with pytest.raises(names["PointError"], match="line 1: expected two"):
        names["PointReader"](io.StringIO("1")).read_points()


@given(st.integers(1, 60), st.integers(0, 100))
def test_template_labels_follow_from_the_words(lines: int, seed: int) -> None:
    text = template_text(lines, seed)
    labels = []
    for line in text.text.splitlines():
        words, label = line.split(": ")
        first, second = words.split(" ")
        assert label == str(2 * (first not in calendar.month_name) + (second in FRUITS))
        labels.append(int(label))
    assert [mark.category for mark in text.marks] == labels
    assert len(labels) == lines
    assert "".join(text.text[mark.start : mark.start + 2] for mark in text.marks) == "".join(f"{n}\n" for n in labels)
    assert text == template_text(lines, seed)


def test_templates_and_words_are_drawn_evenly() -> None:
    text = template_text(8000)
    counts = Counter(mark.category for mark in text.marks)
    assert set(counts) == {0, 1, 2, 3}
    assert all(abs(count - 2000) < 5 * 39 for count in counts.values())  # 39: the binomial's standard deviation
    firsts = Counter(line.split()[0] for line in text.text.splitlines())
    assert all(abs(count - 500) < 5 * 22 for count in firsts.values())
    for lines in (0, 10**9, 2.5):
        with pytest.raises(InputError, match=r"^lines: must be (1 or more|at most 32768|a whole number)"):
            template_text(lines)  # type: ignore[arg-type]


GOOD = {
    "The first file could not be read.": (
        "Le premier fichier n’a pas pu être lu.",
        "Die erste Datei war nicht lesbar.",
    ),
    "The second file is read-only, try again.": (
        "Le second fichier est protégé : réessayez donc.",
        "Die zweite Datei ist schreibgeschützt.",
    ),
    "Nothing was changed by this command.": (
        "Cette commande n'a rien changé du tout.",
        "Der Befehl hat nichts geändert.",
    ),
}
BAD = {
    "The file %s could not be read.": ("Le fichier %s n'a pas pu être lu.", "Die Datei %s war nicht zu lesen."),
    "Use --help to see all options.": ("Utilisez --help pour voir les options.", "Mit --help sieht man alle Optionen."),
    "This one is too short.": ("Celle-ci est trop courte.", "Zu kurz."),
    "There is no stop at the end": ("Il n'y a pas de point", "Es fehlt der Punkt am Ende"),
    "this starts with a small letter.": ("Ceci commence par une minuscule.", "Das hier beginnt klein gar nicht."),
    "There are 2 numbers in this.": ("Il y a 2 nombres dans ceci.", "Hier stehen 2 Zahlen im Satz."),
    "This was never translated at all.": ("This was never translated at all.", "Das wurde nicht immer übersetzt."),
    "The lines\nof this are two.": ("Les lignes\nde ceci sont deux.", "Das sind hier\ngenau zwei Zeilen."),
    "This is far too long to be shown" + " again and again" * 5 + ".": (
        "Ceci est trop long pour nous.",
        "Viel zu lang.",
    ),
}


@pytest.fixture
def locales(tmp_path: Path) -> Path:
    everything = GOOD | BAD
    for index, language in enumerate(("fr", "de")):
        messages = {english: said[index] for english, said in everything.items()}
        messages[f"Only {language} translates this sentence here."] = "Une phrase de plus est ici."
        messages["One file was found here.\0%d files were found here."] = "Un fichier a été trouvé.\0%d fichiers ici."
        write_catalogue(tmp_path, language, "program", messages)
        write_catalogue(tmp_path, language, "poor", dict(list(messages.items())[:1]))
    write_catalogue(tmp_path, "fr", "french-only", {english: said[0] for english, said in GOOD.items()})
    return tmp_path


def test_parallel_text_takes_full_sentences_that_all_languages_have(locales: Path) -> None:
    blocks = {f"EN: {english}\n FR: {fr}\n DE: {de}\n" for english, (fr, de) in GOOD.items()}
    seen = set()
    for seed in range(20):
        text = parallel_text(seed=seed, folders=[locales])
        first, second = (f"EN: {block}" for block in text.text.split("EN: ")[1:])
        assert first != second
        assert text == parallel_text(seed=seed, folders=[locales])
        assert text.source == f"messages of program in the gettext catalogues of {locales}"
        seen |= {first, second}
    assert seen == blocks
    text = parallel_text(("de", "fr"), sentences=1, folders=[locales])
    assert text.text in {f"DE: {de}\n FR: {fr}\n" for fr, de in GOOD.values()}
    assert text.title == "DE, FR"


def test_parallel_text_without_a_catalogue(locales: Path, tmp_path: Path) -> None:
    verses = parallel_text(folders=[])
    assert verses.text.startswith("EN: In the beginning God created the heaven and the earth.\n FR: Au commencement, ")
    assert verses.text.count("\n") == 6
    assert "King James" in verses.source
    assert parallel_text(folders=[tmp_path / "missing"]) == verses
    assert parallel_text(folders=[locales], sentences=4).text.startswith(verses.text)  # three verses
    for damaged in (b"", b"text", (locales / "fr/LC_MESSAGES/program.mo").read_bytes()[:200]):
        (locales / "fr/LC_MESSAGES/program.mo").write_bytes(damaged)
        assert parallel_text(folders=[locales]) == verses


def test_parallel_text_bad_input(locales: Path) -> None:
    for languages in ((), ("en",), ("fr", "fr")):
        with pytest.raises(InputError, match="give two or more that differ"):
            parallel_text(languages)
    with pytest.raises(InputError, match="found no sentence that is in all of en, it; install"):
        parallel_text(("en", "it"), folders=[locales])
    with pytest.raises(InputError, match=r"^sentences: must be 1 or more"):
        parallel_text(sentences=0)


def test_read_texts(tmp_path: Path) -> None:
    first, second = tmp_path / "Größe.txt", tmp_path / "b.py"
    first.write_bytes(b"\xef\xbb\xbf" + "Größe\r\n<script>".encode())
    second.write_text("x" * LARGEST_TEXT)
    texts = read_texts([first, str(second)])
    assert [(text.name, text.title, text.kind) for text in texts] == [
        ("text-1", "Größe.txt", "passage"),
        ("text-2", "b.py", "passage"),
    ]
    assert texts[0].text == "Größe\r\n<script>"
    assert texts[1].text == second.read_text()
    assert read_texts([]) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty; give"),
        (b" \n", "is empty; give"),
        (b"a\0b", "holds a zero byte"),
        (b"ab\xff", r"is not UTF-8 \(byte 2\); convert"),
        (b"x" * (LARGEST_TEXT + 1), "1,048,577 bytes are more than 1,048,576"),
    ],
)
def test_read_texts_bad_input(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"^text:? .*text:? {message}"):
        read_texts([path])
