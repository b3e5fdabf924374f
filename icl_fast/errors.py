"""The one exception that means "your input is wrong", raised by every floor and caught by the CLI."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input from the user: an option, a config key, a file, a tensor's shape.

    The message is one line that names the argument, says what was wrong and what to do. The CLI prints
    it without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # names of files and what libraries say have line ends too
