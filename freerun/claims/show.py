"""`freerun claims`: claims on the terminal, as they are run and as they came out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from freerun.claims import base, run
from freerun.claims.base import Claim
from freerun.claims.verdict import Verdict
from freerun.errors import ConfigError

COLOURS = {Verdict.HOLDS: "green", Verdict.FAILS: "red", Verdict.UNCLEAR: "yellow"}


def claims(
    names: Sequence[str],
    *,
    seeds: int | None = None,
    quick: bool = False,
    fresh: bool = False,
    check: bool = False,
    directory: Path | None = None,
) -> int:
    """Run the claims that are named (none: all; `quick`: all that say so) and write their results into `directory`; with
    `check`, write nothing, and return 1 if a verdict is not the one that is written there.

    Raises `ConfigError` for an unknown name, before anything runs."""
    directory = directory or run.results_directory()
    modules = {Path(name).stem.replace("_", "-"): base.load(name) for name in names or base.names()}
    found = {name: (module.claim(), Path(str(module.__file__))) for name, module in modules.items()}
    if quick:
        found = {name: (claim, file) for name, (claim, file) in found.items() if claim.quick}
    if not found:
        raise ConfigError(
            "no claim to run", given=", ".join(modules) or "none", expected="a claim that is quick", todo="drop --quick"
        )
    before, console, changed = run.stored(directory), Console(), []
    for name, (claim, file) in found.items():
        console.print(f"[bold]{name}[/]  about {claim.minutes:g} min", highlight=False)
        console.print(claim.sentence, markup=False, highlight=False)
        with Live(console=console, auto_refresh=False) as live:

            def progress(runs: run.Runs, claim: Claim = claim, live: Live = live) -> None:
                live.update(counted(claim, runs), refresh=True)

            result = run.run(name, claim, file, seeds=seeds, fresh=fresh, progress=progress)
            live.update(shown(result), refresh=True)
        if not check:
            run.write(directory / f"{name}.json", result)
        elif name not in before or before[name]["verdict"] != result["verdict"]:
            changed.append(name)
    if changed:
        console.print(f"not the verdict on record: {', '.join(changed)}", style="bold red", highlight=False)
    return 1 if changed else 0


def listing(directory: Path | None = None) -> Table:
    """Every claim that ships, and what is on record about it."""
    known = run.stored(directory or run.results_directory())
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, wraps in (("claim", False), ("method", False), ("minutes", False), ("verdict", False), ("sentence", True)):
        table.add_column(column, no_wrap=not wraps)
    for name in base.names():
        claim = base.load(name).claim()
        method = claim.method.__name__.rpartition(".")[2]
        minutes = f"{claim.minutes:g}{' quick' if claim.quick else ''}"
        table.add_row(name, method, minutes, verdict(known[name]["verdict"]) if name in known else "not run", claim.sentence)
    return table


def counted(claim: Claim, runs: run.Runs) -> Table:
    """A claim under way: the metric of each run."""
    table = _table("arm", claim.metric, "seeds")
    for arm, ran in runs.items():
        values = "  ".join(f"{numbers[claim.metric]:.3f}" for _, numbers in sorted(ran.items()))
        table.add_row(arm, values, str(len(ran)))
    return table


def shown(result: Mapping[str, Any]) -> Group:
    """A result: arms with their intervals, comparisons with theirs, and the verdict."""
    arms = _table("arm", result["metric"], "95% interval", "seeds")
    for arm, summary in result["arms"].items():
        arms.add_row(arm, f"{summary['mean']:.3f}", span(summary), str(len(summary["runs"])))
    compared = _table("expected", "difference", "95% interval", "verdict")
    for one in result["compared"]:
        compared.add_row(statement(one), f"{one['interval']['mean']:+.3f}", span(one["interval"]), verdict(one["verdict"]))
    return Group(arms, compared, verdict(result["verdict"]), Text(""))


def statement(one: Mapping[str, Any]) -> str:
    """An expectation in words."""
    expectation = one["expectation"]
    by = f" by more than {expectation['margin']:g}" if expectation["margin"] else ""
    of = f" ({expectation['metric']})" if expectation["metric"] else ""
    return f"{expectation['better']} > {expectation['worse']}{by}{of}"


def span(interval: Mapping[str, float]) -> str:
    """An interval's ends."""
    return f"{interval['low']:.3f} to {interval['high']:.3f}"


def verdict(name: str) -> Text:
    """A verdict in its colour."""
    return Text(name, style=f"bold {COLOURS[Verdict(name)]}")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column)
    return table
