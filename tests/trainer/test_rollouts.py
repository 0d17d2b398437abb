"""What a step on rollouts reads: chunks joined in time, steps that are recalled; and the stages in which it is read."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from freerun.algorithms.control import ppo
from freerun.algorithms.control_base import ControlAlgorithm, Loss, Stage, Term
from freerun.networks import Scalar
from freerun.store.phases import Phase
from freerun.trainer.control import ControlTrainer
from freerun.trainer.control_config import ControlTrainerConfig
from freerun.trainer.rollouts import Rollouts, streams
from freerun.transitions import Chunk, Spaces
from freerun.weights import inprocess
from tests.control.rows import chunk, column

SPACES = Spaces(obs=(1,), actions=1, discrete=False)


def made(item, rewards, *, actor=0, episode=0, first=0, version=0):
    """A chunk of one environment in one episode."""
    num = len(rewards)
    columns = chunk(column(*rewards), episodes=[[episode]] * num, steps=[[first + i] for i in range(num)])
    columns["version"] += version
    return Chunk(item=item, actor=actor, columns=columns, oldest_version=version)


# --- joining -----------------------------------------------------------------------------------------------------------------


def test_chunks_of_one_actor_follow_one_another_and_actors_stand_side_by_side():
    parts = [made(0, [1.0, 2.0]), made(1, [5.0, 6.0], actor=1), made(2, [3.0, 4.0], first=2), made(3, [7.0, 8.0], actor=1)]
    (whole,) = streams(parts)
    assert whole["reward"].T.tolist() == [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]
    assert not whole["truncated"].any()


def test_actors_that_have_given_more_or_less_are_kept_apart():
    parts = streams([made(0, [1.0]), made(1, [2.0], actor=1), made(2, [3.0], first=1)])
    assert [part["reward"].flatten().tolist() for part in parts] == [[1.0, 3.0], [2.0]]


def test_where_a_successor_began_anew_the_episode_before_counts_as_cut():
    (whole,) = streams([made(0, [1.0, 2.0]), made(1, [3.0], episode=9)])
    assert whole["truncated"][:, 0].tolist() == [False, True, False]


def test_an_episode_that_ended_at_the_end_of_a_chunk_is_not_cut_as_well():
    ended = made(0, [1.0, 2.0])
    ended.columns["terminated"] = torch.tensor([[False], [True]])
    (whole,) = streams([ended, made(1, [3.0], episode=1)])
    assert not whole["truncated"].any()


def test_credit_runs_on_from_chunk_to_chunk():
    """Returns with a value of 0 everywhere: 1 + g (2 + g (3 + g 4)), whether in one chunk or in two."""
    algorithm = ppo.Config(gamma=0.5, decay=1.0).build()
    networks = {"value": lambda obs: torch.zeros(1, *obs.shape[:-1])}
    found = []
    for parts in ([made(0, [1.0, 2.0, 3.0, 4.0])], [made(0, [1.0, 2.0]), made(1, [3.0, 4.0], first=2)]):
        kept = Rollouts(replace(algorithm, needs=frozenset({"returns"})), torch.device("cpu"))
        for part in parts:
            part.columns["log_prob"] = torch.zeros_like(part.columns["reward"])
            kept.add(part)
        found.append(kept.rows(networks, {}, 0)["returns"].tolist())
    assert found[0] == pytest.approx([3.25, 4.5, 5.0, 4.0])
    assert found[1] == pytest.approx(found[0])


def test_as_many_steps_are_recalled_as_the_algorithm_says():
    algorithm = ControlAlgorithm(
        name="none", networks={}, terms=(), act=lambda *a: {}, acts_with=(), needs=frozenset({"reward"}), recall=3
    )
    kept, seen = Rollouts(algorithm, torch.device("cpu")), []
    for step in range(5):
        kept.add(made(step, [float(step)], first=step, version=step))
        rows = kept.rows({}, {}, step)
        seen.append((rows["reward"].tolist(), rows["lag"].tolist()))
        kept.end_step()
        assert len(kept) == 0
    assert seen[0] == ([0.0], [0])
    assert seen[4] == ([2.0, 3.0, 4.0], [2, 1, 0])
    again = Rollouts(algorithm, torch.device("cpu"))
    again.load(kept.state())
    again.add(made(5, [5.0], first=5, version=5))
    assert again.rows({}, {}, 5)["reward"].tolist() == [3.0, 4.0, 5.0]


# --- stages ------------------------------------------------------------------------------------------------------------------


def pull(networks, batch, state, generator, *, name, wanted=1.0):
    error = (networks[name]() - wanted).square() + 0.0 * batch["reward"]
    return Loss(error, {"far": error})


def method(*stages, until=None, recall=1):
    terms = tuple(Term(name=name, loss=partial(pull, name=name), trains=(name,), lr=0.1, until=until) for name in ("a", "b"))
    return ControlAlgorithm(
        name="pull",
        networks={"a": Scalar(value=0.0), "b": Scalar(value=5.0)},
        terms=terms,
        act=lambda *a: {},
        acts_with=("a",),
        needs=frozenset({"reward"}),
        consumes="rollout",
        stages=stages,
        recall=recall,
    )


class Config:
    def __init__(self, algorithm):
        self.algorithm = algorithm

    def build(self):
        return self.algorithm


def trained(algorithm, steps, **config):
    """Updates of each step, and the numbers after each, of chunks of four rows."""
    settings = ControlTrainerConfig(**{"epochs": 2, "minibatches": 2, **config})
    trainer = ControlTrainer(Config(algorithm), SPACES, settings, [Phase(env_steps=100)], [], inprocess.publisher())
    trainer.start()
    seen = []
    for step in range(steps):
        trainer.accumulate([made(step, [1.0, 2.0, 3.0, 4.0], first=4 * step, version=step)])
        report = trainer.finish_step()
        weights = trainer.weights()
        seen.append((report.metrics["updates"].value, weights["a.value"].item(), weights["b.value"].item()))
    trainer.close()
    return seen


def test_without_stages_a_step_is_as_many_epochs_and_minibatches_as_the_trainer_is_told():
    assert [updates for updates, _, _ in trained(method(), 2)] == [4, 4]


def test_stages_name_their_terms_their_passes_and_their_cadence():
    seen = trained(method(Stage(terms=("a",), epochs=1, minibatches=1), Stage(terms=("b",), every=2, epochs=3)), 4)
    assert [updates for updates, _, _ in seen] == [1, 1 + 6, 1, 1 + 6]
    assert seen[0][2] == 5.0 and seen[1][2] < 5.0 and seen[2][2] == seen[1][2]
    assert [a for _, a, _ in seen] == sorted(a for _, a, _ in seen)


def test_before_a_stage_networks_become_copies_with_an_optimiser_that_has_no_history():
    """Adam's first step is of the length of its rate, whatever the gradient: from 5 to 4.9, in each step anew."""
    seen = trained(method(Stage(terms=("a",), epochs=1, minibatches=1, copies={"a": "b"})), 3)
    assert [a for _, a, _ in seen] == pytest.approx([4.9] * 3)


def test_a_term_that_has_had_enough_ends_its_stage():
    """`b` is 16 away and never below the bound: every stage ends with its first update."""
    assert [updates for updates, _, _ in trained(method(until=("far", 0.5)), 2)] == [1, 1]
    assert [updates for updates, _, _ in trained(method(until=("far", 100.0)), 2)] == [4, 4]


def test_a_checkpoint_keeps_what_is_recalled(tmp_path):
    config = Config(method(Stage(terms=("a",)), recall=3))
    make = partial(ControlTrainer, config, SPACES, ControlTrainerConfig(epochs=1), [Phase(env_steps=100)], [])
    first, again = make(inprocess.publisher()), make(inprocess.publisher())
    first.start()
    for step in range(2):
        first.accumulate([made(step, [float(step)], first=step, version=step)])
        first.finish_step()
    first.save(tmp_path)
    assert again.load(tmp_path) == 2
    rows = [one._rollouts.rows({}, {}, 2)["reward"].tolist() for one in (first, again)]
    assert rows == [[0.0, 1.0]] * 2
    first.close()
    again.close()
