"""From what a policy reports to what it imitates: the reasoner sees the report alone, and selection asks how far it carries."""

import random
from dataclasses import replace

import pytest

from freerun.algorithms.language import sft
from freerun.algorithms.language.sophia import Selection
from freerun.errors import ConfigError, DataError
from freerun.models import tiny_lm
from freerun.recipes.base import WarmStartConfig
from freerun.tasks import authors, reports, scenes
from freerun.trainer.config import TrainerConfig
from freerun.types import Prompt, Sampling, Source

TASK = scenes.Config(train=40, heldout=8)
PROMPT = Prompt("p", "cafb>BD=", {"numbers": "2051", "asked": "BD", "answer": "n"})
SURE = scenes.Reasoner(slip=0.0, long=0.0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FREERUN_CACHE", str(tmp_path))


def collected(**changes):
    author = authors.Author(
        model=tiny_lm.Config(layers=1, width=16, heads=2, kv_heads=1, context=24, alphabet=scenes.ALPHABET),
        warm_start=WarmStartConfig(algorithm=sft.Config(), examples=scenes.Reports(), steps=20, batch=8, lr=1e-2),
        sampling=Sampling(max_tokens=6),
        trainer=TrainerConfig(dtype="float32"),
    )
    return reports.Collected(**{"author": author, "reasoner": scenes.Reasoner(), "reports": 4, "reasonings": 4, **changes})


# Scenes


def test_a_solution_states_the_two_numbers_asked_for_and_the_parity_of_their_sum():
    assert scenes.solution(PROMPT) == "B0D1n"
    assert scenes.solution(replace(PROMPT, meta={"numbers": "2031", "asked": "AC", "answer": "n"})) == "A2C3n"


@pytest.mark.parametrize(
    ("completion", "reward", "read"),
    [("B0D1n", 1.0, 1.0), ("B2D1n", 1.0, 0.5), ("B0D1y", 0.0, 1.0), ("n", 1.0, 0.0), ("", 0.0, 0.0), ("A2B0C5D9n", 1.0, 0.75)],
)
def test_the_reward_is_for_the_answer_and_what_was_read_is_counted_beside_it(completion, reward, read):
    result = scenes.right_answer("", completion, PROMPT.meta)
    assert (result.value, result.parts["read"]) == (reward, read)


def test_a_scene_with_fewer_than_two_numbers_is_refused():
    with pytest.raises(ConfigError, match="cannot make such scenes"):
        scenes.Config(places=1).build()


def test_demonstrated_reports_miss_and_mistake_numbers_as_often_as_they_should():
    task = scenes.Config(train=400).build()
    seen = [
        (number, said)
        for example in scenes.Reports().build(task)
        for report in example.responses
        for number, said in zip(example.prompt.meta["numbers"], report, strict=True)
    ]
    assert sum(said == "?" for _, said in seen) / len(seen) == pytest.approx(0.3, abs=0.02)
    # A tenth are drawn anew, of which one in six is right by chance.
    assert sum(said not in ("?", number) for number, said in seen) / len(seen) == pytest.approx(0.1 * 5 / 6, abs=0.01)


# The reasoner


def test_whoever_reports_does_not_see_the_question():
    assert SURE.report_prompt(PROMPT).content == "cafb>"


def test_a_reasoner_believes_the_report_and_not_the_scene():
    assert SURE.reason(PROMPT, "2031", random.Random(0)) == "B0D1n"
    assert SURE.reason(PROMPT, "2132", random.Random(0)) == "B1D2n"
    assert replace(SURE, long=1.0).reason(PROMPT, "2031", random.Random(0)) == "A2B0C3D1n"


def test_what_a_report_leaves_open_is_made_up():
    answers = {SURE.reason(PROMPT, "20?", random.Random(seed)) for seed in range(200)}
    assert answers == {f"B0D{n}{'y' if n % 2 == 0 else 'n'}" for n in range(6)}


def test_a_lucky_guess_is_told_from_a_good_report_by_how_often_it_is_right():
    """Half of the guesses are right, so a report with a hole hardly ever reaches three in four of eight."""
    rng = random.Random(0)

    def share(report):
        return sum(SURE.reason(PROMPT, report, rng).endswith("n") for _ in range(400)) / 400

    assert share("2031") == 1.0
    assert share("2?31") == pytest.approx(0.5, abs=0.08)


# The pipeline


def test_what_is_collected_is_selected_responses_to_the_prompt_itself_with_reward_one():
    task = TASK.build()
    data = collected().build(task)
    known = {p.content: p for p in task.train}
    assert data
    for example in data:
        (response,), (reward,) = example.responses, example.rewards
        assert example.source is Source.DATASET
        assert reward.value == 1.0
        assert task.reward("", response, known[example.prompt.content].meta).value == 1.0


def test_the_rules_of_selection_decide_what_is_collected():
    """Without any, the first response to the first report of every prompt."""
    task = TASK.build()
    blind = collected(selection=Selection(report=False, correct=False, shortest=False)).build(task)
    assert len(blind) == 40
    correct = [task.reward("", e.responses[0], e.prompt.meta).value for e in blind]
    assert 0 < sum(correct) < 40
    many = collected(selection=Selection(report=False, keep=16)).build(task)
    assert max(len(e.responses) for e in many) > 4


def test_each_report_is_reasoned_from_as_often_as_asked():
    class Echo(scenes.Reasoner):
        def reason(self, prompt, report, rng):
            asked.append((prompt.uid, report))
            return super().reason(prompt, report, rng)

    asked = []
    task = TASK.build()
    collected(reasoner=Echo())._collected(task, task.train[:3])
    assert len(asked) == 3 * 4 * 4
    assert all(len({report for _, report in asked[i : i + 4]}) == 1 for i in range(0, len(asked), 4))


def test_a_selection_that_keeps_nothing_is_an_error():
    stubborn = scenes.Reasoner(slip=0.5)
    with pytest.raises(DataError, match="nothing that can be used"):
        collected(reasoner=stubborn, selection=Selection(alpha=0.99), reasonings=16, prompts=4).build(TASK.build())


def test_collecting_is_done_once_and_repeats():
    task, config = TASK.build(), collected()
    assert config._collected(task, task.train)[0].responses == config.build(task)[0].responses
    assert config.build(task) == config.build(task)
