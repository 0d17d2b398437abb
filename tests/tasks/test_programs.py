"""The task of small programs: problems of our own, judged by running the answers."""

import asyncio
import json
import pickle
from dataclasses import replace

import pytest

from freerun.config import dumps
from freerun.errors import ConfigError
from freerun.tasks import programs

CONFIG = programs.Config(train=48, heldout=16)


def test_it_is_the_same_in_every_process_and_changes_with_its_seed():
    once, again = CONFIG.build(), pickle.loads(pickle.dumps(CONFIG)).build()
    assert once.train == again.train and once.heldout == again.heldout and once.reward == again.reward
    assert replace(CONFIG, seed=1).build().heldout != once.heldout
    assert json.loads(dumps(CONFIG)) and all(json.loads(json.dumps(dict(p.meta))) == p.meta for p in once.train)


def test_no_function_is_both_trained_on_and_held_out():
    task = programs.Config().build()
    train, held = ({p.meta["answer"] for p in prompts} for prompts in (task.train, task.heldout))
    assert len(held) == 64 and len(train) > 100 and not train & held


def test_a_question_shows_one_example_and_the_answer_agrees_with_it_and_with_every_case():
    for prompt in programs.Config().build().heldout:
        names: dict = {}
        exec(prompt.meta["answer"], names)  # our own code, unlike what answers it
        for case in prompt.meta["cases"]:
            assert names["f"](*case["args"]) == case["expected"]
        shown, returned = prompt.content[-1].content.split("For example, ")[1].split(". Answer")[0].split(" returns ")
        assert repr(eval(shown, names)) == returned


@pytest.mark.dist
@pytest.mark.usefixtures("sandboxed")
def test_the_solution_earns_full_marks_and_nonsense_does_not():
    task = CONFIG.build()

    async def main():
        for prompt in task.heldout[:6]:
            right = await task.reward("", task.solution(prompt), prompt.meta)
            assert task.accuracy(right) == 1.0 and right.parts["passed"] == 1.0
            for nonsense in ("nonsense", "def f(x): return None", "```python\ndef g(x): return x\n```"):
                assert (await task.reward("", nonsense, prompt.meta)).value == 0.0

    asyncio.run(main())


def test_sizes_below_one_are_refused():
    with pytest.raises(ConfigError, match="sizes"):
        replace(CONFIG, cases=0).build()
