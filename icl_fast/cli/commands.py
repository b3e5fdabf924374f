"""Groups of commands, which turn what a user can put right into one line and exit code 2."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import click

from icl_fast.cli.console import echo, output
from icl_fast.errors import InputError
from icl_fast.extras import advice
from icl_fast.files import EXHAUSTED, disk_error
from icl_fast.memory import out_of_memory

_LONGEST_WORD = 500  # characters of a path or a number in a message


class Failure(click.ClickException):
    """Ends the program with one line on stderr and exit code 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(_printable(message))

    def show(self, file: IO[Any] | None = None) -> None:
        echo(f"error: {self.message}", err=True)


class Interrupted(Failure):
    """Ends the program after Ctrl-C, with the exit code that shells expect."""

    exit_code = 130


def stopped(error: KeyboardInterrupt, advice: str = "the same command goes on from there") -> Interrupted:
    """The end after Ctrl-C: where the work was, and what to do to go on with it."""
    return Interrupted(f"{str(error) or 'stopped'}; {advice}")


class Command(click.Command):
    """A command that reports mistakes in one line, which names the option as it was typed; with --json and --quiet."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        own = {name for param in self.params for name in param.opts}
        self.params += [option for option in _shared_options() if own.isdisjoint(option.opts)]

    def invoke(self, ctx: click.Context) -> Any:
        as_json, quiet = (ctx.params.pop(name, False) for name in ("print_json", "quiet"))
        try:
            with one_line(), output(ctx.command_path, as_json=as_json, quiet=quiet):
                return super().invoke(ctx)
        except Failure as failure:
            typed = [param for param in self.params if not param.name or ctx.params.get(param.name) is not None]
            raise type(failure)(_as_typed(failure.message, self.params, typed)) from failure.__cause__


def _shared_options() -> list[click.Option]:
    return [
        click.Option(
            ["--json", "print_json"],
            is_flag=True,
            help="Print one JSON document and nothing else: what the tables say, in full precision.",
        ),
        click.Option(["--quiet"], is_flag=True, help="Print no tables and no progress; errors and warnings still."),
    ]


class Commands(click.Group):
    """A group of such commands."""

    command_class = Command

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"no_args_is_help": False, **options})

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with one_line():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with one_line():
            return super().invoke(ctx)


@contextmanager
def one_line() -> Iterator[None]:
    """Turn every error that is foreseen into a `Failure`; what is not is a fault of ours and shows where it is."""
    try:
        yield
    except click.UsageError as error:
        raise Failure(_usage(error)) from error
    except click.ClickException:
        raise
    except KeyboardInterrupt as error:
        raise stopped(error) from error
    except Exception as error:
        if (message := _foreseen(error)) is None:
            raise
        raise Failure(message) from error


def _foreseen(error: Exception) -> str | None:
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, BrokenPipeError):
        return None  # whoever read the output has gone: click and rich end quietly
    if isinstance(error, OSError):
        where = error.filename if error.filename is not None else "a file or the output"
        if error.errno in EXHAUSTED:
            return str(disk_error(where, error))
        return f"{where}: {error.strerror or error}; see that the path is right and may be read and written"
    if isinstance(error, ModuleNotFoundError):
        return advice(error)
    if isinstance(error, RecursionError):
        return "what was read is nested too deeply; give something simpler"
    if isinstance(error, UnicodeEncodeError):
        text = error.object[error.start : error.end]
        return f"{text!r} cannot be written as {error.encoding}; rename it, or set PYTHONUTF8=1"
    return out_of_memory(error)


def _usage(error: click.UsageError) -> str:
    """What click says of a command line, beginning with the name of what is wrong in it."""
    message = error.format_message().strip().rstrip(".")
    if isinstance(error, click.BadParameter) and error.param is not None:
        if error.message:
            return f"{_name(error.param)}: {error.message}"
        message = f"{_name(error.param)}: is needed"
    where = error.ctx.command_path if error.ctx is not None else "icl-fast"
    return f"{message}; `{where} --help` says what there is"


def _as_typed(message: str, params: Sequence[click.Parameter], typed: Sequence[click.Parameter]) -> str:
    """A message that begins with the name of a Python argument, with that of its option instead.

    Args:
        typed: the parameters that were given.
    """
    options = [(_name(param), str(param.name)) for param in params if isinstance(param, click.Option)]
    named = {f"{name.strip('-').replace('-', '_')}s": name for name, _ in options}  # of several, the option names one
    named |= {argument: name for name, argument in options}
    named |= {name.strip("-").replace("-", "_"): name for name, _ in options}
    if not any(param.name == "ckpt" for param in typed):
        named["ckpt"] = "RUN"
    first, colon, rest = message.partition(":")
    return f"{named.get(first, first)}{colon}{rest}"


def _name(param: click.Parameter) -> str:
    if isinstance(param, click.Option):
        return max(param.opts, key=len)
    return str(param.metavar or param.name).strip("[].")


def _printable(message: str) -> str:
    """In one line, with escapes for what a terminal would not show, and without the middle of what is endless."""
    line = " ".join(message.splitlines())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda word: f"{word[0][:100]}...{word[0][-100:]}", shown)
