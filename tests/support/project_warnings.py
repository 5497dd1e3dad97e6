"""The warnings that end a test, for processes that a test starts."""

import builtins
import tomllib
import warnings
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def apply() -> None:
    """Treat warnings in this process as pyproject.toml tells pytest to."""
    settings = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    for line in settings["tool"]["pytest"]["ini_options"]["filterwarnings"]:
        action, _, rest = line.partition(":")
        message, _, category = rest.partition(":")
        warnings.filterwarnings(action, message, getattr(builtins, category or "Warning"))
