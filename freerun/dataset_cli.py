"""`freerun dataset`: make the self-made data sets, list them, turn one format into another.

freerun dataset list                 what can be made, and what is there
freerun dataset make ENV             all grades of an environment, from our own SAC
freerun dataset show PATH            what is in a data set: a file, a Minari folder, or ENV/GRADE
freerun dataset export SOURCE FOLDER --env ID [--id NAMESPACE/NAME-v0]     write a data set as a Minari one
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from freerun.actors.environment import GymConfig
from freerun.datasets.base import Episodes
from freerun.datasets.files import FileConfig, MinariConfig
from freerun.datasets.grades import GRADES, Grade
from freerun.errors import ConfigError
from freerun.recipes.control_base import ControlRun
from freerun.tasks import grades
from freerun.trainer.control_config import DatasetConfig


def add_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare `freerun dataset`."""
    sub = command("dataset", _dataset, "make, list and convert data sets of control", __doc__.partition("\n\n")[2])
    sub.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = sub.add_subparsers(required=True, dest="action", metavar="ACTION")
    actions.add_parser("list", help="what can be made, and what is there")
    making = actions.add_parser("make", help="all grades of an environment, from our own SAC")
    making.add_argument("env", help=f"one of {', '.join(grades.MAKINGS)}")
    making.add_argument("--seed", type=int, default=0, help="seed of the training run (default 0)")
    showing = actions.add_parser("show", help="what is in a data set")
    showing.add_argument("source", help="a file, a Minari folder, or ENV/GRADE")
    exporting = actions.add_parser("export", help="write a data set as a Minari one")
    exporting.add_argument("source", help="a file, a Minari folder, or ENV/GRADE")
    exporting.add_argument("folder", type=Path, help="where the Minari data set goes")
    exporting.add_argument("--env", help="id of the Gymnasium environment; unless the data set says it")
    exporting.add_argument("--id", default="freerun/dataset-v0", help="id of the data set (default freerun/dataset-v0)")


def _dataset(arguments: argparse.Namespace, rest: list[str]) -> int:
    if rest:
        raise ConfigError("unknown argument", given=" ".join(rest), expected="no further arguments", todo="see --help")
    console = Console()
    if arguments.action == "list":
        console.print(_listed())
    elif arguments.action == "make":
        make(arguments.env, arguments.seed, console)
        console.print(_listed())
    elif arguments.action == "show":
        console.print(_shown(_found(arguments.source)))
    else:
        from freerun.datasets.minari import write

        episodes = _found(arguments.source)
        name = arguments.env or episodes.about.get("env")
        if name is None:
            raise ConfigError("nobody knows the environment", given=arguments.source, expected="--env ID", todo="name it")
        own = {making.env.id: making.env for making in grades.MAKINGS.values()}
        env = own.get(name, GymConfig(id=name))
        where = write(arguments.folder, arguments.id, episodes, env=env.id, modules=env.modules, options=env.arguments)
        console.print(str(where), soft_wrap=True)
    return 0


def make(env: str, seed: int, console: Console) -> None:
    """Make all grades of an environment, with a bar, or a line for every tenth where there is no terminal."""
    if not console.is_terminal:
        grades.make(env, seed=seed, progress=_Tenths(console))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"data sets of {env}", total=1.0)
        grades.make(env, seed=seed, progress=lambda what, share: bar.update(task, description=what, completed=share))


class _Tenths:
    """Says what is being done whenever that is new, or another tenth of it is done."""

    def __init__(self, console: Console) -> None:
        self._console, self._said = console, (0, "")

    def __call__(self, what: str, share: float) -> None:
        now = (int(10 * share), what.partition(",")[0])
        if now != self._said:
            self._said = now
            self._console.print(f"{10 * now[0]:3d}% {what}", markup=False, highlight=False)


def prepare(config: ControlRun, console: Console) -> None:
    """Make the self-made data sets that a run needs and that are not there."""
    wanted = [s.data for s in config.sources if isinstance(s, DatasetConfig) and isinstance(s.data, Grade)]
    for env in grades.missing(wanted):
        console.print(f"making the data sets of {env}, once; they stay in {wanted[0].path.parent.parent}", markup=False)
        make(env, 0, console)


def _found(source: str) -> Episodes:
    """The data set that `source` names."""
    env, _, grade = source.partition("/")
    if env in grades.MAKINGS and (known := [name for name in GRADES if name == grade]):
        return Grade(env=env, grade=known[0]).build()
    if env in grades.MAKINGS and not Path(source).exists():
        raise ConfigError(f"no grade '{grade}' of {env}", given=source, expected=", ".join(GRADES), todo="name one of these")
    path = Path(source)
    is_file = path.is_file() or path.suffix in (".npz", ".hdf5", ".h5")
    return FileConfig(path=source).build() if is_file else MinariConfig(source=source).build()


def _listed() -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("environment", "grade", "transitions", "return", "normalised"):
        table.add_column(name, justify="left" if name in ("environment", "grade") else "right")
    for env, making in grades.MAKINGS.items():
        for grade in GRADES:
            data = Grade(env=env, grade=grade)
            if not data.path.is_file():
                table.add_row(env, grade, "–", f"not made ({making.steps:,} steps)", "")
                continue
            episodes = data.build()
            mean, scores = sum(episodes.returns) / len(episodes.returns), episodes.scores
            score = "" if scores is None else f"{100 * (mean - scores[0]) / (scores[1] - scores[0]):.1f}"
            table.add_row(env, grade, f"{episodes.num_rows:,}", f"{mean:.1f}", score)
    return table


def _shown(episodes: Episodes) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, title=episodes.name, title_justify="left")
    returns, lengths = episodes.returns, episodes.lengths
    rows = {
        "transitions": f"{episodes.num_rows:,}",
        "episodes": f"{len(lengths):,}, of {min(lengths)} to {max(lengths)} steps",
        "returns": f"{min(returns):.1f} to {max(returns):.1f}, mean {sum(returns) / len(returns):.1f}",
        "that terminated": f"{int(episodes.columns['terminated'].sum()):,}",
        **{name: f"{tuple(column.shape[1:])} {column.dtype}" for name, column in episodes.columns.items()},
        **{name: str(value) for name, value in episodes.about.items()},
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table
