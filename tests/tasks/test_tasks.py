"""Tasks: the same problems from the same seed, a held-out set that training cannot see, and rewards that know the answer."""

import json
import pickle
from dataclasses import replace

import pytest

from freerun.config import dumps
from freerun.errors import ConfigError, DataError
from freerun.models import tiny_lm
from freerun.rewards.verifiers import ExactMatch, last_number
from freerun.tasks import addition, gym, reversal, scenes, sorting
from freerun.tasks.base import Problem, Task, conversation, solved, split
from freerun.types import Message, Prompt, RewardResult

SMALL_MIX = gym.Config(
    sources=(
        gym.Source(dataset="chain_sum", share=3, parameters={"max_terms": 2, "max_digits": 1}, extract=last_number),
        gym.Source(dataset="spell_backward", share=1, parameters={"max_word_len": 4}),
    ),
    train=48,
    heldout=16,
)
CONFIGS = [
    addition.Config(train=64, heldout=32),
    addition.Config(train=64, heldout=32, style="chat", subtraction=True, terms=3, examples=2),
    reversal.Config(train=64, heldout=32),
    sorting.Config(train=64, heldout=32),
    addition.Config(train=64, heldout=32, style="lines"),
    scenes.Config(train=64, heldout=32),
    SMALL_MIX,
    replace(gym.demo(), train=64, heldout=32),
]
each_task = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__module__.rpartition(".")[2])


def value(task, prompt, completion):
    text = prompt.content if isinstance(prompt.content, str) else prompt.content[-1].content
    returned = task.reward(text, completion, prompt.meta)
    return returned if isinstance(returned, RewardResult) else RewardResult(returned)


@each_task
def test_a_task_is_the_same_in_every_process_and_changes_with_its_seed(config):
    once, again = config.build(), pickle.loads(pickle.dumps(config)).build()
    assert once.train == again.train and once.heldout == again.heldout
    assert replace(config, seed=1).build().heldout != once.heldout


@each_task
def test_no_problem_is_both_trained_on_and_held_out(config):
    task = config.build()
    assert task.train and len(task.heldout) == config.heldout
    assert not {p.content for p in task.train} & {p.content for p in task.heldout}


@each_task
def test_the_solution_earns_full_marks_and_nonsense_does_not(config):
    task = config.build()
    for prompt in (*task.train[:16], *task.heldout[:16]):
        assert task.accuracy(value(task, prompt, task.solution(prompt))) == 1.0
        assert task.accuracy(value(task, prompt, "nonsense")) == 0.0


@each_task
def test_what_travels_to_the_rewarder_is_json(config):
    for prompt in config.build().train[:8]:
        assert json.loads(json.dumps(dict(prompt.meta))) == prompt.meta
    assert json.loads(dumps(config))


def test_sums_of_the_same_numbers_in_another_order_are_on_the_same_side():
    task = addition.Config(digits=1, heldout=20).build()
    held = {tuple(sorted(p.content.removesuffix("=").split("+"))) for p in task.heldout}
    assert len(held) == 20
    assert not any(tuple(sorted(p.content.removesuffix("=").split("+"))) in held for p in task.train)


def test_a_chat_sum_follows_its_worked_example_which_is_in_neither_set():
    task = addition.Config(style="chat", digits=1, heldout=20).build()
    roles = [turn.role for turn in task.train[0].content]
    assert roles == ["user", "assistant", "user"]
    example = task.train[0].content[0]
    assert all(p.content[0] == example and p.content[-1] != example for p in (*task.train, *task.heldout))


def test_lines_show_worked_sums_and_leave_the_space_before_the_answer_to_the_answer():
    task = addition.Config(style="lines", examples=2, subtraction=True).build()
    first, second, asked = task.train[0].content.split("\n")
    for line in (first, second):
        left, sign, right, equals, answer = line.split(" ")
        assert int(left) + int(sign + right) == int(answer) and equals == "="
    assert asked.endswith(" =") and task.sampling.stop == ("\n",)
    assert task.solution(task.train[0]) == f" {task.train[0].meta['answer']}\n"


def test_a_mix_in_text_style_writes_examples_like_the_question_and_drops_what_it_is_told_to():
    task = replace(gym.demo(), train=64, heldout=32).build()
    prompt = next(p for p in task.train if p.meta["source"] == "basic_arithmetic")
    example, asked = prompt.content.split("\n")
    left, right = example.split(" = ")[0].split(" + ")
    assert example == f"{left} + {right} = {int(left) + int(right)}" and asked.endswith(" =")
    assert task.solution(prompt) == f" {prompt.meta['answer']}\n" and task.sampling.stop == ("\n",)


def test_subtraction_gives_negative_answers_in_the_alphabet_of_the_tiny_model():
    task = addition.Config(subtraction=True).build()
    answers = [task.solution(p) for p in task.train]
    assert any(a.startswith("-") for a in answers)
    tokenizer = tiny_lm.CharTokenizer(tiny_lm.Config().alphabet)
    assert max(len(tokenizer.encode(a)) for a in answers) < task.sampling.max_tokens


@pytest.mark.parametrize("config", [addition.Config(), reversal.Config(), sorting.Config()])
def test_the_tiny_model_reads_and_writes_the_raw_tasks(config):
    tokenizer, task = tiny_lm.CharTokenizer(tiny_lm.Config().alphabet), config.build()
    for prompt in task.train[:64]:
        assert tokenizer.decode(tokenizer.encode(prompt.content)) == prompt.content
        assert len(tokenizer.encode(task.solution(prompt))) < task.sampling.max_tokens


def test_sorting_pays_for_digits_in_their_place_over_the_longer_of_the_two():
    assert sorting.share_in_place("", "1134", {"answer": "1134"}).value == 1.0
    assert sorting.share_in_place("", "1143", {"answer": "1134"}).value == 0.5
    assert sorting.share_in_place("", "11345678", {"answer": "1134"}).value == 0.5
    assert solved(sorting.share_in_place("", "11340", {"answer": "1134"})) == 0.0


def test_a_mix_has_its_shares_and_every_beginning_of_the_held_out_set_is_mixed():
    task = SMALL_MIX.build()
    assert [sum(p.meta["source"] == s for p in task.heldout) for s in ("chain_sum", "spell_backward")] == [12, 4]
    assert {p.meta["source"] for p in task.heldout[:8]} == {"chain_sum", "spell_backward"}


def test_questions_of_the_same_words_in_another_order_are_on_the_same_side_of_a_mix():
    task = replace(gym.demo(), train=2000, heldout=200).build()
    train, held = (
        {tuple(sorted(p.content.splitlines()[-1].split())) for p in prompts if p.meta["source"] == "basic_arithmetic"}
        for prompts in (task.train, task.heldout)
    )
    assert train and held and not train & held


def test_a_mix_reports_the_score_of_each_dataset_and_drops_partial_marks_unless_asked():
    source = gym.Source(dataset="spell_backward", parameters={"min_word_len": 6, "max_word_len": 6})
    for partial in (False, True):
        config = gym.Config(sources=(replace(source, partial=partial),), train=4, heldout=4)
        task = config.build()
        answer = task.heldout[0].meta["answer"]
        almost = value(task, task.heldout[0], answer[:-1] + "#")
        assert 0 < almost.parts["spell_backward"] < 1
        assert almost.value == (almost.parts["spell_backward"] if partial else 0.0)


def test_a_reward_for_another_problem_than_the_prompts_is_an_error():
    task = SMALL_MIX.build()
    with pytest.raises(DataError, match="same problem twice"):
        task.reward("another question", "1", {**task.train[0].meta, "answer": "another"})


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (gym.Config(sources=(gym.Source(dataset="chain_some"),)), "chain_sum"),
        (gym.Config(sources=(gym.Source(dataset="chain_sum", parameters={"terms": 2}),)), "ChainSumConfig"),
        (gym.Config(sources=(gym.Source(dataset="chain_sum", parameters={"min_terms": 0}),)), "ChainSumConfig"),
        (gym.Config(sources=(gym.Source(dataset="gcd", form="{question} {answer}"),)), "end of the line"),
        (gym.Config(sources=()), "at least one source"),
        (gym.Config(sources=(gym.Source(dataset="gcd"), gym.Source(dataset="gcd"))), "each dataset once"),
        (addition.Config(terms=0), "at least 1"),
        (reversal.Config(least=4, most=3), "least <= most"),
        (sorting.Config(train=0), "at least 1"),
    ],
)
def test_a_config_that_cannot_work_is_refused_and_says_what_would(config, named):
    with pytest.raises(ConfigError) as caught:
        config.build()
    assert named in caught.value.expected


def test_a_task_with_too_few_problems_says_so():
    with pytest.raises(DataError, match="too few different problems"):
        addition.Config(digits=1, terms=1, heldout=10).build()


def test_split_draws_a_bounded_number_of_problems():
    endless = iter(lambda: Problem("same", {}, "same"), None)
    with pytest.raises(DataError, match="too few"):
        split("t", endless, train=2, heldout=1)


def test_shown_problems_are_in_neither_set():
    problems = [Problem(str(i), {}, i) for i in range(6)]
    train, heldout = split("t", problems, train=9, heldout=2, shown=[0, 3])
    assert [p.content for p in heldout] == ["1", "2"] and [p.content for p in train] == ["4", "5"]


def test_an_empty_set_a_uid_twice_and_a_shared_problem_are_data_errors():
    def make(train, heldout):
        return Task(name="t", train=train, heldout=heldout, reward=ExactMatch(), solution=str)

    a, b = Prompt("a", "1"), Prompt("b", "2")
    assert make((a,), (b,)).accuracy(RewardResult(1.0)) == 1.0
    for train, heldout, match in (
        ((), (b,), "empty"),
        ((a,), (), "empty"),
        ((a,), (Prompt("a", "2"),), "uid"),
        ((a,), (Prompt("b", "1"),), "content"),
    ):
        with pytest.raises(DataError, match=match):
            make(train, heldout)


def test_prompts_that_share_examples_differ_only_in_the_last_turn():
    turns = conversation("Add.", [("1+1", "2")], "2+3")
    assert turns == (Message("system", "Add."), Message("user", "1+1"), Message("assistant", "2"), Message("user", "2+3"))
    assert conversation(None, [], "2+3") == (Message("user", "2+3"),)
    assert conversation("", [], "2+3")[0] == Message("system", "")
