"""Going on by itself after `torchrun --max-restarts` has started the processes of a run again.

A marker in the folder of runs leads from torchrun's id of the job to the run folder. It serves as
long as rank 0 finds it: on the same machine, or on a file system that machines share. With
`--standalone`, set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1: restarted processes otherwise often meet
stale keys of the first attempt in the store that they share with torchrun, and fail.
"""

import os
from pathlib import Path
from urllib.parse import quote

from lion_fast.errors import UserError


def is_job() -> bool:
    """Whether torchrun has started this process, alone or among others."""
    return bool(os.environ.get("TORCHELASTIC_RUN_ID"))


def restarted_run(out: Path) -> Path | None:
    """Return the run folder in `out` that an earlier attempt of this torchrun job made, if any.

    The first attempt of a job removes what an earlier job of the same id left. Raises UserError if
    the marker cannot be read or removed.
    """
    marker = _marker(out)
    if marker is None:
        return None
    try:
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            marker.unlink(missing_ok=True)
            return None
        run = Path(marker.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {marker}: {error.strerror}") from None
    return run if (run / "config.json").exists() else None


def mark_run(out: Path, run: Path) -> None:
    """Let later attempts of this torchrun job go on with `run`; raise UserError if that fails."""
    marker = _marker(out)
    if marker is None:
        return
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(str(run.absolute()), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {marker}: {error.strerror}") from None


def unmark_run(out: Path) -> None:
    """Forget a run that has ended well."""
    marker = _marker(out)
    if marker is not None:
        marker.unlink(missing_ok=True)


def _marker(out: Path) -> Path | None:
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    return out / f".torchrun-{quote(job, safe='')}" if job else None
