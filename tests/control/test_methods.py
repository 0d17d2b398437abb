"""What is particular to each control method: losses by hand, and identities with other methods.

Shapes: B rows, M critics, A action dimensions.
"""

import math
from dataclasses import replace

import pytest
import torch

from freerun.algorithms.control import bc, dqn, iql, ppo, sac, td3, td3_bc
from freerun.algorithms.control_base import Ask
from freerun.errors import ConfigError
from freerun.ops.distributions import Categorical, Gaussian
from freerun.transitions import Spaces, transitions

CONTINUOUS, DISCRETE = Spaces(obs=(1,), actions=1, discrete=False), Spaces(obs=(1,), actions=2, discrete=True)


def tensor(*numbers):
    return torch.tensor(numbers)


def batch(**columns):
    defaults = {"obs": tensor(0.0)[:, None], "next_obs": tensor(1.0)[:, None], "action": tensor(0.5)[:, None]}
    return transitions({**defaults, "reward": tensor(1.0), "discount": tensor(0.5), **columns})


class Fixed:
    """A policy that always does the same, so that expectations are values."""

    def __init__(self, action, logp=-1.0):
        self.action, self.logp = action, logp

    def __call__(self, obs):
        return self

    def sample(self, generator=None):
        return torch.full((1, 1), self.action, requires_grad=True), torch.full((1,), self.logp)


def values_of(method, networks, rows, index=0, **changes):
    """Loss and watched means of a term."""
    algorithm = method.Config(**changes).build()
    out = algorithm.terms[index].loss(networks, rows, algorithm.init(), torch.Generator().manual_seed(0))
    return out.loss.tolist(), {name: value.float().mean().item() for name, value in out.watch.items()}


# SAC, TD3, TD3+BC


def test_sac_critics_regress_on_the_smaller_target_plus_entropy():
    networks = {
        "actor": Fixed(0.2, logp=-3.0),
        "critic_target": lambda obs, action: torch.stack([obs[:, 0] + 4.0, obs[:, 0] + 9.0]),
        "critic": lambda obs, action: torch.stack([action[:, 0], 2 * action[:, 0]]),
    }
    loss, _ = values_of(sac, networks, batch(), alpha=0.1)
    target = 1.0 + 0.5 * (5.0 + 0.1 * 3.0)
    assert loss == pytest.approx([(0.5 - target) ** 2 + (1.0 - target) ** 2])


def test_sac_actor_weighs_entropy_against_the_smaller_critic_and_learns_the_weight():
    class LogAlpha:
        def __call__(self):
            return torch.tensor(math.log(0.5), requires_grad=True)

    networks = {
        "actor": Fixed(0.2, logp=-3.0),
        "critic": lambda obs, action: torch.stack([5 * action[:, 0], 10 * action[:, 0]]),
        "temperature": LogAlpha(),
    }
    loss, watched = values_of(sac, networks, batch(), index=1)
    assert loss == pytest.approx([0.5 * -3.0 - 1.0 - math.log(0.5) * (-3.0 - 1.0)])
    assert watched == pytest.approx({"entropy": 3.0, "alpha": 0.5})


def test_a_fixed_temperature_is_no_network():
    assert set(sac.Config(alpha=0.2).build().networks) == {"actor", "critic"}
    assert "temperature" in sac.Config().build().networks


def test_td3_takes_the_smaller_target_critic_at_a_smoothed_action():
    networks = {
        "actor_target": lambda obs: torch.full((1, 1), 0.5),
        "critic_target": lambda obs, action: torch.stack([action[:, 0], action[:, 0] + 1.0]),
        "critic": lambda obs, action: torch.zeros(2, 1),
    }
    loss, _ = values_of(td3, networks, batch(), noise=0.0)
    assert loss == pytest.approx([2 * 1.25**2])
    far, _ = values_of(td3, networks, batch(), noise=1e6, bound=0.25)
    assert far[0] in (pytest.approx(2 * 1.375**2), pytest.approx(2 * 1.125**2))


def test_td3_trains_its_actor_and_targets_every_second_update():
    algorithm = td3.Config().build()
    assert [term.every for term in algorithm.terms] == [1, 2]
    assert {t.target: t.every for t in algorithm.targets} == {"actor_target": 2, "critic_target": 2}


def test_td3_bc_scales_the_critic_to_its_own_size():
    networks = {"actor": lambda obs: torch.full((2, 1), 0.1), "critic": lambda obs, action: tensor([-4.0, 2.0], [0.0, 0.0])}
    rows = transitions({"obs": torch.zeros(2, 1), "action": torch.full((2, 1), 0.4)})
    loss, _ = values_of(td3_bc, networks, rows, index=1, alpha=6.0)
    assert loss == pytest.approx([0.09 + 2.0 * 4.0, 0.09 - 2.0 * 2.0])


def test_td3_bc_without_the_critic_clones_the_mean_action(toys):
    toy = toys(td3_bc.Config(alpha=0.0), Spaces(obs=(3,), actions=2, discrete=False))
    error = (toy.networks["actor"](toy.batch["obs"]) - toy.batch["action"]).square().mean()
    parameters = list(toy.networks["actor"].parameters())
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(error, parameters)])
    assert torch.allclose(toy.gradients(toy.batch)["actor"], expected, rtol=1e-5)


def test_td3_and_td3_bc_have_the_same_critic(toys):
    spaces = Spaces(obs=(3,), actions=2, discrete=False)
    left, right = (toys(method.Config(), spaces) for method in (td3, td3_bc))
    assert torch.equal(left.gradients(left.batch)["critic"], right.gradients(right.batch)["critic"])


# BC and IQL


def test_bc_is_the_negative_log_likelihood_of_the_data():
    networks = {"actor": lambda obs: Gaussian(torch.zeros(1, 1), torch.zeros(1, 1))}
    loss, _ = values_of(bc, networks, batch(action=tensor(2.0)[:, None]))
    assert loss == pytest.approx([0.5 * 4.0 + 0.5 * math.log(2 * math.pi)])


def test_iql_by_hand():
    networks = {
        "value": lambda obs: (obs[:, 0] + 1.0)[None],
        "critic_target": lambda obs, action: tensor([3.0], [5.0]),
        "critic": lambda obs, action: tensor([0.0], [1.0]),
        "actor": lambda obs: Gaussian(torch.zeros(1, 1), torch.zeros(1, 1)),
    }
    loss, watched = values_of(iql, networks, batch(action=tensor(1.0)[:, None]), inverse_temperature=0.5, cap=2.0)
    # u = min(3, 5) - 1 = 2; weight = min(exp(0.5 * 2), 2) = 2; y = 1 + 0.5 * 2 = 2.
    likelihood = 0.5 + 0.5 * math.log(2 * math.pi)
    assert loss == pytest.approx([0.7 * 4.0 + 2.0 * likelihood + (4.0 + 1.0)])
    assert watched["weight"] == 2.0


def test_iql_with_no_temperature_clones(toys):
    spaces = Spaces(obs=(3,), actions=2, discrete=False)
    left, right = toys(iql.Config(inverse_temperature=0.0), spaces), toys(bc.Config(), spaces)
    right.networks["actor"].load_state_dict(left.networks["actor"].state_dict())
    parameters = list(left.networks["actor"].parameters())
    loss = left.losses(left.batch)["iql"][0]
    found = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    assert torch.allclose(found, right.gradients(right.batch)["actor"], rtol=1e-4, atol=1e-6)


# DQN


def test_dqn_takes_the_largest_target_value_and_double_dqn_that_of_its_own_choice():
    networks = {
        "critic_target": lambda obs: tensor(2.0, 8.0)[None, None],
        "critic": lambda obs: tensor(6.0, 5.0)[None, None],
    }
    rows = batch(action=torch.tensor([1]))
    assert values_of(dqn, networks, rows)[0] == pytest.approx([(5.0 - (1.0 + 0.5 * 8.0)) ** 2])
    assert values_of(dqn, networks, rows, double=True)[0] == pytest.approx([(5.0 - (1.0 + 0.5 * 2.0)) ** 2])
    far = batch(action=torch.tensor([0]), reward=tensor(100.0))
    assert values_of(dqn, networks, far, huber=True)[0] == pytest.approx([2 * (98.0 - 0.5)])


def test_dqn_explores_less_with_time():
    algorithm = dqn.Config(epsilon=1.0, last_epsilon=0.0, explore_steps=100).build()
    networks = {"critic": lambda obs: tensor(0.0, 1.0).expand(1, len(obs), 2)}
    shares = []
    for taken in (0, 50, 100, 1000):
        ask = Ask("explore", taken, DISCRETE)
        acted = algorithm.act(networks, torch.zeros(4000, 1), ask, torch.Generator().manual_seed(0))
        shares.append((acted["action"] == 0).float().mean().item())
    assert shares == pytest.approx([0.5, 0.25, 0.0, 0.0], abs=0.03)


# PPO


def ppo_rows(**columns):
    rows = {"obs": torch.zeros(2, 1), "action": torch.tensor([0, 1]), "log_prob": tensor(0.5, 0.5).log()}
    return transitions({**rows, "advantage": tensor(1.0, -1.0), "returns": tensor(3.0, 1.0), **columns})


def test_ppo_stops_where_the_ratio_has_moved_past_the_clip():
    networks = {"actor": lambda obs: Categorical(tensor([0.7, 0.3], [0.55, 0.45]).log())}
    loss, watched = values_of(ppo, networks, ppo_rows(), whiten=False)
    assert loss == pytest.approx([-1.2, 0.9])
    assert watched["ratio/clipped"] == 0.5


def test_ppo_values_regress_on_returns_and_may_be_kept_near_their_old_ones():
    networks = {"value": lambda obs: tensor([2.0, 2.0])}
    assert values_of(ppo, networks, ppo_rows(), index=1)[0] == pytest.approx([1.0, 1.0])
    rows = ppo_rows(values=tensor(1.0, 2.0))
    assert values_of(ppo, networks, rows, index=1, clip_value=True)[0] == pytest.approx([1.8**2, 1.0])


def test_ppo_at_equal_policies_has_the_gradient_of_reinforce(toys):
    toy = toys(ppo.Config(whiten=False), Spaces(obs=(3,), actions=4, discrete=True))
    logp = toy.networks["actor"](toy.batch["obs"]).log_prob(toy.batch["action"])
    rows = toy.batch.with_columns(log_prob=logp.detach())
    parameters = list(toy.networks["actor"].parameters())
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(-(rows["advantage"] * logp).mean(), parameters)])
    assert torch.allclose(toy.gradients(rows)["policy"], expected, rtol=1e-4, atol=1e-6)


def test_ppo_credits_by_gae_and_bootstraps_what_was_cut(toys):
    toy = toys(ppo.Config(gamma=0.9, decay=1.0), Spaces(obs=(3,), actions=4, discrete=True))
    made = toy.prepared(toy.chunk)
    with torch.no_grad():
        beyond = toy.networks["value"](toy.chunk["next_obs"])[0]
    assert made["returns"][4, 3].item() == pytest.approx((toy.chunk["reward"][4, 3] + 0.9 * beyond[4, 3]).item(), rel=1e-5)
    assert made["returns"][2, 1].item() == pytest.approx(toy.chunk["reward"][2, 1].item(), rel=1e-5)


# Configs


@pytest.mark.parametrize(
    "method, broken, rule",
    [
        (sac, {"gamma": 1.5}, "0 <= gamma <= 1"),
        (sac, {"alpha": -1.0}, "alpha >= 0"),
        (td3, {"rate": 0.0}, "0 < rate <= 1"),
        (td3_bc, {"actor_every": 0}, "actor_every >= 1"),
        (iql, {"expectile": 1.0}, "0 < expectile < 1"),
        (dqn, {"last_epsilon": 0.5, "epsilon": 0.1}, "0 <= last_epsilon <= epsilon <= 1"),
        (ppo, {"clip": 0.0}, "clip > 0"),
        (bc, {"lr": 0.0}, "lr > 0"),
    ],
)
def test_a_broken_config_says_which_rule_it_breaks(method, broken, rule):
    with pytest.raises(ConfigError) as caught:
        method.Config(**broken)
    assert caught.value.expected == rule


def test_a_method_for_other_actions_is_refused():
    with pytest.raises(ConfigError, match="not for discrete actions"):
        sac.Config().build().check(DISCRETE)
    with pytest.raises(ConfigError, match="not for continuous actions"):
        dqn.Config().build().check(CONTINUOUS)


def test_a_record_that_names_a_network_wrongly_is_refused():
    algorithm = sac.Config().build()
    broken = replace(algorithm, acts_with=("acter",))
    with pytest.raises(ConfigError, match="acter"):
        broken.check(CONTINUOUS)
