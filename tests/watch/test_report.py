"""The HTML report: complete, self-contained, safe against what a model writes, and possible for a run in any state."""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freerun.errors import RunDirectoryError
from freerun.metrics import EvalRecord, Event, SampleRecord, StepRecord, TrialRecord
from freerun.rundir import LOGS, PICTURES, RunDirectory
from freerun.watch.page.html import document, el, escape
from freerun.watch.page.writing import pairs
from freerun.watch.records import load
from freerun.watch.report import leaves, write_report

NASTY = '</pre><script>alert("x")</script><img src="https://evil.example/a.png" onerror=alert(1)>{}&amp;\x00\x1b[31m\ud800'


class Page(HTMLParser):
    """Every tag and attribute of a page, its text, and whether each element that was opened was closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.extend(attrs)
        if tag not in ("meta", "br", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def a_sample(step: int, *, uid: str = "u", prompt: str = "2+2=", completion: str = "4") -> SampleRecord:
    return SampleRecord(
        step=step, item=step, uid=uid, prompt=prompt, completion=completion, reward=1.0, oldest=0, newest=0, lag=0, stop="eos"
    )


# --- what is in it -----------------------------------------------------------------------------------------------------------


def test_a_finished_run_has_every_part_of_the_report(written) -> None:
    page = Page(write_report(written(steps=40)))
    for wanted in (
        "finished",
        "34.8%",
        "78.9%",
        "+44.1 points (95% interval +36.0 to +51.3)",
        "256 problems",
        "Reward",
        "Entropy",
        "Effective sample size",
        "Generator against trainer",
        "Tokens per second",
        "Loss: policy",
        "Gradient norm",
        "How stale the data was",
        "lag 1",
        "Who did what, when",
        "The whole run",
        "Early in the run",
        "At the end of the run",
        "Where the time went",
        "groups N to N of the step",
        "What the model wrote",
        "step 40 · reward",
        "versions 38–39",
        "control.max_lag",
        "packages.torch",
        "All other metrics",
    ):
        assert wanted in page.text, wanted
    assert page.tags.count("svg") > 15


def test_the_report_loads_nothing_and_runs_nothing(written) -> None:
    page = Page(write_report(written(steps=12)))
    assert "script" not in page.tags and "link" not in page.tags and "img" not in page.tags
    names = {name for name, _ in page.attributes}
    assert names.isdisjoint({"src", "href", "srcset", "xlink:href"}) and not any(n.startswith("on") for n in names)
    assert not re.search(r"https?://|url\(|@import", page.source)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes


def test_the_report_has_a_light_and_a_dark_scheme_and_fits_a_phone(written) -> None:
    source = Page(write_report(written(steps=3))).source
    assert "prefers-color-scheme: dark" in source and "width=device-width" in source


def test_the_report_of_a_long_run_stays_small(written) -> None:
    assert write_report(written(steps=150)).stat().st_size < 1_000_000


def test_writing_the_report_again_replaces_it_and_leaves_nothing_beside_it(written) -> None:
    run = written(steps=3)
    before = write_report(run).read_bytes()
    files = sorted(p.name for p in run.iterdir())
    assert write_report(run).read_bytes() == before
    assert sorted(p.name for p in run.iterdir()) == files


# --- what a model may write --------------------------------------------------------------------------------------------------


def test_nothing_that_a_model_or_a_config_says_becomes_markup(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", {"task": NASTY, NASTY: 1})
    for step in (1, 2, 3):
        run.step(StepRecord(step=step, version=step, seconds=step, metrics={NASTY: 1.0, "reward/mean": 0.5}))
        run.sample(
            SampleRecord(
                step=step,
                item=1,
                uid=NASTY,
                prompt=NASTY,
                completion=NASTY,
                reward=0.0,
                oldest=0,
                newest=0,
                lag=0,
                stop=NASTY,
                parts={NASTY: 1.0},
            )
        )
        run.event(Event(executor=NASTY, what=NASTY, start=step - 1, end=step, detail={"doing": NASTY}))
        run.event(Event(executor=NASTY, what=NASTY, start=step, end=step, detail={NASTY: NASTY}))
        run.evaluation(EvalRecord(step=step, split=NASTY, accuracy=0.5, count=4, oldest=0, newest=0, seconds=step))
    run.finish("failed", NASTY)
    run.close()
    page = Page(write_report(run.path))
    assert "script" not in page.tags and "img" not in page.tags
    assert not any(name == "onerror" for name, _ in page.attributes)
    assert '<script>alert("x")</script>' in page.text, "it is shown as text"
    assert "\x00" not in page.source and "\x1b" not in page.source


@settings(deadline=None)
@given(st.text())
def test_any_text_survives_as_text_and_only_as_text(text: str) -> None:
    parser = HTMLParser(convert_charrefs=True)
    seen: list[str] = []
    parser.handle_data = seen.append
    parser.handle_starttag = lambda tag, attrs: pytest.fail(tag)
    parser.feed(escape(text))
    parser.close()
    printable = [c for c in text if ord(c) >= 32 and c != "\x7f"]
    assert [c for c in "".join(seen) if not "\u2400" <= c <= "\u2421" and c not in "\t\n"] == [
        c for c in printable if not "\u2400" <= c <= "\u2421"
    ]


@pytest.mark.parametrize("way", ["a name that leads out", "an absolute name", "a link"])
def test_a_log_cannot_have_a_file_from_elsewhere_put_into_the_report(way, tmp_path: Path) -> None:
    folder, secret = tmp_path / "run" / PICTURES, tmp_path / "secret.png"
    run = RunDirectory.create(folder.parent, {})
    folder.mkdir()
    for file in (folder / "mine.png", secret):
        file.write_bytes(file.name.encode())
    (folder / "link.png").symlink_to(secret)
    name = {"a name that leads out": "../../secret.png", "an absolute name": str(secret), "a link": "link.png"}[way]
    trial = TrialRecord(
        step=1, split="heldout", returns=(1.0,), length=5.0, version=1, taken=8, seconds=1.0, score=None, picture="mine.png"
    )
    run.evaluation(trial)
    run.evaluation(replace(trial, step=2, taken=16, picture=name))
    run.close()
    page = Page(write_report(folder.parent))
    shown = [value for name, value in page.attributes if name == "src"]
    assert [base64.b64decode(value.partition(",")[2]) for value in shown] == [b"mine.png"]


def test_children_are_flattened_attributes_are_escaped_and_none_is_nothing() -> None:
    assert (
        el("p", "a<b", [el("b", 1), None], class_="x", data_name='"', id=None, x=1.50)
        == '<p class="x" data-name="&quot;" x="1.5">a&lt;b<b>1</b></p>'
    )
    assert document("<t>", el("p")).startswith('<!doctype html>\n<html lang="en"><head>')


def test_long_texts_are_cut_and_say_by_how_much(written) -> None:
    run = RunDirectory.create(written(steps=0).parent / "other", {})
    run.sample(a_sample(1, prompt="p" * 1000, completion="c" * 5000))
    run.close()
    text = Page(write_report(run.path)).text
    assert "(400 characters before) … " + "p" * 600 in text and "c" * 1500 + " … (3,500 more characters)" in text


# --- runs in any state -------------------------------------------------------------------------------------------------------


def test_a_killed_run_is_reported_with_its_torn_line_named(written) -> None:
    run = written(steps=12, outcome="")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "vers')
    text = Page(write_report(run)).text
    assert "unfinished" in text and "it was killed" in text
    assert "1 line of metrics.jsonl could not be read and is left out" in text


def test_a_run_that_goes_on_is_reported_as_running(fake_run, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", {})
    fake_run(steps=3).play(run)
    assert "still going on" in Page(write_report(run.path)).text
    run.close()


def test_a_failed_run_says_why(fake_run, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", {})
    run.finish("failed", "the generator died")
    run.close()
    assert "did not reach its end (failed: the generator died)" in Page(write_report(run.path)).text


def test_a_resumed_run_says_so_and_lists_each_attempt(written) -> None:
    run = RunDirectory.resume(written(steps=6), 4)
    run.close()
    text = Page(write_report(run.path)).text
    assert "2 attempts" in text and "Environment of attempt 2" in text and "resumed" in text


@pytest.mark.parametrize("steps", [0, 1, 2, 9, 10])
def test_a_run_of_any_length_has_a_report(written, steps: int) -> None:
    Page(write_report(written(steps=steps)))


@pytest.mark.parametrize("missing", [*LOGS, "environment.json", "summary.json"])
def test_a_run_without_one_of_its_files_has_a_report(written, missing: str) -> None:
    run = written(steps=8)
    (run / missing).unlink()
    Page(write_report(run))


def test_a_run_with_nothing_but_its_config_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "Nothing measured yet" in Page(write_report(tmp_path)).text


def test_without_evaluations_the_reward_is_the_headline_and_says_that_nothing_was_held_out(written) -> None:
    run = written(steps=8)
    (run / "evals.jsonl").unlink()
    assert "nothing was held out" in Page(write_report(run)).text


def test_lines_of_another_shape_are_counted_and_left_out(written) -> None:
    run = written(steps=4)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5}\n[1]\n{"step": "x", "version": 1, "seconds": 1, "metrics": {}}\n')
    records = load(run)
    assert records.damaged == {"metrics.jsonl": 3} and len(records.steps) == 4


def test_numbers_that_are_not_finite_are_read_back_and_drawn_as_gaps(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", {})
    for step, value in enumerate([1.0, float("nan"), 2.0, float("inf"), -1.0], start=1):
        run.step(StepRecord(step=step, version=step, seconds=step, metrics={"loss/policy": value, "grad_norm": value}))
    run.close()
    records = load(run.path)
    assert [str(s.metrics["loss/policy"]) for s in records.steps] == ["1.0", "nan", "2.0", "inf", "-1.0"]
    page = Page(write_report(run.path))
    assert page.text.count("×") == 4
    assert not any(re.search("nan|inf", v) for n, v in page.attributes if n in ("d", "x", "y", "x1", "y1", "cx", "cy"))


def test_what_is_not_a_run_directory_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunDirectoryError, match="not a run directory"):
            write_report(path)


def test_a_report_that_cannot_be_written_is_a_clear_error(written) -> None:
    run = written(steps=1)
    (run / "report.html").mkdir()
    (run / "report.html" / "x").write_text("")
    with pytest.raises(RunDirectoryError, match="report"):
        write_report(run)


# --- pieces ------------------------------------------------------------------------------------------------------------------


def test_samples_are_paired_by_prompt_where_early_and_late_share_prompts() -> None:
    samples = [a_sample(step, uid=f"u{step % 4}") for step in range(1, 31)]
    for early, late in pairs(samples):
        assert early.uid == late.uid and early.step <= 10 and late.step >= 21


def test_samples_of_prompts_that_never_come_again_are_paired_early_with_late() -> None:
    found = pairs([a_sample(step, uid=f"u{step}") for step in range(1, 91)])
    assert 4 <= len(found) <= 8
    assert all(early.step <= 30 and late.step > 60 for early, late in found)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_samples_make_few_pairs_and_no_sample_is_paired_with_itself(count: int) -> None:
    assert all(early.step < late.step for early, late in pairs([a_sample(s) for s in range(1, count + 1)]))


def test_a_config_is_listed_leaf_by_leaf_with_the_type_of_each_section() -> None:
    config = json.loads('{"_type": "m:Run", "a": {"_type": "m:A", "b": [1, 2]}, "c": null}')
    assert leaves(config) == [("run", "m:Run"), ("a", "m:A"), ("a.b", "[1, 2]"), ("c", "None")]
