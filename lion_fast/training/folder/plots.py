"""curves.png: loss and windowed accuracy of one run, with target and changes of size marked."""

from collections.abc import Sequence
from pathlib import Path

from lion_fast.figures import INK, OURS, RIVAL, mark_sizes, new_figure, save
from lion_fast.training.step.history import History


def plot_curves(history: History, path: Path, title: str) -> None:
    """Draw `history` to `path` as PNG; needs at least one step."""
    figure = new_figure(6.4, 3.6)
    loss_axis = figure.subplots()
    steps = [record.step for record in history.records]
    loss_axis.plot(steps, [r.loss for r in history.records], color=INK, linewidth=0.6, alpha=0.6)
    loss_axis.set(
        xlabel="step", ylabel="total loss of the step (grey)", xlim=(0, steps[-1]), title=title
    )
    loss_axis.set_ylim(bottom=0)
    axis = loss_axis.twinx()
    accuracy, before = _percent(history.windowed), _percent(history.windowed_before)
    axis.plot(steps, before, color=OURS.color, linewidth=1, alpha=0.6)
    axis.plot(steps, accuracy, color=OURS.color, linewidth=1.8)
    axis.set(ylabel=f"training accuracy, mean of {history.window} steps (%)", ylim=(0, 100))
    axis.yaxis.label.set_color(OURS.color)
    axis.axhline(100 * history.target, color=RIVAL.color, linewidth=1, linestyle="--")
    mark_sizes(axis, history.resolutions.change_words())
    crossing = history.target_record
    if crossing is not None:
        axis.plot([crossing.step], [accuracy[crossing.step - 1]], "o", color=RIVAL.color)
        axis.annotate(
            f"{100 * history.target:g} % at step {crossing.step}\n{crossing.seconds:.2f} s",
            (crossing.step, accuracy[crossing.step - 1]),
            xytext=(-12, -34),
            textcoords="offset points",
            ha="right",
            color=RIVAL.color,
        )
    save(figure, path)


def _percent(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else 100 * value for value in values]
