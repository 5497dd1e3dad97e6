"""Import lion-fast from a folder that holds its checkout, whatever is installed."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def make_importable(folder: Path, root: Path = ROOT) -> None:
    """Lay links in `folder` so that `lion_fast`, kernels included, imports from checkout `root`."""
    package = folder / "lion_fast"
    package.mkdir(parents=True)
    for entry in (root / "lion_fast").iterdir():
        (package / entry.name).symlink_to(entry)
    (package / "kernels").symlink_to(root / "kernels")


def import_path(folder: Path) -> str:
    """Return the PYTHONPATH of a process that imports from `folder` first."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
