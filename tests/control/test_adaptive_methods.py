"""What is particular to methods with a second policy, or with several stages: losses by hand, identities with other methods.

Shapes: B rows, M critics, A action dimensions.
"""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from freerun.algorithms.control import bc, cql, famo2o_cql, famo2o_iql, iql, ppo, unio4
from freerun.algorithms.control_base import Ask, Review, Reviewed
from freerun.errors import ConfigError
from freerun.ops import balance
from freerun.ops.distributions import Gaussian
from freerun.ops.values import whitened
from freerun.store.phases import Phase, Plan
from freerun.tasks.point import PointData
from freerun.trainer.control import ControlTrainer
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig
from freerun.transitions import Spaces
from freerun.weights import inprocess
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


# Uni-O4


def gaussian(mean, std=1.0):
    return lambda obs: Gaussian(torch.full((len(obs), 1), mean), torch.full((len(obs), 1), math.log(std)))


def test_unio4_with_one_clone_is_behaviour_cloning(toys):
    left, right = toys(unio4.Config(members=1), CONTINUOUS), toys(bc.Config(hidden=(256, 256, 256)), CONTINUOUS)
    right.networks["actor"].load_state_dict(left.networks["member_0"].state_dict())
    assert torch.allclose(left.gradients(left.batch)["clone"], right.gradients(right.batch)["actor"], rtol=1e-4, atol=1e-6)


def test_unio4_clones_are_paid_for_what_none_of_the_others_would_do():
    """At the data's action 0.5 the log-densities of the two differ by (0.5 - 0)^2 / 2 - (0.5 - 1)^2 / 2 = 0, at 1 by -1/2."""
    networks = {"member_0": gaussian(0.0), "member_1": gaussian(1.0)}
    loss, watched = values_of(unio4, networks, batch(), term=2, members=2, diversity=0.5, diversity_at="data")
    likelihood = -0.125 - 0.5 * math.log(2 * math.pi)
    assert watched["divergence"] == pytest.approx(0.0, abs=1e-6)
    assert loss == pytest.approx([-2 * likelihood])
    rows = batch(obs=torch.zeros(20_000, 1), action=torch.full((20_000, 1), 0.5))
    _, sampled = values_of(unio4, networks, rows, term=2, members=2, diversity=0.5)
    assert sampled["divergence"] == pytest.approx(0.5, abs=0.03)


def test_unio4_at_the_data_measures_no_divergence_but_scales_the_likelihood(toys):
    """So the authors' code comes to no diversity: each clone's gradient is that of its likelihood, times 1 + diversity."""
    left = toys(unio4.Config(diversity=0.25, diversity_at="data"), CONTINUOUS)
    right = toys(unio4.Config(diversity=0.0), CONTINUOUS)
    scaled = 1.25 * right.gradients(right.batch)["clone"]
    assert torch.allclose(left.gradients(left.batch)["clone"], scaled, rtol=1e-4, atol=1e-6)


def test_unio4_pushes_a_clone_away_without_pulling_the_others_along(toys):
    """What moves the second clone is its own divergence from the first, and not the first's from it."""
    toy = toys(unio4.Config(members=2, diversity=0.5), CONTINUOUS)
    second = list(toy.networks["member_1"].parameters())
    both = toy.losses(toy.batch)["clone"][1].watch["divergence"].mean() * 2
    make = torch.Generator().manual_seed(1)
    first_policy, policy = (toy.networks[name](toy.batch["obs"]) for name in ("member_0", "member_1"))
    first_policy.sample(make)
    action, _ = policy.sample(make)
    own = (policy.log_prob(action) - first_policy.log_prob(action)).mean()
    for found, expected in zip(torch.autograd.grad(both, second), torch.autograd.grad(own, second), strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_unio4_at_its_old_policies_has_the_gradient_of_reinforce(toys):
    toy = toys(unio4.Config(members=1), CONTINUOUS)
    toy.networks["old_0"].load_state_dict(toy.networks["member_0"].state_dict())
    obs = toy.batch["obs"]
    with torch.no_grad():
        action, _ = toy.networks["old_0"](obs).sample(torch.Generator().manual_seed(1))
        worth = toy.networks["critic"](obs, action.clamp(-1, 1)).amin(0) - toy.networks["value"](obs)[0]
    logp = toy.networks["member_0"](obs).log_prob(action)
    parameters = list(toy.networks["member_0"].parameters())
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(-(whitened(worth) * logp).mean(), parameters)])
    assert torch.allclose(toy.gradients(toy.batch)["improve"], expected, rtol=1e-4, atol=1e-6)


def test_unio4_learns_how_states_move_in_units_of_how_much_they_move():
    """Moves of 0.1 and 0.3 have the deviation 0.1; foretelling 0.2 is off by one unit, but for the last row, which has none."""
    rows = batch(
        obs=torch.zeros(3, 1),
        next_obs=torch.tensor([[0.1], [0.3], [99.0]]),
        action=torch.zeros(3, 1),
        discount=torch.tensor([0.5, 0.5, 0.0]),
    )
    networks = {"model": lambda obs, action: torch.full((1, 3, 1), 0.2)}
    loss, _ = values_of(unio4, networks, rows, term=1)
    unit = torch.tensor([0.1, 0.3, 0.0]).std(correction=0).item() + 1e-3
    assert loss == pytest.approx([(0.1 / unit) ** 2, (0.1 / unit) ** 2, 0.0])


def world(*actions):
    """Members that always take these actions, in a world where they move the state by that, and whose value is the state."""
    networks = {f"member_{i}": (lambda obs, a=a: gaussian(a)(obs)) for i, a in enumerate(actions)}
    networks["model"] = lambda obs, action: torch.stack([action, action])
    networks["critic"] = lambda obs, action: torch.stack([obs[:, 0] + 1.0, obs[:, 0]])
    return networks


def test_unio4_judges_a_policy_by_the_values_that_it_comes_by_in_the_model():
    """From 0 and 10, three steps of 2: 0, 2, 4 and 10, 10, 10, for the data has seen nothing beyond 10."""
    config = unio4.Config(members=1, horizon=3)
    assert unio4.worth(world(2.0), "member_0", torch.tensor([[0.0], [10.0]]), config) == pytest.approx((2.0 + 10.0) / 2)


def test_unio4_lets_old_policies_take_over_what_is_better_and_the_actor_the_best():
    config = unio4.Config(members=2, horizon=2)
    rows, make = batch(obs=torch.tensor([[0.0], [10.0]])), torch.Generator()
    first = unio4.review(world(1.0, 2.0), rows, {"scores": []}, make, config=config)
    assert first.takes == {"old_0": "member_0", "old_1": "member_1", "actor": "member_1"}
    second = unio4.review(world(1.5, 1.0), rows, first.state, make, config=config)
    assert second.takes == {"old_0": "member_0"}
    assert second.state["scores"] == [second.state["scores"][0], first.state["scores"][1]]
    third = unio4.review(world(9.0, 1.0), rows, second.state, make, config=config)
    assert third.takes == {"old_0": "member_0", "actor": "member_0"}
    assert unio4.review(world(1.0, 1.0), rows, third.state, make, config=config).takes == {}


def test_unio4_online_is_ppo(toys):
    left, right = toys(unio4.Config(clip=0.2, entropy=0.0), CONTINUOUS), toys(ppo.Config(), CONTINUOUS)
    rows = left.batch
    right.networks["actor"], right.networks["value"] = left.networks["actor"], left.networks["value"]
    for name in ("policy", "value"):
        (mean, _), (expected, _) = left.losses(rows)[name], right.losses(rows)[name]
        assert mean.item() == pytest.approx(expected.item(), rel=1e-5)


# Reviews


@dataclass(frozen=True, kw_only=True)
class Looked:
    """Behaviour cloning with a review that counts itself and hands the actor's weights to a copy."""

    def build(self):
        algorithm = bc.Config(hidden=(4,)).build()
        networks = {**algorithm.networks, "copy": algorithm.networks["actor"]}

        def look(networks, batch, state, generator):
            return Reviewed({"seen": state["seen"] + 1}, {"copy": "actor"})

        review = Review(name="look", look=look, every=10)
        return replace(algorithm, networks=networks, reviews=(review,), init=lambda: {"seen": 0})


def trained(*phases):
    data = DatasetConfig(data=PointData(episodes=5))
    config = ControlTrainerConfig(batch=8)
    trainer = ControlTrainer(
        Looked(), Spaces(obs=(2,), actions=2, discrete=False), config, phases, [data], inprocess.publisher()
    )
    trainer.start()
    for index, phase in enumerate(phases):
        for _ in range(phase.updates // 5):
            trainer.finish_step([], Plan(phase=index, updates=5))
    return trainer


def test_a_review_comes_before_the_first_update_of_a_phase_and_after_every_so_many():
    trainer = trained(Phase(name="a", updates=25), Phase(name="b", updates=20))
    assert trainer._state["seen"] == (1 + 2) + (1 + 2)


def test_a_review_may_be_left_out_of_a_phase():
    assert trained(Phase(updates=20, off=("look",)))._state["seen"] == 0


def test_a_network_takes_over_weights_when_a_review_says_so():
    trainer = trained(Phase(updates=20))
    networks = trainer._updater.networks
    assert torch.equal(networks["copy"].layers.linear[0].weight, networks["actor"].layers.linear[0].weight)
    later = trained(Phase(updates=25))._updater.networks
    assert not torch.equal(later["copy"].layers.linear[0].weight, later["actor"].layers.linear[0].weight)


# Configs


@pytest.mark.parametrize(
    "method, broken, rule",
    [
        (famo2o_iql, {"low": 6.0}, "0 <= low <= high"),
        (famo2o_iql, {"balance_every": 0}, "balance_every >= 1"),
        (famo2o_cql, {"low": -1.0}, "0 <= low <= high"),
        (unio4, {"diversity": 1.0}, "0 <= diversity < 1"),
        (unio4, {"members": 0}, "members, models, horizon, review_every >= 1"),
    ],
)
def test_a_broken_config_says_which_rule_it_breaks(method, broken, rule):
    with pytest.raises(ConfigError) as caught:
        method.Config(**broken)
    assert caught.value.expected == rule
