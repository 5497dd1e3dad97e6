"""Digests of files that have not changed since, so that no start reads a whole data set again."""

import hashlib
import json
import os
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

Stamp = list[int]
"""Size, time of change of the content and of the entry, in ns, of each of some files."""

# A file that changed so shortly ago may change again within one tick of its file system's clock.
_SETTLED_NS = 2 * 10**9
# Names of files that have gone are dropped once there are many of them.
_MOST_STALE = 1000


class Remembered:
    """What was found out about the files of a data set, each valid while its stamp is.

    It lies beside the data as `.<name>.lion-fast.json`, or where that cannot be written below
    ~/.cache/lion-fast. Where neither can, or what is there is damaged, nothing is remembered.
    """

    def __init__(self, data: Path) -> None:
        """Read what is remembered of the folder or file `data`."""
        data = Path(os.path.abspath(data))
        called = hashlib.blake2b(os.fsencode(data), digest_size=16).hexdigest()
        cache = Path(os.path.expanduser("~/.cache/lion-fast/digests"))
        self._places = [data.with_name(f".{data.name}.lion-fast.json")]
        if cache.is_absolute():
            self._places.append(cache / f"{called}.json")
        self._entries: dict[str, tuple[Stamp, str]] = {}
        self._asked: set[str] = set()
        self._is_changed = False
        for place in self._places:
            with suppress(OSError, ValueError, TypeError, AttributeError):
                found = json.loads(place.read_text(encoding="utf-8"))
                self._entries = {name: (stamp, value) for name, (stamp, value) in found.items()}
                break

    def get(self, name: str, stamp: Stamp) -> str | None:
        """Return what was kept under `name`; None where the files have changed since."""
        self._asked.add(name)
        kept, value = self._entries.get(name, (None, None))
        return value if stamp and kept == stamp and isinstance(value, str) else None

    def keep(self, name: str, stamp: Stamp, value: str) -> None:
        """Note `value`, which `save` writes; not of files that are too new to be told from others.

        stamp: of before the files were read.
        """
        if stamp and max(stamp) < time.time_ns() - _SETTLED_NS:
            self._entries[name] = stamp, value
            self._is_changed = True

    def save(self) -> None:
        """Write what is new, for starts to come, where that is possible."""
        if not self._is_changed:
            return
        if len(self._entries) > 2 * len(self._asked) + _MOST_STALE:
            self._entries = {name: self._entries[name] for name in self._known(self._asked)}
        text = json.dumps(self._entries, separators=(",", ":"))
        for place in self._places:
            unfinished = place.with_name(f"{place.name}.{os.getpid()}.tmp")
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                unfinished.write_text(text, encoding="utf-8")
                unfinished.replace(place)
                break
            except OSError:
                with suppress(OSError):
                    unfinished.unlink()

    def _known(self, names: Collection[str]) -> Collection[str]:
        return [name for name in self._entries if name in names]


def stamp_of(paths: Sequence[Path]) -> Stamp:
    """Return what changes when one of the files does; empty where one cannot be looked at.

    The time of the entry changes even where the content's is set back, as by `cp -p` or rsync.
    """
    try:
        stats = [path.stat() for path in paths]
    except OSError:
        return []
    return [n for stat in stats for n in (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)]
