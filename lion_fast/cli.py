"""The `lion-fast` command: parses, calls, prints. No logic lives here.

Torch is imported only once a command runs, so that `--help` is instant.
"""

import difflib
import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

import lion_fast
from lion_fast.arguments import (
    DoctorArguments,
    EvalArguments,
    PredictArguments,
    ReportArguments,
    StudyArguments,
    TrainArguments,
)
from lion_fast.config import TrainConfig
from lion_fast.errors import SaidElsewhere, UserError
from lion_fast.output import OUTPUT, complain, guard_streams, say
from lion_fast.places import place
from lion_fast.presets import PRESETS
from lion_fast.training.ranks.torchrun import ranks_here
from lion_fast.training.screen.console import make_console
from lion_fast.training.screen.printed import validation_lines

if TYPE_CHECKING:
    from lion_fast.study.grid import Study


_Arguments = TypeVar("_Arguments")
_LEAST_COLUMNS = 40


def _parsed(
    kind: type[_Arguments],
    arguments: Sequence[str],
    command: str,
    default: _Arguments | None = None,
) -> _Arguments:
    """Return what the command line says; raise UserError on a place that cannot be meant."""
    prog = f"lion-fast {command}"
    with _wide_enough():
        if default is None:
            parsed = tyro.cli(kind, args=arguments, prog=prog)
        else:
            parsed = tyro.cli(kind, args=arguments, default=default, prog=prog)
    for name, value in vars(parsed).items():
        if isinstance(value, Path):
            setattr(parsed, name, place(value))
        elif isinstance(value, tuple):
            setattr(parsed, name, tuple(place(v) if isinstance(v, Path) else v for v in value))
    return parsed


@contextmanager
def _wide_enough() -> Iterator[None]:
    """Let tyro lay out its help in 40 columns at least; in one or two it would do so for ever."""
    before = os.environ.get("COLUMNS")
    if shutil.get_terminal_size().columns >= _LEAST_COLUMNS:
        yield
        return
    os.environ["COLUMNS"] = str(_LEAST_COLUMNS)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _train(arguments: Sequence[str]) -> int:
    preset, resume = _peek(arguments, "--preset"), _peek(arguments, "--resume")
    config = PRESETS.get(preset or "", TrainConfig())
    if resume is not None:
        from lion_fast.training.folder.run_folder import RunFolder

        config = RunFolder.open(resume)[1]
    default = TrainArguments.starting_from(config)
    parsed = _parsed(TrainArguments, arguments, "train", default)
    wanted = TrainConfig(**vars(parsed.config))
    if parsed.resume is not None:
        if parsed.preset is not None:
            raise UserError(
                "--preset and --resume exclude each other: a resumed run has its settings"
            )
        config.check_resumable_as(wanted)

    if _peek(arguments, "--window") is not None and wanted.window > wanted.max_steps:
        raise UserError(
            f"window is {wanted.window} and max_steps is {wanted.max_steps}, so the target could"
            " not be reached: lower --window"
        )

    leads = ranks_here().leads
    console = make_console(wanted.max_steps, quiet=parsed.quiet or not leads)
    with closing(console):
        with console.stage("starting"):
            from lion_fast.training import train
        summary = train(wanted, resume=parsed.resume, console=console)
    if leads:
        _end_with_json(summary.to_dict(), parsed.json)
    return 0


def _eval(arguments: Sequence[str]) -> int:
    parsed = _parsed(EvalArguments, arguments, "eval")

    console = make_console(0, quiet=parsed.quiet)
    with closing(console):
        with console.stage("starting"):
            from lion_fast.training import evaluate
        validation = evaluate(
            parsed.run, device=parsed.device, dataset=parsed.dataset, console=console
        )
    console.say(validation_lines(validation.accuracy_per_head, validation.iou_per_class))
    console.say([f"validation loss {validation.loss:.4f}"])
    _end_with_json(validation.to_dict(), parsed.json)
    return 0


def _predict(arguments: Sequence[str]) -> int:
    parsed = _parsed(PredictArguments, arguments, "predict")
    if not parsed.images:
        raise UserError("predict needs images: lion-fast predict RUN IMAGES...")

    from lion_fast.training.saved import Prediction, Unread, predict_each

    each_of = predict_each(
        parsed.run,
        parsed.images,
        device=parsed.device,
        dataset=parsed.dataset,
        masks=parsed.masks,
    )
    told = list(each_of)
    if parsed.json:
        OUTPUT.say_json([each._asdict() for each in told])
    width = max((len(each.class_name) for each in told if isinstance(each, Prediction)), default=0)
    for each in told:
        if isinstance(each, Unread):
            complain(each.error)
        elif parsed.json:
            continue
        elif isinstance(each, Prediction):
            OUTPUT.say(f"{each.class_name:{width}} {each.probability:7.2%}  {each.image}")
        else:
            shares = "  ".join(f"{name} {share:.2%}" for name, share in each.shares.items())
            OUTPUT.say(f"{each.image} -> {each.mask}  {shares}")
    return 1 if any(isinstance(each, Unread) for each in told) else 0


def _end_with_json(values: dict[str, Any], asked: bool) -> None:
    """Print `values` for a program: when asked to, or when no person looks at stdout."""
    if asked or not OUTPUT.is_terminal:
        OUTPUT.say_json(values)


def _doctor(arguments: Sequence[str]) -> int:
    _parsed(DoctorArguments, arguments, "doctor")

    from lion_fast.training.machine.doctor import doctor

    OUTPUT.say("\n".join(doctor()))
    return 0


def _study(arguments: Sequence[str]) -> int:
    parsed = _parsed(StudyArguments, arguments, "study")
    parsed.check()

    from lion_fast.report.results import study_as_stored
    from lion_fast.study.export import export_csv
    from lion_fast.study.status import status_lines, watch
    from lion_fast.study.studies import find_study

    study = find_study(parsed.study)
    if parsed.status or parsed.power or parsed.export is not None:
        study = study_as_stored(study, parsed.out)
    study = study.override(
        seeds=parsed.seeds,
        max_steps=parsed.max_steps,
        stop_at_target=parsed.stop_at_target or None,
        device=parsed.device,
        engine=parsed.engine,
        data_dir=parsed.data_dir,
    )
    if parsed.status and OUTPUT.can_draw:
        watch(study, parsed.out)
    elif parsed.status:
        say("\n".join(status_lines(study, parsed.out)))
    elif parsed.dry_run:
        from lion_fast.study.check import obstacle_lines, setup_line
        from lion_fast.study.status import cells_to_run

        setups = setup_line(cells_to_run(study, parsed.out))
        say("\n".join([*status_lines(study, parsed.out), setups, *obstacle_lines(study)]))
    elif parsed.power:
        from lion_fast.report.by_seed import power_lines
        from lion_fast.report.results import read_study

        say("\n".join(power_lines(read_study(study, parsed.out))))
    elif parsed.export is not None:
        for path in export_csv(study, parsed.out, parsed.export, force=parsed.force):
            say(str(path))
    elif parsed.imported is not None:
        from lion_fast.study.importing import import_csv

        say("\n".join(each.line() for each in import_csv(study, parsed.out, parsed.imported)))
    else:
        return _run_study(study, parsed)
    return 0


def _run_study(study: "Study", parsed: StudyArguments) -> int:
    from lion_fast.report.comparisons import conclusion
    from lion_fast.report.results import read_study
    from lion_fast.study.runner import run_study
    from lion_fast.study.stopping import signal_of

    make_pool = None
    if parsed.ray is not None:
        from lion_fast.study.pools.cluster import ray_pool

        make_pool = ray_pool(
            parsed.ray,
            jobs=parsed.jobs,
            gpus_per_run=parsed.gpus_per_run,
            cpus_per_run=parsed.cpus_per_run,
        )
    try:
        outcome = run_study(
            study,
            parsed.out,
            jobs=1 if parsed.jobs is None else parsed.jobs,
            make_pool=make_pool,
            rerun_changed=parsed.rerun == "changed",
        )
    except KeyboardInterrupt as stop:
        return 128 + signal_of(stop)
    say("\n".join(conclusion(read_study(study, parsed.out))))
    return 1 if outcome.num_failed else 0


def _report(arguments: Sequence[str]) -> int:
    parsed = _parsed(ReportArguments, arguments, "report")
    if not parsed.subjects:
        raise UserError("report needs names of studies that have run: lion-fast report quickstart")

    from lion_fast.report.page import report_studies
    from lion_fast.report.results import read_study
    from lion_fast.study.studies import find_study

    names = dict.fromkeys(parsed.subjects)
    written = report_studies(
        [read_study(find_study(name), parsed.studies) for name in names],
        parsed.out,
        whole_paper=parsed.whole_paper,
        card=parsed.card,
    )
    say("\n".join(map(str, written)))
    return 0


_COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (_train, "train a network; report steps and seconds to the target accuracy"),
    "eval": (_eval, "validation accuracy of every head of a run"),
    "predict": (_predict, "class and probability of images, by a run's network"),
    "study": (_study, "run a grid of runs with several seeds, or go on with it"),
    "report": (_report, "tables and pictures of studies"),
    "doctor": (_doctor, "what this machine has, and what `auto` picks here and why"),
}


# What a full disk answers, and what a path that cannot be meant or may not be read does; every
# other OSError that nobody foresaw is a bug.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_WAY = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP)


def _peek(arguments: Sequence[str], flag: str) -> str | None:
    """Return the value of `flag` before parsing: it decides the defaults that the parser shows."""
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


def _usage() -> str:
    rows = [f"  {name:8} {text}" for name, (_, text) in _COMMANDS.items()]
    return "\n".join(
        ["usage: lion-fast COMMAND [OPTIONS]", "", *rows, "", "lion-fast COMMAND --help"]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code.

    0 done, 1 a run of a study failed or an image could not be read, 2 bad input, 128 + n ended by
    signal n: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP, 138 SIGUSR1, 140 SIGUSR2, 141 the reader of
    stdout has gone.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    guard_streams()
    OUTPUT.loss = None
    try:
        try:
            code = _dispatch(arguments)
        finally:  # tyro ends a help with an exit
            OUTPUT.flush()
    except SaidElsewhere:
        return 2
    except UserError as error:
        complain(str(error))
        return 2
    except OSError as error:
        if error.errno in _NO_WAY and error.filename is not None:
            complain(f"cannot use {error.filename}: {error.strerror}")
            return 2
        # Of what tyro prints; all else goes through OUTPUT, which raises nothing.
        if error.errno not in (*_NO_ROOM, errno.EPIPE):
            raise
        code = 0
        OUTPUT.lose(error)
    except KeyboardInterrupt as interrupt:
        return 128 + getattr(interrupt, "signal_number", signal.SIGINT)
    return _code_of_lost_output() if code == 0 and _lives_on_output(arguments) else code


def _lives_on_output(arguments: Sequence[str]) -> bool:
    """Whether what is printed is all that the command gives; of a run or a report files stay."""
    return arguments[:1] not in (["train"], ["study"], ["report"])


def _code_of_lost_output() -> int:
    """Return the exit code of a command whose lines were lost, having said why, or 0."""
    if OUTPUT.loss is None:
        return 0
    if OUTPUT.reader_has_gone:
        return 128 + signal.SIGPIPE
    complain(f"cannot write the output: {OUTPUT.loss.strerror}")
    return 2


def _dispatch(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        OUTPUT.say(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        OUTPUT.say(f"lion-fast {lion_fast.__version__}")
        return 0
    name, *rest = arguments
    if name not in _COMMANDS:
        close = difflib.get_close_matches(name, _COMMANDS, n=1)
        meant = f"did you mean {close[0]}?" if close else f"take one of {', '.join(_COMMANDS)}"
        raise UserError(f"unknown command {name!r}: {meant}")
    return _COMMANDS[name][0](rest)


if __name__ == "__main__":
    sys.exit(main())
