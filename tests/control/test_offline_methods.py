"""What is particular to the methods that learn from data sets: losses by hand, and identities with other methods.

Shapes: B rows, M critics, A action dimensions.
"""

import math

import pytest
import torch

from freerun.algorithms.control import awac, bc, cql, sac
from freerun.errors import ConfigError
from freerun.ops.distributions import SquashedGaussian
from freerun.transitions import Spaces
from tests.control.by_hand import Fixed, Number, batch, tensor, values_of

CONTINUOUS = Spaces(obs=(3,), actions=2, discrete=False)


# AWAC


def advantage_of_two(obs, action):
    """The data's action 0.5 is worth 3 and 4, the policy's 0.2 is worth 1 and 2."""
    return torch.where(action[:, 0] > 0.4, tensor([3.0], [4.0]), tensor([1.0], [2.0]))


def test_awac_imitates_in_proportion_to_the_advantage_over_its_own_action():
    networks = {"actor": Fixed(0.2, logp=-0.5), "critic": advantage_of_two}
    loss, watched = values_of(awac, networks, batch(), term=1, temperature=2.0)
    assert loss == pytest.approx([math.exp(2.0 / 2.0) * 0.5])
    assert watched["weight"] == pytest.approx(math.e)
    assert values_of(awac, networks, batch(), term=1, temperature=0.1, cap=5.0)[0] == pytest.approx([5.0 * 0.5])


def test_awac_with_softmax_weights_imitates_every_batch_as_much_on_average():
    networks = {"actor": Fixed(0.2), "critic": lambda obs, action: (action[:, 0] * obs[:, 0])[None]}
    rows = batch(obs=tensor([1.0], [2.0], [40.0]), action=tensor([0.1], [0.2], [0.3]))
    _, watched = values_of(awac, networks, rows, term=1, weights="softmax", temperature=1.0)
    assert watched["weight"] == pytest.approx(1.0)


def test_awac_critics_regress_on_the_value_of_a_clipped_action_of_the_policy():
    networks = {
        "actor": Fixed(3.0),
        "critic_target": lambda obs, action: torch.stack([action[:, 0], action[:, 0] + 1.0]),
        "critic": lambda obs, action: torch.stack([action[:, 0], 3 * action[:, 0]]),
    }
    loss, _ = values_of(awac, networks, batch())
    assert loss == pytest.approx([(0.5 - 1.5) ** 2 + (1.5 - 1.5) ** 2])


def test_awac_at_an_infinite_temperature_clones(toys):
    left, right = toys(awac.Config(temperature=1e12), CONTINUOUS), toys(bc.Config(hidden=(256, 256, 256)), CONTINUOUS)
    right.networks["actor"].load_state_dict(left.networks["actor"].state_dict())
    assert torch.allclose(left.gradients(left.batch)["actor"], right.gradients(right.batch)["actor"], rtol=1e-4, atol=1e-6)


# CQL


def test_cql_pushes_down_what_is_not_in_the_data():
    """All proposals are worth 2, the data's action 1: the gap is 2 + log 2, for the range of actions has length 2."""

    def critic(obs, action):
        return torch.where(action[..., 0] == 0.5, 1.0, 2.0)[None]

    networks = {
        "actor": lambda obs: SquashedGaussian(obs, obs),
        "critic_target": lambda obs, action: torch.full((2, 1), 4.0),
        "critic": critic,
        "temperature": Number(0.0),
    }
    loss, watched = values_of(cql, networks, batch(), weight=5.0, num_actions=4000)
    gap = 2.0 + math.log(2.0) - 1.0
    assert watched["gap"] == pytest.approx(gap, abs=0.05)
    assert loss == pytest.approx([(1.0 - 3.0) ** 2 + 5.0 * gap], abs=0.2)


def test_cql_learns_the_weight_of_a_gap_that_is_wanted(toys):
    toy = toys(cql.Config(wanted_gap=0.5), CONTINUOUS)
    gap = toy.losses(toy.batch)["critic"][1].watch["gap"]
    gradient = toy.gradients(toy.batch)["critic"][-1]
    weight = toy.networks["multiplier"]().exp()
    assert gradient.item() == pytest.approx(-10.0 * weight.item() * (gap - 0.5).sum(0).mean().item(), rel=1e-4)


def test_cql_with_no_weight_is_sac_without_entropy_in_its_targets(toys):
    left = toys(cql.Config(weight=0.0, hidden=(32,)), CONTINUOUS)
    right = toys(sac.Config(alpha=0.0, hidden=(32,)), CONTINUOUS)
    assert torch.allclose(left.gradients(left.batch)["critic"], right.gradients(right.batch)["critic"], rtol=1e-4, atol=1e-5)


def test_cql_pays_for_entropy_in_the_target_where_it_is_told_to():
    networks = {
        "actor": Fixed(0.2, logp=-3.0),
        "critic_target": lambda obs, action: torch.full((2, 1), 4.0),
        "temperature": Number(math.log(0.5)),
    }
    config = cql.Config(entropy_target=True)
    value = cql.next_value(networks, batch(), torch.Generator(), config)
    assert value.tolist() == pytest.approx([4.0 + 0.5 * 3.0])


def test_cql_may_value_the_next_state_by_the_best_of_several_actions():
    networks = {
        "actor": lambda obs: SquashedGaussian(obs - 1.0, obs - 1.0),
        "critic_target": lambda obs, action: torch.stack([action[..., 0], action[..., 0] + 1.0]),
        "temperature": Number(0.0),
    }
    best = cql.next_value(networks, batch(), torch.Generator().manual_seed(0), cql.Config(max_target=True, num_actions=200))
    assert best.item() > 0.95


# Configs


@pytest.mark.parametrize(
    "method, broken, rule",
    [
        (awac, {"temperature": 0.0}, "temperature, cap > 0"),
        (cql, {"num_actions": 0}, "num_actions >= 1"),
        (cql, {"weight": -1.0}, "weight >= 0"),
    ],
)
def test_a_broken_config_says_which_rule_it_breaks(method, broken, rule):
    with pytest.raises(ConfigError) as caught:
        method.Config(**broken)
    assert caught.value.expected == rule
