"""The judges of runs whose gradients and head norms were probed at every step."""

from lion_fast.report.growth import EARLY_STEPS, ON_THE_LINE, growth_fits, lines
from lion_fast.report.judges import Judge, Judgement, NotTested, check_touched, yes_or_no
from lion_fast.report.markdown import significant
from lion_fast.report.results import Run, StudyResults
from lion_fast.report.stats import spearman

LINEAR, STEADY = 0.95, 0.5


def _probed(results: StudyResults, init: str) -> list[Run]:
    """Return the runs probed from their first step on, at every step."""
    return [
        run for run in results.find(init=init, gradient_ratio_every=1) if len(run.probes["step"])
    ]


def zero_at_first(results: StudyResults) -> Judgement:
    """Judge of: every run's first auxiliary gradient is exactly 0."""
    runs = _probed(results, "lion_dg")
    if not runs:
        raise NotTested("no LION-DG run was probed at its first step")
    norms = [float(run.probes["aux_gradient_norm"][0]) for run in runs]
    text = f"norm at step 1: {', '.join(f'{norm:g}' for norm in norms)} (n = {len(norms)})"
    return yes_or_no(all(norm == 0.0 for norm in norms), text, len(norms))


def linear_growth(results: StudyResults) -> Judgement:
    """Judge of: a line explains the early growth of every head."""
    fits = [fit for run in _probed(results, "lion_dg") for fit in growth_fits(run).values()]
    if not fits:
        raise NotTested("no LION-DG run was probed at every step")
    worst = min(fit.r_squared for fit in fits)
    text = f"lowest R² of {len(fits)} heads: {worst:.3f} over {EARLY_STEPS} steps"
    return yes_or_no(worst >= LINEAR, text, len(_probed(results, "lion_dg")))


def grows_as_predicted(**fields: object) -> Judge:
    """Return the judge of: under gradient descent every head's norm is eta t C (`growth.Line`)."""

    def judge(results: StudyResults) -> Judgement:
        check_touched(results, fields)
        runs = [run for run in results.find(**fields) if lines(run)]
        found = [line for run in runs for line in lines(run).values()]
        if not found or min(line.updates[-1] for line in found) < EARLY_STEPS - 1:
            raise NotTested(f"no run was probed at each of its first {EARLY_STEPS} steps")
        early = [line.ratio[: EARLY_STEPS - 1] for line in found]
        off = max(float(abs(ratio - 1).max()) for ratio in early)
        left = [t for line in found if (t := line.leaves_after()) is not None]
        text = (
            f"off the line by {100 * off:.1f} % at most in {EARLY_STEPS} steps; {len(left)} of"
            f" {len(found)} heads leave it"
        )
        if left:
            text += f", after {min(left)} to {max(left)} updates"
        if off <= ON_THE_LINE and len(runs) < len(results.study.seeds):
            return Judgement("undecided", text, len(runs))
        return yes_or_no(off <= ON_THE_LINE, text, len(runs))

    return judge


def awakens(results: StudyResults) -> Judgement:
    """Judge of: the ratio starts below every He-init run's and rises with the step."""
    he, lion = _probed(results, "he"), _probed(results, "lion_dg")
    if not he or not lion:
        raise NotTested("He-init and LION-DG were not both probed at every step")
    highest = max(float(run.probes["gradient_ratio"][0]) for run in lion)
    lowest = min(float(run.probes["gradient_ratio"][0]) for run in he)
    ranks = []
    for run in lion:
        early = run.probes["step"] <= EARLY_STEPS
        ranks.append(spearman(run.probes["step"][early], run.probes["gradient_ratio"][early]))
    return yes_or_no(
        highest < lowest and min(ranks) >= STEADY,
        f"ratio at step 1: LION-DG at most {significant(highest)}, He-init at least"
        f" {significant(lowest)}; rank correlation with the step {min(ranks):+.2f} at least",
        len(lion),
    )
