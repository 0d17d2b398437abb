"""The timeline of the report: pictures of the whole run and of a few steps, and where the time of each executor went."""

from collections.abc import Mapping

from freerun.watch.numbers import duration, percent
from freerun.watch.page.accounts import Account, accounts
from freerun.watch.page.curves import legend
from freerun.watch.page.html import Html, el
from freerun.watch.page.svg import colour
from freerun.watch.page.timeline import detail, kinds, overview, windows
from freerun.watch.records import RunRecords

MOST = 200


def activity(run: RunRecords) -> Html:
    if not any(e.end > e.start for e in run.events):
        return el("section", happenings(run))
    colours = kinds(run.events)
    marks = [(s.seconds, f"v{s.version}") for s in run.steps]
    shown = windows([s.seconds for s in run.steps], run.seconds)
    cards = []
    if len(shown) > 1:
        about = "each column is a slice of time, its empty part idle"
        cards.append(picture("The whole run", about, overview(run.events, colours, run.seconds)))
    for title, start, end in shown:
        about = f"{duration(end - start)}; dashed lines are published versions, grey is idle"
        cards.append(picture(title, about, detail(run.events, colours, start, end, marks)))
    return el(
        "section",
        el("h2", "Who did what, when"),
        legend(colours),
        el("div", cards, accounting(run, colours), class_="stack"),
        happenings(run),
    )


def picture(title: str, about: str, drawn: Html) -> Html:
    return el("figure", el("figcaption", el("h3", title), el("span", about, class_="soft small")), drawn, class_="card")


def accounting(run: RunRecords, colours: Mapping[str, int]) -> Html:
    """The table of who was busy with what, and who was idle why."""
    head = el(
        "tr",
        el("th", "executor"),
        el("th", "busy", class_="num"),
        el("th", "idle", class_="num"),
        el("th", "work"),
        el("th", "idle because"),
    )
    rows = [account_row(account, colours) for account in accounts(run.events, 0.0, run.seconds)]
    table = el("div", el("table", head, rows), class_="wide")
    about = "shares of the whole run; N stands for any number"
    return picture("Where the time went", about, table)


def account_row(account: Account, colours: Mapping[str, int]) -> Html:
    work = ", ".join(f"{what} {percent(share, 0)}" for what, share in account.busy.items() if share >= 0.005)
    parts = [
        el("i", style=f"width: {100 * share:.2f}%; background: {colour(colours[what])}", title=f"{what} {percent(share)}")
        for what, share in account.busy.items()
    ]
    waits = [
        el("div", f"{percent(share, 0)} {why or 'for no recorded reason'}")
        for why, share in list(account.idle.items())[:4]
        if share >= 0.005
    ]
    return el(
        "tr",
        el("td", el("b", account.executor)),
        el("td", percent(account.busy_share, 0), class_="num"),
        el("td", percent(1 - account.busy_share, 0), class_="num"),
        el("td", work, el("div", parts, class_="meter")),
        el("td", waits),
    )


def happenings(run: RunRecords) -> Html | None:
    """Events without a length: checkpoints, resumes, deaths."""
    moments = [e for e in run.events if e.start == e.end]
    if not moments:
        return None
    rows = [
        el(
            "tr",
            el("td", duration(e.start), class_="num"),
            el("td", e.executor),
            el("td", e.what),
            el("td", ", ".join(f"{name}: {value}" for name, value in e.detail.items())),
        )
        for e in moments[-MOST:]
    ]
    which = f"the last {MOST} of {len(moments)}" if len(moments) > MOST else f"{len(moments)}"
    return el("details", el("summary", f"What happened on the way ({which})"), el("table", rows), class_="card fold")
