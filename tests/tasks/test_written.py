"""Data sets written by a stated policy: the log-probs are that policy's, the file is made once, and a run can start from it."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from freerun.algorithms.language import pear, sft
from freerun.errors import CheckpointError, DataError
from freerun.models import tiny_lm
from freerun.recipes.base import WarmStartConfig
from freerun.tasks import addition, authors, examples, written
from freerun.tasks.base import Task
from freerun.trainer.config import TrainerConfig
from freerun.types import Prompt, RewardResult, Sampling, Source, Stop

MODEL = tiny_lm.Config(layers=1, width=16, heads=2, kv_heads=1, context=16, alphabet="0123456789+=")
TASK = addition.Config(digits=1, train=30, heldout=16)
AUTHOR = authors.Author(
    model=MODEL,
    warm_start=WarmStartConfig(algorithm=sft.Config(), steps=30, batch=16, lr=1e-2),
    sampling=Sampling(max_tokens=4, temperature=0.7),
    trainer=TrainerConfig(dtype="float32"),
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FREERUN_CACHE", str(tmp_path))
    return tmp_path / "examples"


def one_word(solution, num=400):
    """A task of which every solution is the same word."""
    return Task(
        name="word",
        train=tuple(Prompt(f"t{i}", f"{i}?") for i in range(num)),
        heldout=(Prompt("h", "?"),),
        reward=lambda prompt, completion, meta: float(completion == solution),
        solution=lambda prompt: solution,
    )


# A noisy author


def test_a_slip_draws_any_character_so_the_right_one_has_the_rest_of_the_probability_and_its_share_of_the_slips():
    for example in written.Noisy(alphabet="ab", noise=0.5, samples=2).build(one_word("ab", 8)):
        for text, logps in zip(example.responses, example.logps, strict=True):
            expected = [0.75 if a == b else 0.25 for a, b in zip(text, "ab", strict=True)]
            assert logps == pytest.approx([*map(math.log, expected), 0.0])


def test_the_log_probs_of_a_noisy_author_are_a_distribution_and_how_often_it_is_right_follows_from_them():
    right, wrong = math.log(0.75), math.log(0.25)
    total = sum(math.exp(sum(pair)) for pair in itertools.product((right, wrong), repeat=2))
    assert total == pytest.approx(1.0)
    data = written.Noisy(alphabet="ab", noise=0.5, samples=4).build(one_word("ab"))
    solved = [reward.value for example in data for reward in example.rewards]
    assert sum(solved) / len(solved) == pytest.approx(0.75**2, abs=0.04)


def test_a_noisy_author_that_cannot_write_a_solution_says_so():
    with pytest.raises(DataError, match="characters that its author cannot write"):
        written.Noisy(alphabet="ab").build(one_word("abc"))


# A language model


def test_log_probs_of_a_sampled_response_are_those_of_the_model_that_wrote_it_at_its_temperature():
    task = TASK.build()
    data = written.Sampled(author=AUTHOR, prompts=6, samples=3).build(task)
    taught = AUTHOR.taught(task)
    with torch.no_grad():
        for example in data:
            assert len(example.responses) == len(example.rewards) == len(example.logps)
            prompt = taught.model.encode(example.prompt)
            for text, logps in zip(example.responses, example.logps, strict=True):
                response = [*taught.model.tokenizer.encode(text), tiny_lm.EOS]
                logits_TV = taught.model.model(input_ids=torch.tensor([prompt + response])).logits[0].float() / 0.7
                logp_T = logits_TV.log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, torch.tensor(response)[:, None])[:, 0]
                assert logps == pytest.approx(logp_T.tolist(), abs=0.05)


def test_rewards_are_the_tasks_own():
    task = TASK.build()
    for example in written.Sampled(author=AUTHOR, prompts=6, samples=3).build(task):
        for text, reward in zip(example.responses, example.rewards, strict=True):
            assert reward.value == float(text == task.solution(example.prompt))


def test_only_what_ended_by_itself_is_kept_and_what_was_left_out_is_counted():
    short = replace(AUTHOR, sampling=Sampling(max_tokens=2))
    task = TASK.build()
    data = written.Sampled(author=short, prompts=10, samples=4).build(task)
    answers, _ = short.answers(task, task.train[:10], 4)
    ended = {p.content: sum(t.stop is Stop.EOS for t in ts) for p, ts in zip(task.train[:10], answers, strict=True)}
    assert {e.prompt.content: len(e.responses) for e in data} == {content: n for content, n in ended.items() if n}
    assert all(e.prompt.meta["left_out"] == 4 - len(e.responses) for e in data)
    assert any(e.prompt.meta["left_out"] for e in data)


def test_an_expert_may_keep_only_what_is_solved():
    data = written.Sampled(author=AUTHOR, prompts=30, samples=8, solved=True, expert=True).build(TASK.build())
    assert {reward.value for example in data for reward in example.rewards} == {1.0}
    assert {example.source for example in data} == {Source.EXPERT}


def test_an_author_who_writes_nothing_usable_is_an_error():
    untaught = replace(AUTHOR, warm_start=None, sampling=Sampling(max_tokens=1))
    with pytest.raises(DataError, match="nothing that can be used"):
        written.Sampled(author=untaught, prompts=1, samples=1, solved=True).build(TASK.build())


def test_an_earlier_checkpoint_can_be_the_author(tmp_path):
    task = TASK.build()
    taught = AUTHOR.taught(task)
    taught.save(tmp_path / "trainer")
    from_file = replace(AUTHOR, warm_start=None, checkpoint=str(tmp_path))
    left, right = (a.answers(task, task.train[:4], 2)[0] for a in (AUTHOR, from_file))
    assert [[t.text for t in ts] for ts in left] == [[t.text for t in ts] for ts in right]
    with pytest.raises(CheckpointError):
        replace(from_file, checkpoint=str(tmp_path / "nowhere")).answers(task, task.train[:1], 1)


def test_a_response_that_cannot_be_scored_is_an_error():
    def broken(prompt, completion, meta):
        raise ZeroDivisionError

    with pytest.raises(DataError, match="cannot be scored"):
        authors.scored(replace(one_word("a"), reward=broken), [Prompt("p", "?")], ["a"])


# The file


def test_a_data_set_is_written_once_and_its_file_says_the_same(cache):
    config, task = written.Noisy(alphabet="0123456789", samples=2, prompts=5), TASK.build()
    first = config.build(task)
    (path,) = cache.glob("*.jsonl")
    stamp = path.stat().st_mtime_ns
    assert config.build(task) == first
    assert path.stat().st_mtime_ns == stamp
    assert examples.File(path=str(path)).build(task) == first
    replace(config, seed=1).build(task)
    config.build(addition.Config(digits=1, train=30, heldout=16, seed=1).build())
    assert len(list(cache.glob("*.jsonl"))) == 3


def test_a_written_example_survives_its_file(tmp_path):
    task = TASK.build()
    examples_written = written.Noisy(alphabet="0123456789", samples=2, prompts=3)._written(task, task.train[:3])
    written.write(tmp_path / "x.jsonl", examples_written)
    again = examples.File(path=str(tmp_path / "x.jsonl")).build(task)
    for left, right in zip(examples_written, again, strict=True):
        assert (left.responses, left.logps) == (right.responses, right.logps)
        assert left.rewards == tuple(RewardResult(r.value) for r in right.rewards)
        assert (left.prompt.content, left.prompt.meta) == (right.prompt.content, right.prompt.meta)


def test_a_policy_taught_by_the_same_lessons_finds_its_own_responses_as_likely_as_the_author_did():
    """What PEAR assumes: its weights are then all 1."""
    task, author = TASK.build(), replace(AUTHOR, sampling=Sampling(max_tokens=4))
    data = written.Sampled(author=author, prompts=8, samples=2).build(task)
    student = author.taught(task)
    algorithm = pear.Config(gamma=1.0)
    weights = []

    class Watching:
        def build(self):
            built = algorithm.build()
            (term,) = built.terms

            def loss(outputs, batch, state):
                out = term.loss(outputs, batch, state)
                weights.append(out.metrics["weight"].value)
                return out

            return replace(built, terms=(replace(term, loss=loss),))

    student.warm_start(data, Watching(), 1e-3)
    assert weights == pytest.approx([1.0] * len(weights), abs=0.05)
