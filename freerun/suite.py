"""The protocol of D4RL (arXiv 2004.07219) in miniature: `freerun eval --suite d4rl-mini`.

Every method has one setting for all data sets of an environment and sees nothing but recorded episodes, for a fixed number of
updates. What counts is the last policy, not the best: the mean undiscounted return of episodes of the actions that it thinks
best, normalised by the references of the data (0 is random, 100 the policy that made the expert data), over several seeds.

The data sets are self-made, so scores are not those of D4RL's own files. What was run before is kept beside the results, with a
digest of config and data, so an interruption costs the run in hand and a changed setting is never mixed up with an older one.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from freerun import config as configs
from freerun import dataset_cli
from freerun.algorithms.control import awac, bc, cql, edac, iql, td3_bc
from freerun.algorithms.control_base import ControlConfig
from freerun.claims.episodes import play
from freerun.claims.run import write
from freerun.datasets.grades import GRADES, Grade, GradeName
from freerun.env_schedule import EnvSchedule
from freerun.errors import ConfigError
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase
from freerun.tasks import grades
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig

SUITE = "d4rl-mini"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What all methods share on one environment."""

    hidden: tuple[int, ...] = (256, 256)
    """Hidden layers."""
    batch: int = 256
    """Rows of an update."""
    lr: float = 3e-4
    """Learning rate."""
    updates: int = 100_000
    """Updates of a run."""
    reward_scale: float = 1.0
    """For methods that weigh actions by the exponential of an advantage, whose size matters: rewards are multiplied by it."""


SIZES: Mapping[str, Size] = {"pendulum": Size(hidden=(64, 64), batch=128, lr=1e-3, updates=10_000, reward_scale=0.1)}
"""Environments whose size is another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How a method takes part."""

    algorithm: Callable[[Size], ControlConfig]
    """Its config."""
    normalise: bool = True
    """Whether networks see observations by mean and deviation of the data."""
    scaled: bool = False
    """Whether rewards are scaled by `Size.reward_scale`."""
    best_share: float = 1.0
    """The share of the episodes, of highest return, that it sees."""


METHODS: Mapping[str, Method] = {
    "bc": Method(algorithm=lambda size: bc.Config(hidden=size.hidden, lr=size.lr)),
    "bc_best": Method(algorithm=lambda size: bc.Config(hidden=size.hidden, lr=size.lr), best_share=0.1),
    "td3_bc": Method(algorithm=lambda size: td3_bc.Config(hidden=size.hidden, lr=size.lr)),
    "iql": Method(algorithm=lambda size: iql.Config(hidden=size.hidden, lr=size.lr), scaled=True),
    "awac": Method(algorithm=lambda size: awac.Config(hidden=size.hidden, lr=size.lr), scaled=True),
    "cql": Method(algorithm=lambda size: cql.Config(hidden=size.hidden, actor_lr=0.3 * size.lr, critic_lr=size.lr)),
    "edac": Method(algorithm=lambda size: edac.Config(hidden=size.hidden, lr=size.lr), normalise=False),
}
"""Methods by name. `bc_best` imitates the best tenth of the episodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be run. Raises `ConfigError` for a name that nobody knows, and for nothing to run."""

    methods: tuple[str, ...] = tuple(METHODS)
    envs: tuple[str, ...] = ("pendulum",)
    grades: tuple[str, ...] = GRADES
    seeds: int = 3
    updates: int = 0
    """In place of what the environment's size says; 0 keeps that."""

    def __post_init__(self) -> None:
        for what, given, known in (
            ("method", self.methods, METHODS),
            ("environment", self.envs, grades.MAKINGS),
            ("grade", self.grades, GRADES),
        ):
            if unknown := [name for name in given if name not in known]:
                raise ConfigError(
                    f"{SUITE} has no {what} '{unknown[0]}'",
                    given=", ".join(given),
                    expected=f"some of {', '.join(known)}",
                    todo="correct the name",
                )
        rules = {"at least one seed": self.seeds >= 1, "updates >= 0": self.updates >= 0}
        configs.demand(self, f"{SUITE} cannot be run like this", rules)

    def data(self) -> list[Grade]:
        names: list[GradeName] = [grade for grade in GRADES if grade in self.grades]
        return [Grade(env=env, grade=grade) for env in self.envs for grade in names]


def config_of(method: str, data: Grade, *, updates: int = 0) -> ControlRun:
    """The run of a method on a data set, which has been made; its references come along."""
    size, how = SIZES.get(data.env, Size()), METHODS[method]
    return ControlRun(
        env=grades.MAKINGS[data.env].env,
        algorithm=how.algorithm(size),
        control=EnvSchedule(phases=(Phase(name="offline", updates=updates or size.updates),)),
        sources=(DatasetConfig(data=data, best_share=how.best_share),),
        trainer=ControlTrainerConfig(
            batch=size.batch,
            observations="data" if how.normalise else "raw",
            reward_scale=size.reward_scale if how.scaled else 1.0,
        ),
        scores=data.build().scores,
    )


Results = dict[str, dict[str, dict[str, Any]]]
"""By data set, `env/grade`: under "data" the mean score of its own episodes, under each method the runs by seed."""


def run(asked: Asked, path: Path, *, tell: Callable[[str], None] = lambda text: None) -> Results:
    """Do what is asked and not yet in the results at `path`, which are written after each run; all of what is asked."""
    kept: Results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for seed in range(asked.seeds):
        for data in asked.data():
            name, entry = f"{data.env}/{data.grade}", kept.setdefault(f"{data.env}/{data.grade}", {})
            entry["data"] = {"score": normalised(data)}
            for method in asked.methods:
                config = config_of(method, data, updates=asked.updates)
                key, runs = digest(config, data), entry.setdefault(method, {})
                if runs.get(str(seed), {}).get("digest") != key:
                    ran = play(config, seed=seed)
                    runs[str(seed)] = {
                        "digest": key,
                        "updates": config.control.phases[0].updates,
                        **{k: ran[k] for k in ("return", "score", "diverged", "cpu")},
                    }
                    write(path, kept)
                tell(f"{name}, {method}, seed {seed}: score {runs[str(seed)]['score']:.1f} in {runs[str(seed)]['cpu']:.0f} s")
    seeds = [str(seed) for seed in range(asked.seeds)]
    return {
        f"{data.env}/{data.grade}": {
            "data": kept[f"{data.env}/{data.grade}"]["data"],
            **{m: {seed: kept[f"{data.env}/{data.grade}"][m][seed] for seed in seeds} for m in asked.methods},
        }
        for data in asked.data()
    }


def normalised(data: Grade) -> float:
    """The mean score of the episodes of a data set: that of who acted in it."""
    episodes = data.build()
    assert episodes.scores is not None, "a made data set knows its references"
    low, high = episodes.scores
    return 100.0 * (fmean(episodes.returns) - low) / (high - low)


def digest(config: ControlRun, data: Grade) -> str:
    """What a result depends on, but for the code."""
    return hashlib.sha256(configs.dumps(config).encode() + data.path.read_bytes()).hexdigest()[:16]


def table(results: Results, methods: Sequence[str]) -> Table:
    """Mean scores over seeds with their deviation, and the average over data sets."""
    shown = Table(
        box=None, pad_edge=False, header_style="bold", title="normalised scores of last policies", title_justify="left"
    )
    shown.add_column("data set", no_wrap=True)
    for name in ("data", *methods):
        shown.add_column(name, justify="right", overflow="fold")  # in a narrow terminal a deviation goes below its mean
    means: dict[str, list[float]] = {name: [] for name in ("data", *methods)}
    for name, entry in results.items():
        cells = [f"{entry['data']['score']:.1f}"]
        means["data"].append(entry["data"]["score"])
        for method in methods:
            scores = [run["score"] for run in entry[method].values()]
            means[method].append(fmean(scores))
            cells.append(f"{fmean(scores):.1f}" + (f" ± {stdev(scores):.1f}" if len(scores) > 1 else ""))
        shown.add_row(name, *cells)
    shown.add_row("average", *(f"{fmean(values):.1f}" for values in means.values()))
    return shown


# --- the command line --------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `freerun eval` that go with `--suite`."""
    suite = parser.add_argument_group(f"with --suite {SUITE}", "Train and judge methods on recorded data, by D4RL's protocol.")
    suite.add_argument("--suite", metavar="NAME", help=f"in place of DIR: {SUITE}")
    suite.add_argument("--methods", nargs="+", metavar="NAME", help=f"default: {' '.join(METHODS)}")
    suite.add_argument("--envs", nargs="+", metavar="ENV", help=f"some of {' '.join(grades.MAKINGS)} (default pendulum)")
    suite.add_argument("--grades", nargs="+", metavar="GRADE", help=f"default: {' '.join(GRADES)}")
    suite.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N - 1 (default 3)")
    suite.add_argument("--updates", type=int, metavar="N", help="updates of a run, in place of the environment's own")
    suite.add_argument("--out", type=Path, metavar="DIR", help=f"where results are kept (default runs/{SUITE})")


def command(arguments: argparse.Namespace, console: Console) -> int:
    """`freerun eval --suite NAME`."""
    if arguments.suite != SUITE:
        raise ConfigError("unknown suite", given=arguments.suite, expected=SUITE, todo="name that one")
    lists = {name: tuple(vars(arguments)[name] or ()) for name in ("methods", "envs", "grades")}
    lists["methods"] = tuple(name.replace("-", "_") for name in lists["methods"])
    numbers = {name: vars(arguments)[name] for name in ("seeds", "updates")}
    given = {name: value for name, value in {**lists, **numbers}.items() if value not in (None, ())}
    asked = Asked(**given)
    for env in grades.missing(asked.data()):
        console.print(f"making the data sets of {env}, once; they stay in {asked.data()[0].path.parent.parent}", markup=False)
        dataset_cli.make(env, 0, console)
    path = (arguments.out or Path("runs") / SUITE) / "results.json"
    results = run(asked, path, tell=lambda text: console.print(text, markup=False, highlight=False))
    console.print(table(results, asked.methods))
    console.print(f"results {path}", markup=False, soft_wrap=True)
    return 0
