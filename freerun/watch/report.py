"""A run as one HTML file that loads nothing: what it gained, how it got there, who waited for whom, what the model wrote."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freerun.errors import RunDirectoryError
from freerun.watch.numbers import duration
from freerun.watch.page.activity import activity
from freerun.watch.page.curves import curves, staleness
from freerun.watch.page.episodes import pictures, returns_card
from freerun.watch.page.gains import hero
from freerun.watch.page.html import Html, document, el
from freerun.watch.page.writing import writing
from freerun.watch.records import RunRecords, load

NAME = "report.html"


def write_report(run_dir: Path | str) -> Path:
    """Write `report.html` into a run directory, finished or not, and return its path. What cannot be read is named in it.

    Raises `RunDirectoryError` if `run_dir` is not a run directory or the file cannot be written.
    """
    run = load(run_dir)
    path, attempt = run.path / NAME, run.path / f".{NAME}.new"
    try:
        # A model may write lone surrogates, which no encoding has: they become question marks.
        attempt.write_bytes(render(run).encode("utf-8", "replace"))
        os.replace(attempt, path)
    except OSError as error:
        attempt.unlink(missing_ok=True)
        raise RunDirectoryError(
            f"the report of {run.path} could not be written",
            given=error.strerror or str(error),
            expected="room and permission to write",
            todo=f"make room, then `freerun report {run.path}`",
        ) from error
    return path


def render(run: RunRecords) -> str:
    """The whole page."""
    name = run.path.resolve().name
    footer = el("footer", "Made by Freerun from the files beside this one. Hover over a picture for its numbers.")
    return document(
        f"{name} · Freerun",
        header(run, name),
        notes(run),
        hero(run),
        pictures(run),
        curves(run, [returns_card(run.trials)] if run.trials else []),
        staleness(run),
        activity(run),
        writing(run),
        appendix(run),
        footer,
    )


def header(run: RunRecords, name: str) -> Html:
    """Name, outcome, and one line of where and when."""
    facts = [f"{run.steps[-1].step if run.steps else 0} steps in {duration(run.seconds)}"]
    if run.attempts:
        first, last = run.attempts[0], run.attempts[-1]
        facts.append(f"started {str(first.get('started', '?'))[:16].replace('T', ' ')} UTC")
        facts += [f"{last['cpu']}, {last.get('cores_allowed', '?')} cores"] if last.get("cpu") else []
        facts += [str(gpu) for gpu in last.get("gpus", ())]
        facts += [f"commit {str(last['commit'])[:10]}"] if last.get("commit") else []
    badge = el("span", run.outcome, class_=f"badge {run.outcome}")
    return el("header", el("h1", name, " ", badge), el("p", " · ".join(facts), class_="soft"))


def notes(run: RunRecords) -> Html:
    """What a reader must know before believing the numbers."""
    said = []
    if run.outcome == "running":
        said.append("The run is still going on; this is what it has written so far.")
    elif run.summary is None:
        said.append("The run ended without a summary: it was killed. What it had written is all here.")
    elif run.outcome != "finished":
        why = run.summary.get("reason")
        said.append(f"The run did not reach its end ({run.outcome}{f': {why}' if why else ''}).")
    for file, count in run.damaged.items():
        lines, them = ("1 line", "is") if count == 1 else (f"{count} lines", "are")
        said.append(
            f"{lines} of {file} could not be read and {them} left out: a process that is killed while it writes "
            "tears its last line."
        )
    if len(run.attempts) > 1:
        said.append(f"The run was resumed: these are {len(run.attempts)} attempts, joined where each took over.")
    return el("div", [el("div", s, class_="note") for s in said])


def appendix(run: RunRecords) -> Html:
    """Config and environment, folded."""
    tables = [("Config", leaves(run.config))]
    for i, attempt in enumerate(run.attempts):
        title = "Environment" if len(run.attempts) == 1 else f"Environment of attempt {i + 1}"
        tables.append((title, leaves(attempt)))
    cards = []
    for title, rows in tables:
        body = [el("tr", el("td", el("code", path)), el("td", el("code", value))) for path, value in rows]
        cards.append(el("details", el("summary", title), el("table", body), class_="card"))
    return el("section", el("h2", "How to repeat it"), el("div", cards, class_="stack"))


def leaves(data: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested JSON as dotted paths and values; the type of a section is the value of its own path."""
    if not isinstance(data, Mapping):
        return [(prefix.removesuffix("."), str(data))]
    found = []
    for key, value in data.items():
        found += [(prefix.removesuffix(".") or "run", str(value))] if key == "_type" else leaves(value, f"{prefix}{key}.")
    return found
