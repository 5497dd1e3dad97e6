"""What keeps runs of a study from starting on this machine, told without starting any."""

from collections.abc import Iterable, Iterator
from contextlib import suppress

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.places import place
from lion_fast.resolutions import Resolutions
from lion_fast.study.grid import Cell, Study


def obstacle_lines(study: Study) -> list[str]:
    """Return a line per obstacle: how many runs it concerns, the first of them, and what it is."""
    found: dict[str, list[Cell]] = {}
    for cell in study.cells():
        for text in _obstacles(cell.config):
            found.setdefault(text, []).append(cell)
    return [
        f"{len(cells)} runs, {cells[0].label} seed {cells[0].config.seed} the first: {text}"
        for text, cells in found.items()
    ]


def setup_line(cells: Iterable[Cell]) -> str:
    """Return how often the steps of `cells` are set up by one worker; the rest is reused."""
    from lion_fast.training.step.reuse import setup_key

    keys = []
    for cell in cells:
        with suppress(UserError):  # what cannot run here is told by `obstacle_lines`
            keys.append(setup_key(cell.config))
    return f"set-ups: {len(set(keys))} a worker for {len(keys)} runs, the rest is reused"


def _obstacles(config: TrainConfig) -> Iterator[str]:
    import torch

    from lion_fast.models import build_model
    from lion_fast.training.machine.resolve import resolve

    try:
        resolve(config)
    except UserError as error:
        yield f"cannot run here: {error}"
    try:
        with torch.device("meta"):
            build_model(config, num_classes=2, image_size=(32, 32))
    except UserError as error:
        yield f"cannot run: {error}"
    yield from _impossible_sizes(config)
    yield from _missing_data(config)


def _impossible_sizes(config: TrainConfig) -> Iterator[str]:
    """Yield what a run would say of its resolutions, for the sets whose images' size is known."""
    from lion_fast.data.cifar import SOURCES
    from lion_fast.data.sides import check_sides

    side = {"digits": 16, **dict.fromkeys(SOURCES, 32)}.get(config.dataset)
    if side is not None:
        try:
            check_sides(Resolutions.parse(config.resolutions), (side, side))
        except UserError as error:
            yield f"cannot run: {error}"


def _missing_data(config: TrainConfig) -> Iterator[str]:
    from lion_fast.data.cifar import SOURCES
    from lion_fast.data.sources import EMBEDDED, data_dir_of

    if config.dataset in SOURCES:
        folder = data_dir_of(config.data_dir)
        if not any((folder / name).exists() for name in SOURCES[config.dataset]):
            yield f"{config.dataset} is not in {folder}: the first run would download it"
    elif config.dataset not in EMBEDDED and not place(config.dataset).exists():
        yield f"cannot run: dataset {config.dataset} does not exist"
