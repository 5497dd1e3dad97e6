"""The one owner of standard output and error: what is printed survives whatever is behind them.

A closed pipe or terminal, a full disk, a stream that takes ASCII alone, none at all: nothing of it
ends a run, or is a traceback. Imports nothing heavy.
"""

import errno
import json
import math
import os
import sys
from typing import Any, TextIO

# A reader that has ended (`| head`), and a terminal that has.
_GONE = (errno.EPIPE, errno.EIO)


class Output:
    """Says lines on standard output for as long as it can be written, and then nothing more."""

    def __init__(self) -> None:
        self.loss: OSError | None = None
        """Why lines were lost, if some were."""

    def say(self, text: str) -> None:
        """Print `text` at once, as lines; what the stream cannot encode is escaped."""
        try:
            _write(sys.stdout, text)
        except OSError as error:
            self.lose(error)

    def flush(self) -> None:
        """Hand on what others have printed."""
        try:
            if sys.stdout is not None and not sys.stdout.closed:
                sys.stdout.flush()
        except OSError as error:
            self.lose(error)

    def lose(self, error: OSError) -> None:
        """Note that it can be written no more; what is still to come leads nowhere."""
        self.loss = error
        _silence(sys.stdout)

    def say_json(self, value: Any) -> None:
        """Print `value` for a program, as one line of JSON in ASCII."""
        self.say(exact_json(value))

    @property
    def is_terminal(self) -> bool:
        """Whether a person looks at it."""
        return sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty()

    @property
    def can_draw(self) -> bool:
        """Whether it moves a cursor and takes the characters of bars and spinners."""
        is_dumb = os.environ.get("TERM", "dumb") in ("dumb", "unknown")
        encoding = (getattr(sys.stdout, "encoding", None) or "").lower()
        return self.is_terminal and not is_dumb and encoding.startswith("utf")

    @property
    def reader_has_gone(self) -> bool:
        """Whether lines were lost because nobody reads them any more."""
        return self.loss is not None and self.loss.errno in _GONE


def exact_json(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON that every program reads, in ASCII: what is not finite is null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


OUTPUT = Output()
"""Of this process."""


def say(text: str) -> None:
    """Print lines; where that fails, go on: quietly where the reader has ended.

    Of any other cause, such as a full disk, standard error has one line.
    """
    known = OUTPUT.loss
    OUTPUT.say(text)
    if OUTPUT.loss is not known and OUTPUT.loss is not None and not OUTPUT.reader_has_gone:
        complain(f"standard output was lost: {OUTPUT.loss.strerror}")


def complain(text: str) -> None:
    """Print one line on standard error, if it can be written."""
    try:
        _write(sys.stderr, f"lion-fast: {text}")
    except OSError:
        _silence(sys.stderr)


def guard_streams() -> None:
    """Make this process's streams safe for what others print: tyro, rich, warnings.

    A descriptor 0, 1 or 2 that is closed leads nowhere from now on; otherwise the next file that is
    opened would take its number, and what is printed would go into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            _open_nowhere(descriptor)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(descriptor, "w", encoding="utf-8", closefd=False))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _write(stream: TextIO | None, text: str) -> None:
    """Write lines; raise OSError where the stream cannot take them, nothing where there is none."""
    if stream is None or stream.closed:
        return
    try:
        print(text, file=stream, flush=True)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def _silence(stream: TextIO | None) -> None:
    """Send to nowhere what is still to be written, so that the interpreter ends quietly."""
    try:
        descriptor = stream.fileno() if stream is not None else -1
    except (OSError, ValueError):  # a notebook's stream is no file
        return
    if descriptor >= 0:
        _open_nowhere(descriptor)


def _open_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere == descriptor:
        os.set_inheritable(nowhere, True)
        return
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
