"""`icl-fast verify`."""

from __future__ import annotations

from pathlib import Path

import click

from icl_fast.cli.commands import Command
from icl_fast.cli.console import echo, print_document
from icl_fast.cli.parameters import PATH, PathType
from icl_fast.errors import InputError

_STDOUT = Path("-")


@click.command(cls=Command)
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="PATH...")
@click.option(
    "--json",
    "where",
    is_flag=False,
    flag_value="-",
    type=PathType("file"),
    metavar="[FILE]",
    help="Print what was found as one JSON document and nothing else; or write it to FILE, beside the table; default "
    "the table alone.",
)
def verify(paths: tuple[Path, ...], where: Path | None) -> None:
    """Check that nothing is damaged: run folders, results, report folders, snapshots, or folders of these.

    Every file that has a checksum is compared with it, and read; what killed processes left is named. Exit code 0: all
    is well; 2: something is damaged, missing or left over. Nothing is changed: --repair of the command that measured
    something measures it again.
    """
    from icl_fast.files import atomic_write, to_json
    from icl_fast.studies.verify import verify as look

    for path in paths:
        if where is not None and where != _STDOUT and where.resolve().is_relative_to(path.resolve()):
            raise InputError(f"--json: {where} is in {path}, which is only looked at; write it elsewhere")
    found = look(paths)
    bad = [finding for finding in found if not finding.ok]
    if where is not None:
        rows = [{"file": str(finding.path), "what": finding.what, "ok": finding.ok} for finding in found]
        document = {"ok": not bad, "files": rows}
        if where == _STDOUT:
            print_document(document)
        else:
            with atomic_write(where) as temporary:
                temporary.write_text(to_json(document, indent=1) + "\n", encoding="utf-8")
    if where != _STDOUT:
        width = max(len(str(finding.path)) for finding in found)
        for finding in found:
            echo(f"{'' if finding.ok else '! '}{finding.path!s:<{width}}  {finding.what}")
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise InputError(f"verify: {bad[0].path} {bad[0].what}{more}")
