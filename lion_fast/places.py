"""Places as people type them, in a flag, a TOML file or Python alike; imports nothing heavy."""

from pathlib import Path

from lion_fast.errors import UserError


def place(typed: Path | str) -> Path:
    """Return the path that `typed` means: `~` and `~name` are homes, all else is as it stands.

    Raises UserError where there is no such home, and on a NUL, which no path has. A shell expands
    `~` only where a word begins.
    """
    path = Path(typed)
    if "\0" in str(path):
        raise UserError(f"{str(path)!r} holds a NUL character: give the path without")
    try:
        return path.expanduser()
    except RuntimeError:
        whose = path.parts[0].removeprefix("~")
        reason = f"there is no user {whose!r}" if whose else "this process has no home (HOME)"
        raise UserError(f"{path} lies in a home, and {reason}: give the whole path") from None
