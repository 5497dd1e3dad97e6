"""What a statement is: a claim, the studies that can test it, and the bar that decides it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lion_fast.report.judges import Judge, Judgement, NotTested, Untouched
from lion_fast.report.results import StudyResults


@dataclass(frozen=True)
class Statement:
    """One claim, of the paper or of ours."""

    source: str
    text: str
    """With the bar, where the claim itself has none."""
    studies: tuple[str, ...]
    """Studies that can test it, the most complete one first."""
    judge: Judge
    runs: tuple[Mapping[str, Any], ...] = ({},)
    """Values of config fields of the runs that it needs, all of one seed."""
    paper: str = "claimed"
    """Its figure."""
    is_of_whole_runs: bool = False
    """Whether runs that stopped at the target say nothing of it."""

    def judged_by(self, results: StudyResults) -> Judgement | None:
        """Return what a study says of it; None where it has no such runs."""
        try:
            return self.judge(results)
        except Untouched:
            return None
        except NotTested as why:
            return Judgement("not tested", str(why))
