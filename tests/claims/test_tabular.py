"""Tables: their gradients against sums over all responses, their data, and the reference numbers of an independent simulation.

Shapes: P prompts, T positions, S states, V symbols, B responses.
"""

import importlib
import itertools
import math
import pkgutil
from dataclasses import replace

import pytest
import torch

from freerun.algorithms import language
from freerun.algorithms.language import aipo, cispo, decoupled_ppo, grpo, gspo, icepop, minirl, rec, reinforce, remix, sft, tis
from freerun.claims import tabular
from freerun.claims.tabular import BANDIT, Data, Learner, Samples, Setting, bandit, chain
from freerun.errors import ConfigError

METHODS = {m.name: importlib.import_module(f"{language.__name__}.{m.name}") for m in pkgutil.iter_modules(language.__path__)}
IMPORTANCE = aipo.Config(rho=math.inf)
CLIP = grpo.Config(normalise="none", reduction="token_mean")
CORRECTED = [
    IMPORTANCE,
    cispo.Config(clip_high=1e6, normalise="none"),
    decoupled_ppo.Config(cap=math.inf, normalise="none"),
    icepop.Config(low=0.0, high=math.inf, normalise="none"),
    minirl.Config(cap=math.inf),
    rec.Config(clip="none", weight="importance"),
    remix.Config(clip=1e6, kl_coefficient=0.0, normalise="none"),
    tis.Config(cap=math.inf, normalise="none"),
]


def small_chain():
    """Two positions, three symbols, three targets: nine responses to each prompt. The policy is not uniform."""
    problem = chain(num_positions=2, num_symbols=3)
    return replace(problem, start_PTSV=torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(1)).double())


def every_response(problem, prompt, logits_PTSV):
    """All responses to `prompt` as samples, and the probability of each."""
    num_positions, num_symbols = problem.start_PTSV.shape[1], problem.start_PTSV.shape[3]
    logp_PTSV, found, probs = logits_PTSV.log_softmax(-1), [], []
    for symbols in itertools.product(range(num_symbols), repeat=num_positions):
        state, states, logps = 0, [], []
        for t, symbol in enumerate(symbols):
            states.append(state)
            logps.append(float(logp_PTSV[prompt, t, state, symbol]))
            state = int(problem.next_TSV[t, state, symbol])
        found.append((prompt, 0, states, symbols, logps, float(problem.reward_PS[prompt, state])))
        probs.append(math.exp(sum(logps)))
    return Samples(*map(torch.tensor, zip(*found, strict=True))), probs


def expected_gradient(config, problem, sampler_PTSV, group_size=2):
    """The gradient of a step on one group, over all groups that the sampler could draw, each with its probability."""
    setting = Setting(groups=1, group_size=group_size)
    total = torch.zeros_like(problem.start_PTSV)
    num_prompts = len(problem.start_PTSV)
    for prompt in range(num_prompts):
        responses, probs = every_response(problem, prompt, sampler_PTSV)
        for members in itertools.product(range(len(probs)), repeat=group_size):
            learner = Learner(config, problem, setting, torch.Generator())
            samples = responses.rows(torch.tensor(members))
            learner.gradient(samples, learner.batch_of(samples))
            if learner.logits_PTSV.grad is not None:
                total += learner.logits_PTSV.grad * math.prod(probs[i] for i in members) / num_prompts
    return total


def policy_gradient(problem):
    """The exact gradient of the expected reward, mean over prompts."""
    logits = problem.start_PTSV.clone().requires_grad_()
    problem.value(logits).mean().backward()
    return logits.grad


@pytest.mark.parametrize("problem", [bandit(), small_chain()], ids=["bandit", "sequences"])
def test_the_exact_value_is_the_sum_over_all_responses(problem):
    for prompt in range(len(problem.start_PTSV)):
        responses, probs = every_response(problem, prompt, problem.start_PTSV)
        assert sum(probs) == pytest.approx(1.0)
        expected = sum(p * float(r) for p, r in zip(probs, responses.reward_B, strict=True))
        assert float(problem.value(problem.start_PTSV)[prompt]) == pytest.approx(expected)


@pytest.mark.parametrize("problem", [bandit(), small_chain()], ids=["bandit", "sequences"])
@pytest.mark.parametrize(("baseline", "factor"), [("group_mean", 0.5), ("leave_one_out", 1.0), ("none", 1.0)])
def test_reinforce_on_fresh_data_is_the_exact_policy_gradient_on_average(problem, baseline, factor):
    """The group's own mean as the baseline costs the factor (K - 1) / K, here 1/2; a mean over T tokens costs 1 / T."""
    found = expected_gradient(reinforce.Config(baseline=baseline), problem, problem.start_PTSV)
    exact = -factor * policy_gradient(problem) / problem.start_PTSV.shape[1]
    assert torch.allclose(found, exact, atol=1e-7)


# Without what makes it another gradient: steps that are left out, and credit that fades towards the first token.
SWITCHED = {"dart": {"keep": 1.0}, "drgrpo": {"length": 2}, "ppo": {"decay": 1.0}}
GRADIENTS = {name: module.Config(**SWITCHED.get(name, {})) for name, module in METHODS.items()}
GRADIENTS = {name: config for name, config in GRADIENTS.items() if config.build().reinforce_on_policy}


@pytest.mark.parametrize("name", GRADIENTS)
def test_every_policy_gradient_points_where_the_exact_one_does_on_fresh_data(name):
    """On average over all groups of two responses to one prompt of the sequence task. Rewards are 1 and -1, so that a division
    by a std is one by a constant, and a method without a baseline knows good from bad."""
    problem = small_chain().scaled(-1.0, 1.0)
    problem = replace(problem, start_PTSV=problem.start_PTSV[:1], reward_PS=problem.reward_PS[:1])
    found, exact = expected_gradient(GRADIENTS[name], problem, problem.start_PTSV), -policy_gradient(problem)
    factor = float((found * exact).sum() / exact.square().sum())
    assert factor > 0.1
    assert torch.allclose(found, factor * exact, atol=1e-6)


@pytest.mark.parametrize("config", CORRECTED, ids=lambda c: c.build().name)
def test_importance_weights_without_bounds_make_it_exact_on_another_policys_actions(config):
    problem, sampler = bandit(), torch.tensor([0.2, 0.3, 0.5]).log().double().expand(1, 1, 3, 3)
    exact = -0.5 * policy_gradient(problem)
    assert torch.allclose(expected_gradient(config, problem, sampler), exact, atol=1e-7)
    assert not torch.allclose(expected_gradient(reinforce.Config(), problem, sampler), exact, atol=1e-2)


def test_the_weight_of_a_whole_response_is_exact_on_another_policys_sequences():
    problem = small_chain()
    sampler = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(2)).double()
    whole = tis.Config(level="sequence", cap=math.inf, normalise="none")
    assert torch.allclose(expected_gradient(whole, problem, sampler), -0.25 * policy_gradient(problem), atol=1e-7)


def test_token_weights_are_biased_on_another_policys_sequences_because_prefixes_keep_their_odds():
    problem = small_chain()
    sampler = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(2)).double()
    exact = -0.25 * policy_gradient(problem)
    assert not torch.allclose(expected_gradient(IMPORTANCE, problem, sampler), exact, atol=1e-3)
    assert torch.allclose(expected_gradient(IMPORTANCE, problem, problem.start_PTSV), exact, atol=1e-7)


# --- data


def batches(setting, steps, problem=None, config=None):
    """The batches of the first `steps` steps, as a learner sees them."""
    make = torch.Generator().manual_seed(0)
    learner = Learner(config or reinforce.Config(), problem or chain(), setting, make)
    data, found = Data(learner, make), []
    for _ in range(steps):
        samples = data.draw()
        found.append((samples, learner.batch_of(samples, setting.experts)))
        learner.step(samples, setting.experts)
    return found


def test_a_sampler_is_fresh_refreshed_in_rounds_of_a_constant_lag_or_never_changes():
    def lags(setting):
        return [int(batch["lag"].max()) for _, batch in batches(setting, 7)]

    assert lags(Setting()) == [0] * 7
    assert lags(Setting(refresh=3)) == [0, 1, 2, 0, 1, 2, 0]
    assert lags(Setting(lag=2)) == [0, 1, 2, 2, 2, 2, 2]
    assert lags(Setting(refresh=0)) == [0, 1, 2, 3, 4, 5, 6]


def test_a_data_set_is_drawn_once_and_its_groups_come_back_whole():
    setting = Setting(dataset=3, groups=8)
    drawn = batches(setting, 4)
    groups = {tuple(map(tuple, tokens.tolist())) for s, _ in drawn for tokens in s.token_BT.split(setting.group_size)}
    assert len(groups) <= 3
    assert "lag" not in drawn[0][1] and "version" not in drawn[0][1]


def test_demonstrations_come_last_are_groups_of_their_own_and_are_told_apart():
    problem = chain()
    setting = Setting(groups=2, group_size=4, experts=3, expert_PTSV=problem.start_PTSV)
    ((_, batch),) = batches(setting, 1, problem)
    assert batch["mask_expert"].any(-1).tolist() == [False] * 8 + [True] * 3
    assert torch.equal(batch["mask"], batch["mask_rollout"] ^ batch["mask_expert"])
    assert batch["group"].tolist() == [0] * 4 + [1] * 4 + [2, 3, 4]
    assert batch["advantage"][8:].eq(1.0).all() and batch["reward"][8:].isnan().all()


def test_replayed_groups_keep_the_version_that_made_them():
    setting = Setting(groups=2, replay=2, replay_age=2)
    drawn = [set(batch["lag"].flatten().tolist()) for _, batch in batches(setting, 6)]
    assert drawn[0] == {0}
    assert all(0 in lags and max(lags) <= 2 for lags in drawn)
    assert set().union(*drawn) == {0, 1, 2}


def test_minibatches_and_epochs_use_every_group_once_per_pass():
    learner = Learner(reinforce.Config(), chain(), Setting(groups=6, minibatches=3, epochs=2), torch.Generator().manual_seed(0))
    group_B = torch.arange(6).repeat_interleave(8)
    parts = [sorted(set(group_B[rows].tolist())) for rows in learner._parts(group_B)]
    assert [len(part) for part in parts] == [2] * 6
    assert set().union(*parts[:3]) == set().union(*parts[3:]) == set(range(6))


def test_data_that_cannot_be_made_are_refused():
    with pytest.raises(ConfigError, match="cannot be made"):
        Setting(lag=2, refresh=4)
    with pytest.raises(ConfigError, match="cannot be made"):
        Setting(experts=2)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_on_both_problems_and_every_number_is_finite(name):
    """Failures have rewards below 0, which all methods can read; demonstrations go to those that tell them apart."""
    problem = chain(num_positions=3, num_symbols=3).scaled(-1.0, 1.0)
    setting = Setting(steps=4, groups=4, refresh=2, minibatches=2, lr=1.0)
    if "mask_expert" in METHODS[name].Config().build().columns:
        setting = replace(setting, experts=2, expert_PTSV=problem.start_PTSV)
    for run in (
        tabular.train(METHODS[name].Config(), problem, setting, seed=0),
        tabular.train(METHODS[name].Config(), bandit().scaled(-1.0, 1.0), replace(BANDIT, steps=4, groups=4), seed=0),
    ):
        assert not run.diverged
        assert torch.isfinite(run.policy_PTSV).all()
        assert len(run.curves["value"]) == 4


def test_a_run_repeats_and_its_seed_matters():
    setting = Setting(steps=5)
    first, again, other = (tabular.train(IMPORTANCE, chain(), setting, seed=seed) for seed in (1, 1, 2))
    assert first.curves == again.curves != other.curves


def test_imitation_of_an_expert_reaches_its_value():
    problem = chain(num_positions=2, num_symbols=3)
    make = torch.Generator().manual_seed(0)
    expert = 2.0 * torch.randn(problem.start_PTSV.shape, generator=make, dtype=torch.float64)
    problem = replace(problem, start_PTSV=torch.zeros_like(expert))
    setting = Setting(steps=400, groups=1, experts=64, expert_PTSV=expert, lr=5.0)
    run = tabular.train(sft.Config(), problem, setting, seed=0)
    assert run.value == pytest.approx(float(problem.value(expert).mean()), abs=0.05)


# --- reference numbers


# After 200 and 4000 steps on static data, with the tolerance early (the reference gives REINFORCE as a range); reward there.
STATIC = {
    "reinforce": (reinforce.Config(), (0.0, 0.98, 0.02), 0.015, (0.0, 1.0, 0.0), 0.800),
    "importance weights": (IMPORTANCE, (0.026, 0.856, 0.118), 0.008, (0.0, 0.003, 0.996), 0.999),
    "aipo, rho 2": (aipo.Config(rho=2.0), (0.026, 0.856, 0.118), 0.008, (0.001, 0.616, 0.383), 0.876),
    "aipo, rho 10": (aipo.Config(rho=10.0), (0.026, 0.856, 0.118), 0.008, (0.0, 0.003, 0.996), 0.999),
    "one-side clip": (CLIP, (0.158, 0.721, 0.121), 0.008, (0.158, 0.721, 0.121), 0.698),
}


@pytest.mark.parametrize("method", STATIC)
def test_after_200_steps_of_the_static_bandit_the_policy_is_that_of_the_reference(method):
    """Here one seed, there the mean of three: an arm's share moves by 0.003 or so from seed to seed."""
    config, early, tolerance, _, _ = STATIC[method]
    run = tabular.train(config, bandit(), replace(BANDIT, steps=200), seed=0)
    assert run.policy_PTSV[0, 0, 0].tolist() == pytest.approx(early, abs=tolerance)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", STATIC)
def test_after_4000_steps_the_bias_of_each_method_shows(method):
    """REINFORCE is drawn to the arm that the sampler likes; importance weights find the best one; AIPO with rho 2 stops half
    way, because the best arm counts for no more than twice its share of the data; the clip froze the policy long ago."""
    config, _, _, late, reward = STATIC[method]
    run = tabular.train(config, bandit(), BANDIT, seed=0)
    assert run.policy_PTSV[0, 0, 0].tolist() == pytest.approx(late, abs=0.02)
    assert run.value == pytest.approx(reward, abs=0.006)


# Reward at update 100 of the sequence task, with the sampler refreshed every 1, 20 and 100 updates; mean of three seeds.
REFRESHED = {
    "reinforce": (reinforce.Config(), (0.92, 0.91, 0.81)),
    "importance weights": (IMPORTANCE, (0.92, 0.91, 0.81)),
    "aipo, rho 2": (aipo.Config(rho=2.0), (0.92, 0.92, 0.75)),
    "one-side clip": (CLIP, (0.92, 0.74, 0.25)),
    "decoupled ppo": (decoupled_ppo.Config(normalise="none", cap=math.inf), (0.92, 0.91, 0.81)),
    "weights of responses": (tis.Config(level="sequence", cap=math.exp(8.0), normalise="none"), (0.92, 0.93, 0.95)),
    "gspo": (gspo.Config(clip_low=0.05, clip_high=0.05, normalise="none"), (0.92, 0.84, 0.44)),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", REFRESHED)
def test_after_100_updates_of_the_sequence_task_the_reward_is_that_of_the_reference(method):
    """The reference is noted to two digits, and its batches are its own: 0.03 covers both. With one update per batch decoupled
    PPO is the importance-weighted gradient, and TIS on responses that with the weights of whole responses."""
    config, expected = REFRESHED[method]
    for refresh, reward in zip((1, 20, 100), expected, strict=True):
        setting = Setting(steps=101, refresh=refresh)
        values = [tabular.train(config, chain(), setting, seed=seed).curves["value"][100] for seed in range(3)]
        assert sum(values) / 3 == pytest.approx(reward, abs=0.03), f"refreshed every {refresh}"
