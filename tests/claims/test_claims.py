"""Claims as a user meets them: found by name, run, interrupted, run again, and written down."""

import importlib.util
import json
import pkgutil
import sys
from pathlib import Path

import pytest

from freerun import cli
from freerun.algorithms import language
from freerun.algorithms.language import reinforce
from freerun.claims import base, run
from freerun.claims.base import Claim, Expectation, compare
from freerun.claims.digest import digest
from freerun.claims.verdict import Verdict
from freerun.errors import ConfigError

TOY = '''
"""A claim about nothing."""

from pathlib import Path

from freerun.algorithms.language import reinforce
from freerun.claims.base import Claim, Expectation

RUNS = Path(__file__).with_suffix(".runs")


def arm(name, values):
    def run(seed):
        with RUNS.open("a") as file:
            file.write(f"{name} {seed}\\n")
        if values[seed] is None:
            raise KeyboardInterrupt
        return {"score": values[seed], "curve": [seed]}

    return run


def claim():
    """What is claimed."""
    # A remark.
    return Claim(
        sentence="Left beats right.",
        paper="nobody (2024)",
        method=reinforce,
        arms={"left": arm("left", LEFT), "right": arm("right", RIGHT)},
        metric="score",
        expected=(Expectation(better="left", worse="right", margin=0.1),),
        quick=True,
        minutes=0.1,
    )
'''


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("FREERUN_CACHE", str(tmp_path / "cache"))
    # Byte code is told from its source by size and second, and a test writes several versions of a file within one.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.fixture
def toy(tmp_path):
    """Writes a claim with these numbers by seed; returns its file."""

    def write(left, right, text=TOY):
        file = tmp_path / "toy_claim.py"
        file.write_text(text.replace("RUNS = ", f"LEFT, RIGHT = {left!r}, {right!r}\nRUNS = "))
        digest.cache_clear()
        return file

    return write


def claims(*arguments, out):
    """Exit status of `freerun claims` with these arguments."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["claims", *map(str, arguments), "--out", str(out)])
    return ended.value.code


def said(capsys):
    """What was printed, on one line: the terminal of a test is narrow."""
    printed = capsys.readouterr()
    return " ".join((printed.out + printed.err).split())


def runs_of(file):
    """Runs that were made since this was last asked."""
    runs = file.with_suffix(".runs")
    made = runs.read_text().splitlines() if runs.exists() else []
    runs.unlink(missing_ok=True)
    return made


def some_claim(**changes):
    return Claim(
        **{
            "sentence": "Left beats right.",
            "paper": "nobody (2024)",
            "method": reinforce,
            "arms": {"left": dict, "right": dict},
            "metric": "score",
            "expected": (Expectation(better="left", worse="right"),),
            "minutes": 1.0,
            **changes,
        }
    )


# --- the claims that ship


@pytest.mark.parametrize("name", base.names())
def test_every_claim_says_what_it_tests_in_whole_sentences(name):
    claim = base.load(name).claim()
    assert claim.sentence[0].isupper() and claim.sentence.endswith(".")
    assert "arXiv" in claim.paper or any(year in claim.paper for year in ("19", "20"))
    assert not claim.tried or claim.tried.endswith(".")
    assert "Config" in vars(claim.method)


def test_every_language_method_is_what_a_claim_is_about():
    claimed = {base.load(name).claim().method.__name__ for name in base.names()}
    assert [m.name for m in pkgutil.iter_modules(language.__path__) if f"{language.__name__}.{m.name}" not in claimed] == []


def test_harness_modules_are_no_claims():
    assert not {"base", "run", "show", "tabular", "tiny", "verdict", "digest", "curves"} & set(base.names())


def test_a_name_that_is_not_known_gets_the_nearest_ones(tmp_path, capsys):
    assert claims("aipo-static-bandid", out=tmp_path) == 1
    assert "aipo-static-bandit" in said(capsys)


def test_a_file_without_a_claim_is_refused(tmp_path, capsys):
    (tmp_path / "empty.py").write_text("")
    assert claims(tmp_path / "empty.py", out=tmp_path) == 1
    assert "is not a claim" in said(capsys)


# --- running one


def test_a_claim_is_run_judged_and_written_down_with_all_that_a_reader_needs(toy, tmp_path, capsys):
    file = toy([0.9, 0.8, 1.0], [0.5, 0.5, 0.5])
    assert claims(file, out=tmp_path / "out") == 0
    assert runs_of(file) == [f"{arm} {seed}" for seed in range(3) for arm in ("left", "right")]
    stored = json.loads((tmp_path / "out" / "toy-claim.json").read_text())
    assert stored["verdict"] == "holds" and stored["seeds"] == 3
    assert stored["compared"][0]["differences"] == pytest.approx([0.4, 0.3, 0.5])
    assert stored["compared"][0]["interval"]["mean"] == pytest.approx(0.4)
    assert stored["arms"]["left"]["runs"]["1"] | {"seconds": 0} == {"score": 0.8, "curve": [1], "seconds": 0}
    assert "holds" in said(capsys)


@pytest.mark.parametrize(
    ("left", "verdict"), [([0.9, 0.8, 1.0], "holds"), ([0.5, 0.52, 0.51], "does not hold"), ([0.5, 0.7, 0.9], "unclear")]
)
def test_all_three_verdicts_come_out_of_numbers_alone(left, verdict, toy, tmp_path):
    assert claims(toy(left, [0.5, 0.5, 0.5]), out=tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "toy-claim.json").read_text())["verdict"] == verdict


def test_where_lower_is_better_the_sign_turns():
    runs = {"left": {s: {"score": 0.1} for s in range(3)}, "right": {s: {"score": 0.4} for s in range(3)}}
    lower = some_claim(better="lower")
    assert compare(lower, lower.expected[0], runs).differences == pytest.approx((0.3, 0.3, 0.3))
    assert compare(lower, lower.expected[0], runs).verdict is Verdict.HOLDS
    assert compare(some_claim(), lower.expected[0], runs).verdict is Verdict.FAILS


def test_an_expectation_may_be_about_another_number():
    one = Expectation(better="left", worse="right", metric="ess")
    runs = {
        "left": {s: {"score": 0.0, "ess": 0.9} for s in range(3)},
        "right": {s: {"score": 1.0, "ess": 0.5} for s in range(3)},
    }
    assert compare(some_claim(expected=(one,)), one, runs).differences == pytest.approx((0.4, 0.4, 0.4))


# --- interruptions and repetitions


def test_a_repeated_claim_runs_nothing_again_unless_asked_to(toy, tmp_path):
    file = toy([0.9, 0.8, 1.0], [0.5, 0.5, 0.5])
    claims(file, out=tmp_path / "out")
    runs_of(file)
    assert claims(file, out=tmp_path / "out") == 0 and runs_of(file) == []
    assert claims(file, "--fresh", out=tmp_path / "out") == 0 and len(runs_of(file)) == 6


def test_more_seeds_run_only_the_new_ones(toy, tmp_path):
    file = toy([0.9, 0.8, 1.0, 0.9], [0.5, 0.5, 0.5, 0.5])
    claims(file, out=tmp_path / "out")
    runs_of(file)
    assert claims(file, "--seeds", 4, out=tmp_path / "out") == 0
    assert runs_of(file) == ["left 3", "right 3"]
    assert json.loads((tmp_path / "out" / "toy-claim.json").read_text())["seeds"] == 4


def test_an_interrupted_claim_writes_no_result_and_goes_on_where_it_was(toy, tmp_path):
    text = TOY.replace("if values[seed] is None:", 'if values[seed] == 1.0 and not RUNS.with_suffix(".again").exists():')
    file = toy([0.9, 0.8, 1.0], [0.5, 0.5, 0.5], text)
    assert claims(file, out=tmp_path / "out") == 130
    assert not (tmp_path / "out" / "toy-claim.json").exists()
    assert len(runs_of(file)) == 5
    file.with_suffix(".again").touch()
    assert claims(file, out=tmp_path / "out") == 0
    assert runs_of(file) == ["left 2", "right 2"]


def test_other_code_is_run_again_and_other_words_are_not(toy, tmp_path):
    numbers = ([0.9, 0.8, 1.0], [0.5, 0.5, 0.5])
    file = toy(*numbers)
    claims(file, out=tmp_path / "out")
    runs_of(file)
    toy(*numbers, TOY.replace("A remark.", "Another.").replace("What is claimed.", "Said otherwise."))
    assert claims(file, out=tmp_path / "out") == 0 and runs_of(file) == []
    toy(*numbers, TOY.replace("[seed]}", "[seed, seed]}"))
    assert claims(file, out=tmp_path / "out") == 0 and len(runs_of(file)) == 6


def test_the_fingerprint_covers_what_the_code_imports():
    seen = []
    file = Path(importlib.util.find_spec("freerun.claims.tabular").origin)
    real = Path.read_text

    def spy(path, *args, **kwargs):
        seen.append(path.name)
        return real(path, *args, **kwargs)

    digest.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", spy)
        digest(file)
    assert {"tabular.py", "update.py", "reduce.py", "types.py"} <= set(seen)
    assert "cli.py" not in seen


# --- checking what is on record


def test_a_check_writes_nothing_and_fails_where_the_verdict_is_another(toy, tmp_path, capsys):
    file, out = toy([0.9, 0.8, 1.0], [0.5, 0.5, 0.5]), tmp_path / "out"
    assert claims(file, "--check", out=out) == 1
    assert not out.exists()
    claims(file, out=out)
    before = (out / "toy-claim.json").read_text()
    assert claims(file, "--check", out=out) == 0
    toy([0.5, 0.7, 0.9], [0.5, 0.5, 0.5])
    assert claims(file, "--check", out=out) == 1
    assert "not the verdict on record: toy-claim" in said(capsys)
    assert (out / "toy-claim.json").read_text() == before


def test_the_list_shows_what_is_on_record(tmp_path, capsys):
    run.write(tmp_path / "aipo-static-bandit.json", {"verdict": "does not hold"})
    assert claims("--list", out=tmp_path) == 0
    text = said(capsys)
    assert "aipo-static-bandit" in text and "does not hold" in text


@pytest.mark.parametrize("path", sorted(run.results_directory().glob("*.json")), ids=lambda path: path.stem)
def test_every_result_on_record_is_complete_and_its_verdict_follows_from_its_numbers(path):
    stored = json.loads(path.read_text())
    keys = "name sentence paper method metric better verdict compared arms seeds quick command minutes commit code date"
    assert set(stored) == {*keys.split(), "hardware", "versions"}
    assert stored["name"] == path.stem and stored["name"] in base.names()
    claim = base.load(stored["name"]).claim()
    runs = {arm: {int(s): n for s, n in ran["runs"].items()} for arm, ran in stored["arms"].items()}
    assert set(runs) == set(claim.arms) and all(len(ran) == stored["seeds"] >= base.MIN_SEEDS for ran in runs.values())
    again = run.result(stored["name"], claim, runs, stored["code"])
    for part in ("sentence", "verdict", "compared", "arms"):
        assert json.loads(json.dumps(again[part])) == stored[part], f"{part}: run the claim again"


# --- what cannot be decided is refused


def test_two_seeds_are_too_few(toy, tmp_path, capsys):
    with pytest.raises(ConfigError, match="cannot be decided"):
        some_claim(seeds=2)
    assert claims(toy([1.0, 1.0], [0.0, 0.0]), "--seeds", 2, out=tmp_path) == 1
    assert "at least 3" in said(capsys)


def test_an_expectation_about_an_arm_that_is_not_there_is_refused():
    with pytest.raises(ConfigError) as caught:
        some_claim(expected=(Expectation(better="left", worse="middle"),))
    assert "arms that there are" in caught.value.expected


@pytest.mark.parametrize("value", ["float('nan')", "None"])
def test_an_arm_that_does_not_give_its_metric_is_named(value, toy, tmp_path, capsys):
    file = toy([0.9, 0.8, 1.0], [0.5, 0.5, 0.5], TOY.replace('"score": values[seed]', f'"score": {value}'))
    assert claims(file, out=tmp_path) == 1
    assert "arm 'left'" in said(capsys)
