"""The command line: `freerun list | run | resume | scale | eval | report | dataset | claims | chaos`.

freerun list                                   the recipes that ship, one line each
freerun run RECIPE [--dotted.override value]   train; RECIPE is a name from the list or a Python file
freerun resume DIR                             go on from the newest whole checkpoint of a run directory
                                               (both: --restarts N resumes by itself what died)
freerun scale DIR --actors N                   give a run that goes on more or fewer generators
freerun eval DIR [--problems N]                held-out accuracy of its newest checkpoint
freerun eval --suite d4rl-mini                 methods of control on recorded data, by the protocol of D4RL
freerun report DIR                             write DIR/report.html again
freerun dataset make ENV                       data sets of control, in the grades of D4RL; see `freerun dataset --help`
freerun claims [NAME ...]                      run the small experiments on what each paper claims
freerun chaos RECIPE [--minutes M --seed S]    kill, freeze, delay and corrupt runs, and audit what came of it
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from freerun import config as configs
from freerun import dataset_cli, elastic, suite
from freerun.attempt import DEATHS, EXIT_INTERRUPTED, launcher, refuse, train
from freerun.chaos import command as chaos
from freerun.checkpoint import JOURNAL, Checkpoints
from freerun.errors import ConfigError, FreerunError
from freerun.metrics import Fanout, TrialRecord
from freerun.recipes import base as recipes
from freerun.recipes.base import RunConfig
from freerun.recipes.control_base import ControlRun
from freerun.rundir import RunDirectory
from freerun.runlock import RunLock
from freerun.store import journal
from freerun.supervise import EXIT_DIED, supervise

EXIT_ERROR = 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `freerun` command. Exit status: 0 done, 1 an error that says what to do, 2 bad usage, 3 the same as 1
    where resuming may be all that there is to do, 130 interrupted."""
    console = Console(stderr=True)
    parser = _parser()
    known, rest = parser.parse_known_args(arguments)
    try:
        code = known.command(known, rest)
    except FreerunError as error:
        console.print(f"[bold red]error:[/] {type(error).__name__}: ", end="")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        code = EXIT_DIED if isinstance(error, DEATHS) else EXIT_ERROR
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("interrupted")
        code = EXIT_INTERRUPTED
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="freerun",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Asynchronous, off-policy reinforcement learning in native PyTorch.",
        epilog="Start with:  freerun run tiny-addition      (about a minute on a laptop)",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: object, help_text: str, detail: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=help_text, description=help_text[0].upper() + help_text[1:] + ". " + detail, add_help=name != "run"
        )
        sub.set_defaults(command=function)
        return sub

    command("list", _list, "show the recipes that ship")
    run = command("run", _run, "train with a recipe")
    run.add_argument("recipe", nargs="?", help="a name from `freerun list`, or a Python file with a function recipe()")
    run.add_argument(
        "-h", "--help", action="store_true", help="show every key of the recipe that can be overridden, with its value"
    )
    run.add_argument("--dir", help="run directory to create (default: runs/RECIPE-DATE-TIME)")
    resume = command(
        "resume",
        _resume,
        "go on with an interrupted run",
        "Finished work is not generated again and nothing is trained twice; the config is the run's own.",
    )
    resume.add_argument("dir", type=Path, help="the run directory")
    resume.add_argument("--because", default="", help=argparse.SUPPRESS)
    for training in (run, resume):
        training.add_argument("--plain", action="store_true", help="one line per step in place of the live view")
        training.add_argument(
            "--restarts", type=int, default=0, metavar="N", help="if the run dies, resume it by itself, at most N times"
        )
        training.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    scale = command(
        "scale",
        _scale,
        "give a run that goes on more or fewer generators",
        "New ones start at the newest version; those that go finish what they have. A resumed run keeps the number.",
    )
    scale.add_argument("dir", type=Path, help="the run directory")
    scale.add_argument("--actors", type=int, required=True, metavar="N", help="how many generators it is to have")
    evaluate = command(
        "eval",
        _eval,
        "measure a run's newest checkpoint: held-out accuracy, or returns",
        "Answers and actions are greedy; the problems are the first N of the task's held-out set, the episodes N fixed ones.",
    )
    evaluate.add_argument("dir", type=Path, nargs="?", help="the run directory")
    evaluate.add_argument("--problems", type=int, default=256, metavar="N", help="how many problems or episodes (default 256)")
    suite.add_arguments(evaluate)
    report = command("report", _report, "write the HTML report of a run again", "Works for unfinished and crashed runs too.")
    report.add_argument("dir", type=Path, help="the run directory")
    dataset_cli.add_command(command)
    claims = command(
        "claims",
        _claims,
        "test what each paper claims, in small experiments",
        "Results go to docs/claims, one JSON file each, whether a claim holds or not. A run that was finished before with the "
        "same code is not run again, so an interruption costs little.",
    )
    claims.add_argument("names", nargs="*", metavar="NAME", help="a name from --list, or a Python file with a function claim()")
    claims.add_argument("--list", action="store_true", help="show the claims, and what is on record about each")
    claims.add_argument("--quick", action="store_true", help="only those that say that they are quick")
    claims.add_argument("--seeds", type=int, metavar="N", help="run seeds 0 to N - 1 in place of as many as the claim says")
    claims.add_argument("--fresh", action="store_true", help="run everything again, whatever is kept")
    claims.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a verdict is not the one on record")
    claims.add_argument("--out", type=Path, metavar="DIR", help="where results are, in place of docs/claims")
    hurt = command("chaos", chaos.run, chaos.HELP, chaos.DETAIL)
    chaos.add_arguments(hurt)
    return parser


def _list(arguments: argparse.Namespace, rest: list[str]) -> int:
    _nothing_left(rest)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it shows")
    for name, text in recipes.described():
        table.add_row(name, text)
    Console().print(table)
    return 0


def _run(arguments: argparse.Namespace, rest: list[str]) -> int:
    if arguments.recipe is None:
        if arguments.help:
            Console().print(
                "usage: freerun run RECIPE [--dir DIR] [--plain] [--dotted.override value ...]\n\n"
                "`freerun run RECIPE --help` shows every key of a recipe. Recipes: " + ", ".join(recipes.names()),
                markup=False,
            )
            return 0
        raise ConfigError(
            "no recipe given", given="freerun run", expected="a name or a file", todo="`freerun list` shows the recipes"
        )
    changes = configs.read_overrides(rest)
    config = configs.override(recipes.load(arguments.recipe).recipe(), changes)
    if arguments.help:
        _show_keys(arguments.recipe, config)
        return 0
    stem = Path(arguments.recipe).stem
    directory = Path(arguments.dir or Path(config.records.directory) / f"{stem}-{datetime.now():%Y%m%d-%H%M%S}")
    if arguments.restarts:
        return _supervised(["run", arguments.recipe, "--dir", str(directory), *rest], directory, arguments)
    refuse(config)
    if isinstance(config, ControlRun):
        dataset_cli.prepare(config, Console(stderr=True))
    record = {"recipe": arguments.recipe, "overrides": changes, "config": configs.dump(config)}
    files = RunDirectory.create(directory, record)
    return train(config, arguments.recipe, files, None, plain=arguments.plain, supervised=arguments.supervised)


def _resume(arguments: argparse.Namespace, rest: list[str]) -> int:
    from freerun.staging import refuse_other_config, stored_config

    _nothing_left(rest)
    config, stored = stored_config(arguments.dir)
    refuse_other_config(stored["config"], config)
    if arguments.restarts:
        return _supervised(["resume", str(arguments.dir)], arguments.dir, arguments)
    begun = bool(Checkpoints(arguments.dir / "checkpoints").all())
    checkpoint = _newest(arguments.dir) if begun else None
    step = int(checkpoint.name.removeprefix("step-")) if checkpoint is not None else 0
    files = RunDirectory.resume(arguments.dir, step, anew=checkpoint is None, because=arguments.because)
    if mended := journal.mend(arguments.dir / JOURNAL):
        Console(stderr=True).print(f"mended the journal: {mended}", markup=False)
    supervised = arguments.supervised
    return train(config, stored["recipe"], files, checkpoint, resume=True, plain=arguments.plain, supervised=supervised)


def _supervised(words: list[str], directory: Path, arguments: argparse.Namespace) -> int:
    """Let a child do it, and resume it when it dies."""
    console = Console(stderr=True)
    plain = ["--plain"] if arguments.plain else []
    return supervise(
        directory,
        [*words, *plain],
        arguments.restarts,
        partial(console.print, markup=False, soft_wrap=True),
        plain=arguments.plain,
    )


def _scale(arguments: argparse.Namespace, rest: list[str]) -> int:
    from freerun.staging import stored_config

    _nothing_left(rest)
    config, _ = stored_config(arguments.dir)
    if arguments.actors < 1:
        raise ConfigError(
            "a run needs a generator", given=f"--actors {arguments.actors}", expected="at least 1", todo="ask for more"
        )
    if isinstance(config, ControlRun):
        raise ConfigError(
            "a run of control keeps its actors",
            given=f"{arguments.dir}, a run of environments",
            expected="a run of a language model",
            todo="choose the number with --actors when it begins",
        )
    if config.placement.record or config.placement.replay:
        raise ConfigError(
            "a run that is recorded or replayed keeps its generators",
            given=f"placement.record {config.placement.record}, placement.replay {config.placement.replay!r}",
            expected="a run that is neither",
            todo="choose the number with --placement.generators when it begins",
        )
    elastic.ask(arguments.dir, arguments.actors)
    when = "now" if RunLock(arguments.dir).is_held() else "when it is resumed: nobody is running it"
    Console().print(f"asked for {arguments.actors} generators, {when}", soft_wrap=True)
    return 0


def _newest(directory: Path) -> Path:
    """The newest whole checkpoint of a run; says which ones were passed over."""
    checkpoint, passed = Checkpoints(directory / "checkpoints").newest_whole()
    for reason in passed:
        Console(stderr=True).print(f"passed over a damaged checkpoint: {reason}", markup=False)
    return checkpoint


def _eval(arguments: argparse.Namespace, rest: list[str]) -> int:
    from freerun.staging import stored_config

    _nothing_left(rest)
    if arguments.suite is not None and arguments.dir is None:
        return suite.command(arguments, Console())
    alone = [
        f"--{name}" for name in ("methods", "envs", "grades", "seeds", "updates", "out") if vars(arguments)[name] is not None
    ]
    if arguments.dir is None or arguments.suite is not None or alone or arguments.problems < 1:
        raise ConfigError(
            "nobody knows what to evaluate",
            given=" ".join(sys.argv[1:]),
            expected=f"a run directory, with at least one problem; or --suite {suite.SUITE} with its options",
            todo="see freerun eval --help",
        )
    config, _ = stored_config(arguments.dir)
    work = launcher(config)(
        config, arguments.dir, Fanout([]), checkpoint=_newest(arguments.dir), evaluate_only=arguments.problems
    )
    result = asyncio.run(work).evaluations[-1]
    if isinstance(result, TrialRecord):
        score = "" if result.score is None else f", normalised score {result.score:.1f}"
        said = f"return {result.mean:.1f} ± {result.std:.1f} over {len(result.returns)} episodes{score}"
        Console().print(f"{said} (policy version {result.version})", highlight=False)
    else:
        said = f"held-out accuracy {result.accuracy:.1%} on {result.count} problems"
        Console().print(f"{said} (policy version {result.newest})")
    return 0


def _report(arguments: argparse.Namespace, rest: list[str]) -> int:
    from freerun.watch.report import write_report

    _nothing_left(rest)
    Console().print(str(write_report(arguments.dir)), soft_wrap=True)
    return 0


def _claims(arguments: argparse.Namespace, rest: list[str]) -> int:
    from freerun.claims import show

    _nothing_left(rest)
    if arguments.list:
        Console().print(show.listing(arguments.out))
        return 0
    return show.claims(
        arguments.names,
        seeds=arguments.seeds,
        quick=arguments.quick,
        fresh=arguments.fresh,
        check=arguments.check,
        directory=arguments.out,
    )


def _nothing_left(rest: Sequence[str]) -> None:
    if rest:
        raise ConfigError(
            "unknown argument", given=" ".join(rest), expected="no further arguments", todo="see --help of the command"
        )


def _show_keys(name: str, config: RunConfig | ControlRun) -> None:
    table = Table(
        box=None, pad_edge=False, header_style="bold", title=f"freerun run {name}: keys and values", title_justify="left"
    )
    table.add_column("--key", no_wrap=True)
    table.add_column("value", overflow="fold")
    for key, value in configs.flatten(config).items():
        table.add_row(key, str(value))
    Console().print(table)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
