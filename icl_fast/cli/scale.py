"""Options of commands whose work Ray can do."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from icl_fast.cli.parameters import WholeNumber
from icl_fast.cli.tasks import refuse_with

if TYPE_CHECKING:
    from icl_fast.scale import Runner

_HERE = "here"
_ADDRESS = re.compile(r"[^\s/:]+:[0-9]{1,5}|\[[0-9a-fA-F:.]+\]:[0-9]{1,5}|auto")


class AddressType(click.ParamType):  # type: ignore[type-arg]  # has none before click 8.4
    """Where Ray runs; nothing: it is to be started here."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value != _HERE and not _ADDRESS.fullmatch(value):
            self.fail(
                f"{value} is neither HOST:PORT nor auto; without an address put --ray last, or another option after it",
                param,
                ctx,
            )
        return str(value)


def ray_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--ray` and `--workers`, as one argument `on`: enter it for the runner that does the work."""

    @wraps(command)
    def called(ray: str | None, workers: int | None, **arguments: Any) -> None:
        if ray != _HERE:
            refuse_with("a Ray that is running" if ray else "no --ray", {"--workers": workers})
        if ray is not None and ":" in (device := arguments.get("device", "")):
            refuse_with("--ray, which chooses the GPU of each task", {f"--device {device}": device})
        command(on=_runner(ray, workers), **arguments)

    for option in (
        click.option("--workers", type=WholeNumber(1), help="With --ray: so many workers here; default one a core."),
        click.option(
            "--ray",
            type=AddressType(),
            is_flag=False,
            flag_value=_HERE,
            metavar="[ADDRESS]",
            help="Let Ray's workers do it, to the bits that one thread gives here: those of Ray at HOST:PORT, or "
            "auto (this machine's); without an address it is started here, with a worker a core; default no Ray.",
        ),
    ):
        called = option(called)
    return called


def _runner(ray: str | None, workers: int | None) -> AbstractContextManager[Runner]:
    from icl_fast.scale import HERE, ray_runner

    return nullcontext(HERE) if ray is None else ray_runner(None if ray == _HERE else ray, workers)
