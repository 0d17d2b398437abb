"""What the model wrote, early and late in the run, side by side."""

import math
from collections.abc import Sequence

from freerun.metrics import SampleRecord
from freerun.watch.numbers import quantity
from freerun.watch.page.html import Html, el
from freerun.watch.records import RunRecords

MAX_PAIRS, MAX_PROMPT, MAX_COMPLETION = 8, 600, 1500


def writing(run: RunRecords) -> Html:
    if not run.samples:
        return el("section")
    chosen: Sequence[Sequence[SampleRecord]] = pairs(run.samples) or [run.samples[:1]]
    cards = [el("div", pair_card(pair), class_="card") for pair in chosen]
    kept = f"{len(run.samples):,} responses are in samples.jsonl. These were picked evenly, not by their rewards."
    return el(
        "section",
        el("h2", "What the model wrote, early and late"),
        el("p", kept, class_="soft"),
        el("div", cards, class_="stack"),
    )


def pairs(samples: Sequence[SampleRecord]) -> list[tuple[SampleRecord, SampleRecord]]:
    """A response of the first third of the run and one of the last: to the same prompt where at least three prompts came up in
    both, to any otherwise. Never chosen by reward."""
    third = max(len(samples) // 3, 1)
    early, late = samples[:third], samples[max(len(samples) - third, third) :]
    first = {s.uid: s for s in reversed(early)}
    last = {s.uid: s for s in late}
    same = [(first[uid], last[uid]) for uid in first if uid in last]
    found = same if len(same) >= 3 else list(zip(early, reversed(late), strict=False))
    found.sort(key=lambda pair: (pair[0].step, pair[0].item))
    return found[:: max(1, math.ceil(len(found) / MAX_PAIRS))]


def pair_card(pair: Sequence[SampleRecord]) -> Html:
    """Answers side by side, below their prompt if it is the same and each below its own otherwise."""
    if len({s.prompt for s in pair}) == 1:
        return el("div", prompt(pair[0]), [answer(s) for s in pair], class_="pair")
    return el("div", [el("div", prompt(s), answer(s)) for s in pair], class_="pair")


def prompt(s: SampleRecord) -> Html:
    """The end of the prompt, which is where the question is."""
    cut = len(s.prompt) - MAX_PROMPT
    return el("pre", s.prompt if cut <= 0 else f"({cut:,} characters before) … {s.prompt[cut:]}", class_="prompt")


def answer(s: SampleRecord) -> Html:
    versions = f"version {s.oldest}" if s.oldest == s.newest else f"versions {s.oldest}–{s.newest}"
    parts = [f"{name} {quantity(value)}" for name, value in s.parts.items()]
    cut = len(s.completion) - MAX_COMPLETION
    text = s.completion if cut <= 0 else f"{s.completion[:MAX_COMPLETION]} … ({cut:,} more characters)"
    facts = ", ".join([versions, f"lag {s.lag}", f"ended by {s.stop}", *parts])
    head = el("b", f"step {s.step} · reward {quantity(s.reward)}")
    look = "answer up" if s.reward > 0 else "answer down"
    return el("div", head, el("div", facts, class_="soft small"), el("pre", text), class_=look)
