"""Data sets of responses: what a task's own answers make, and what a file may hold."""

import json
from dataclasses import replace

import pytest

from freerun.errors import DataError
from freerun.tasks import addition, examples
from freerun.types import Prompt, Source

TASK = addition.Config(digits=1, train=20, heldout=8).build()


@pytest.fixture
def read(tmp_path):
    def read(*rows, **settings):
        path = tmp_path / "examples.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        return examples.File(path=str(path), **settings).build(TASK)

    return read


def test_solutions_are_the_right_answers_and_worth_imitating():
    found = examples.Solutions().build(TASK)
    assert [e.responses for e in found] == [(TASK.solution(p),) for p in TASK.train]
    assert {e.source for e in found} == {Source.EXPERT}
    assert len(examples.Solutions(limit=3).build(TASK)) == 3


def test_comparisons_are_the_right_answer_above_one_that_is_right_elsewhere():
    answers = {TASK.solution(p) for p in TASK.train}
    for example, prompt in zip(examples.Comparisons().build(TASK), TASK.train, strict=True):
        right, wrong = example.responses
        assert right == TASK.solution(prompt) != wrong
        assert wrong in answers
        assert [r.value for r in example.rewards] == [1.0, 0.0]
        assert example.source is Source.DATASET


def test_answers_that_are_all_the_same_cannot_be_compared():
    same = replace(TASK, train=(Prompt("a", "1+2=", {"answer": "3"}), Prompt("b", "2+1=", {"answer": "3"})))
    with pytest.raises(DataError, match="all '3'"):
        examples.Comparisons().build(same)


def test_a_line_may_hold_scored_responses_or_a_pair(read):
    scored, pair = read(
        {"prompt": "1+1=", "responses": ["2", "3", "4"], "rewards": [1, 0.5, 0]},
        {"prompt": "1+1=", "chosen": "2", "rejected": "3"},
    )
    assert [r.value for r in scored.rewards] == [1.0, 0.5, 0.0]
    assert pair.responses == ("2", "3")
    assert [r.value for r in pair.rewards] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "1+1=", "chosen": "2"}, "'chosen' and 'rejected', are not a list of texts"),
        ({"prompt": "1+1=", "chosen": "2", "rejected": "3", "rewards": [1, 0]}, "beside 'responses' or 'rewards'"),
        ({"prompt": "1+1=", "responses": "2"}, "not a list of texts"),
        ({"prompt": "", "chosen": "2", "rejected": "3"}, "neither text nor a list of turns"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_with_the_reason(read, row, said):
    with pytest.raises(DataError) as error:
        read({"prompt": "1+1=", "responses": ["2"]}, row)
    assert "line 2" in str(error.value)
    assert said in str(error.value)
