"""Groups of commands, which turn what a user can put right into one line and exit code 2."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import click

from icl_fast.cli.console import echo
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


class Commands(click.Group):
    """A group whose commands report mistakes in one line that names the option as it was typed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"no_args_is_help": False, **options})

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with one_line():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with one_line():
                return super().invoke(ctx)
        except Failure as failure:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            message = _as_typed(failure.message, command.params if command is not None else ())
            raise type(failure)(message) from failure.__cause__


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


def _as_typed(message: str, params: Sequence[click.Parameter]) -> str:
    """A message that begins with the name of a Python argument, with that of its option instead."""
    options = [(_name(param), str(param.name)) for param in params if isinstance(param, click.Option)]
    named = {f"{name.strip('-').replace('-', '_')}s": name for name, _ in options}  # of several, the option names one
    named |= {argument: name for name, argument in options}
    named |= {name.strip("-").replace("-", "_"): name for name, _ in options}
    if any(param.name == "runs" for param in params):
        named["ckpt"] = "RUN"  # of which these commands take several
    first, colon, rest = message.partition(":")
    return f"{named.get(first, first)}{colon}{rest}"


def _name(param: click.Parameter) -> str:
    return max(param.opts, key=len) if isinstance(param, click.Option) else str(param.name)


def _printable(message: str) -> str:
    """In one line, with escapes for what a terminal would not show, and without the middle of what is endless."""
    line = " ".join(message.splitlines())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda word: f"{word[0][:100]}...{word[0][-100:]}", shown)
