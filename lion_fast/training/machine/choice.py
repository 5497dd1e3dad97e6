"""What a decision about a config field says: the value, and why."""

from typing import NamedTuple


class Choice(NamedTuple):
    """A value picked for a config field and the reason."""

    value: str
    reason: str
