"""The user's own file of problems."""

import json

import pytest

from freerun.errors import ConfigError, DataError
from freerun.rewards.verifiers import NumericMatch
from freerun.tasks import jsonl
from freerun.types import Message


@pytest.fixture
def write(tmp_path):
    def write(*lines, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
        return str(path)

    return write


def rows(count):
    return [{"prompt": f"{i}+1?", "answer": i + 1, "level": "easy"} for i in range(count)]


def test_text_becomes_a_user_turn_and_the_other_fields_reach_the_reward(write):
    task = jsonl.Config(path=write(*rows(8)), heldout=2, reward=NumericMatch()).build()
    assert len(task.train) == 6 and len(task.heldout) == 2
    prompt = next(p for p in (*task.train, *task.heldout) if p.uid == "data.jsonl:3")
    assert prompt.content == (Message("user", "2+1?"),)
    assert prompt.meta == {"answer": 3, "level": "easy"}
    assert task.reward("2+1?", "It is 3.", prompt.meta) == 1.0
    assert task.solution(prompt) == "3"


def test_raw_text_and_chat_turns_are_taken_as_they_are(write):
    turns = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1"}]
    task = jsonl.Config(path=write({"q": "a"}, {"q": turns}), prompt_field="q", chat=False, heldout=1).build()
    contents = {p.content for p in (*task.train, *task.heldout)}
    assert contents == {"a", (Message("system", "Add."), Message("user", "1+1"))}


def test_the_held_out_set_depends_on_the_seed_alone(write):
    path = write(*rows(32))
    first, again, other = (jsonl.Config(path=path, heldout=8, seed=s).build() for s in (0, 0, 1))
    assert first.heldout == again.heldout != other.heldout


def test_a_second_file_holds_the_held_out_problems(write):
    train, heldout = write(*rows(4)), write({"prompt": "9+9?", "answer": 18}, name="test.jsonl")
    task = jsonl.Config(path=train, heldout_path=heldout).build()
    assert len(task.train) == 4 and [p.uid for p in task.heldout] == ["test.jsonl:1"]


def test_a_problem_in_both_files_is_refused(write):
    with pytest.raises(DataError, match="held-out prompt occurs twice"):
        jsonl.Config(path=write(*rows(4)), heldout_path=write(*rows(1), name="test.jsonl")).build()


def test_blank_lines_and_repeated_problems_do_not_count(write):
    task = jsonl.Config(path=write(*rows(3), "", *rows(3), "  "), heldout=1).build()
    assert len(task.train) == 2


def test_lines_that_cannot_be_used_are_named_by_number(write):
    path = write(
        {"prompt": "1"}, "{not json", [1], {"question": "1"}, {"prompt": 3}, {"prompt": [{"role": "user"}]}, {"prompt": " "}
    )
    with pytest.raises(DataError) as caught:
        jsonl.Config(path=path).build()
    assert caught.value.what.startswith("6 lines")
    for line in (2, 3, 4, 5, 6):
        assert f"line {line}:" in caught.value.given
    assert "'question'" in caught.value.given


def test_bytes_that_are_not_utf_8_are_named_by_line(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xe9"}\n')
    with pytest.raises(DataError) as caught:
        jsonl.Config(path=str(path)).build()
    assert "line 2:" in caught.value.given


def test_a_missing_or_empty_file_and_an_impossible_split_are_errors(write, tmp_path):
    with pytest.raises(DataError, match="not found"):
        jsonl.Config(path=str(tmp_path / "none.jsonl")).build()
    with pytest.raises(DataError, match="empty"):
        jsonl.Config(path=write(""), heldout_path=write(*rows(1), name="test.jsonl")).build()
    with pytest.raises(ConfigError, match="takes all"):
        jsonl.Config(path=write(*rows(4)), heldout=4).build()
    with pytest.raises(ConfigError, match="nothing"):
        jsonl.Config(path=write(*rows(4)), heldout=0).build()


def test_a_demonstration_needs_an_answer(write):
    task = jsonl.Config(path=write({"prompt": "a"}, {"prompt": "b"}), heldout=1).build()
    with pytest.raises(DataError, match="demonstration"):
        task.solution(task.train[0])
