"""What is particular to methods with a second policy, or with several stages: losses by hand, identities with other methods.

Shapes: B rows, M critics, A action dimensions.
"""

import math

import pytest
import torch

from freerun.algorithms.control import cql, famo2o_cql, famo2o_iql, iql
from freerun.algorithms.control_base import Ask
from freerun.errors import ConfigError
from freerun.ops import balance
from freerun.transitions import Spaces
from tests.control.by_hand import Fixed, Number, batch, values_of

CONTINUOUS = Spaces(obs=(3,), actions=2, discrete=False)


class Reads:
    """A policy whose action is the balance that it is told, divided by ten."""

    def __call__(self, obs, code):
        self.balance = torch.atan2(code[:, :1], code[:, 3:4])
        return self

    def sample(self, generator=None):
        return self.balance / 10, torch.full((len(self.balance),), -2.0)

    def log_prob(self, action):
        return torch.full((len(action),), -0.5, requires_grad=True)

    @property
    def mode(self):
        return self.balance / 10


# FamO2O on IQL


def iql_networks(unit):
    return {
        "actor": Reads(),
        "balance": Fixed(unit, logp=-3.0),
        "value": lambda obs: (obs[:, 0] + 1.0)[None],
        "critic_target": lambda obs, action: torch.stack([4 * action[:, 0], 6 * action[:, 0]]),
        "temperature": Number(math.log(0.5)),
    }


def test_famo2o_weighs_an_action_by_its_own_balance():
    """Online the balance policy says 0, which is 1.5 between 1 and 2; u = 4 * 0.5 - 1."""
    loss, watched = values_of(famo2o_iql, iql_networks(0.0), batch(), term=1, state={"online": 1.0}, low=1.0, high=2.0)
    assert watched["weight"] == pytest.approx(math.exp(1.5))
    assert loss == pytest.approx([0.5 * math.exp(1.5)])


def test_famo2o_offline_draws_balances_from_all_of_the_range():
    rows = batch(obs=torch.zeros(4000, 1), action=torch.full((4000, 1), 0.5))
    networks = iql_networks(0.0)
    values_of(famo2o_iql, networks, rows, term=1, low=1.0, high=2.0)
    seen = networks["actor"].balance
    assert (float(seen.min()), float(seen.mean()), float(seen.max())) == pytest.approx((1.0, 1.5, 2.0), abs=0.02)


def test_famo2o_balance_climbs_the_critic_through_the_family_and_pays_for_entropy():
    """At -1 the balance is 1, the action 0.1, the least value 0.4."""
    loss, watched = values_of(famo2o_iql, iql_networks(-1.0), batch(), term=2, low=1.0, high=2.0)
    assert watched["balance"] == pytest.approx(1.0)
    assert loss == pytest.approx([0.5 * -3.0 - 0.4 - math.log(0.5) * (-3.0 - 0.5)])


def test_famo2o_acts_with_the_mode_of_its_balance():
    algorithm = famo2o_iql.Config(low=1.0, high=2.0).build()
    ask = Ask("greedy", 0, Spaces(obs=(1,), actions=1, discrete=False))
    acted = algorithm.act(iql_networks(1.0), torch.zeros(1, 1), ask, torch.Generator())
    assert acted["action"].item() == pytest.approx(0.2)


def test_famo2o_with_one_balance_has_the_losses_of_iql(toys):
    left = toys(famo2o_iql.Config(low=3.0, high=3.0), CONTINUOUS)
    right = toys(iql.Config(inverse_temperature=3.0), CONTINUOUS)
    code = balance.code(torch.full((24, 1), 3.0))
    found, expected = left.losses(left.batch), right.losses(right.batch)["iql"][1].watch
    assert torch.allclose(found["critic"][1].watch["q"], expected["q"])
    assert torch.allclose(found["actor"][1].watch["weight"], expected["weight"], rtol=1e-5)
    likelihood = left.networks["actor"](left.batch["obs"], code).log_prob(left.batch["action"])
    assert torch.allclose(found["actor"][1].loss, -expected["weight"] * likelihood, rtol=1e-5)


# FamO2O on CQL


def cql_networks(unit):
    return {
        "actor": Reads(),
        "balance": lambda obs: Unit(unit, obs),
        "critic": lambda obs, action: torch.stack([5 * action[..., 0], 10 * action[..., 0]]),
        "critic_target": lambda obs, action: torch.stack([4 * action[:, 0], 6 * action[:, 0]]),
        "temperature": Number(math.log(0.5)),
    }


class Unit:
    """A balance policy that says `unit` at observation 0, and one less for each 1 of it."""

    def __init__(self, unit, obs):
        self.value = (unit - obs).requires_grad_()

    def sample(self, generator=None):
        return self.value, torch.full((len(self.value),), -3.0)


def test_famo2o_on_cql_weighs_the_critic_by_the_balance():
    """Online at 0: b = 1.0, so the action is 0.1 and its least value 0.5."""
    loss, _ = values_of(famo2o_cql, cql_networks(0.0), batch(), term=1, state={"online": 1.0, "conservatism": 1.0})
    assert loss == pytest.approx([0.5 * -2.0 - 1.0 * 0.5 - math.log(0.5) * (-2.0 - 1.0)])
    low, _ = values_of(famo2o_cql, cql_networks(1.0), batch(), term=1, state={"online": 1.0, "conservatism": 1.0})
    assert low == pytest.approx([0.5 * -2.0 - 1.5 * 0.75 - math.log(0.5) * (-2.0 - 1.0)])


def test_famo2o_on_cql_values_the_next_action_at_its_own_balance_or_the_one_before():
    """Observations 0 and 1 have the balances 1.5 and 1.0, so the next action is 0.1 or 0.15."""
    calm = {"online": 1.0, "conservatism": 0.0}
    own, _ = values_of(famo2o_cql, cql_networks(1.0), batch(), state=calm)
    assert own == pytest.approx([sum((q - (1.0 + 0.5 * 0.4)) ** 2 for q in (2.5, 5.0))])
    previous, _ = values_of(famo2o_cql, cql_networks(1.0), batch(), state=calm, next_balance="previous")
    assert previous == pytest.approx([sum((q - (1.0 + 0.5 * 0.6)) ** 2 for q in (2.5, 5.0))])


def test_famo2o_on_cql_lets_the_balance_climb_the_critic_alone():
    loss, watched = values_of(famo2o_cql, cql_networks(-1.0), batch(), term=2)
    assert watched["balance"] == pytest.approx(0.5)
    assert loss == pytest.approx([-5 * 0.05])


def test_famo2o_on_cql_pushes_down_as_cql_does(toys):
    """With one balance for all, the family is a policy with a constant input, and the gap is that of cql, but for the noise."""
    left = toys(famo2o_cql.Config(low=1.0, high=1.0, hidden=(16, 16, 16)), CONTINUOUS)
    right = toys(cql.Config(weight=1.0), CONTINUOUS)
    rows = left.batch.rows(torch.zeros(2000, dtype=torch.int64))
    family, code = left.networks["actor"], balance.code(torch.ones(2000, 1))
    right.networks["actor"] = lambda obs: family(obs, code)
    right.networks["critic"] = left.networks["critic"]
    gaps = [toy.losses(rows)["critic"][1].watch["gap"].mean().item() for toy in (left, right)]
    assert gaps[0] == pytest.approx(gaps[1], abs=0.05)


@pytest.mark.parametrize(
    "method, broken, rule",
    [
        (famo2o_iql, {"low": 6.0}, "0 <= low <= high"),
        (famo2o_iql, {"balance_every": 0}, "balance_every >= 1"),
        (famo2o_cql, {"low": -1.0}, "0 <= low <= high"),
    ],
)
def test_a_broken_config_says_which_rule_it_breaks(method, broken, rule):
    with pytest.raises(ConfigError) as caught:
        method.Config(**broken)
    assert caught.value.expected == rule
