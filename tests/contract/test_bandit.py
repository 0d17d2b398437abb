"""A three-armed bandit with data from a policy that never changes: each method goes where its theory says.

Start and sampler are (.3, .6, .1), rewards (0, .8, 1); 64 groups of 8 a step, plain gradient descent at 0.2 on the mean loss of
the sampled actions. The numbers are those of an independent simulation, given to three digits for the mean of three seeds.

Shapes: S seeds, N trajectories of a step, A arms, C compositions of a group.
"""

import itertools

import pytest
import torch

from freerun.algorithms.language import aipo, grpo, reinforce
from freerun.types import Batch

SAMPLER_A = torch.tensor([0.3, 0.6, 0.1])
REWARD_A = torch.tensor([0.0, 0.8, 1.0])
NUM_GROUPS, GROUP_SIZE, NUM_SEEDS = 64, 8, 3


def credit_table(algorithm, tools):
    """Advantage of each arm, by the counts (first arm, second arm) of its group: [9, 9, A]. A group is known by its counts."""
    table_CA = torch.zeros(GROUP_SIZE + 1, GROUP_SIZE + 1, 3)
    for first, second in itertools.product(range(GROUP_SIZE + 1), repeat=2):
        arms = [0] * first + [1] * second + [2] * (GROUP_SIZE - first - second)
        if len(arms) != GROUP_SIZE:
            continue
        advantage_G, _ = algorithm.credit(tools.group_of([float(REWARD_A[arm]) for arm in arms]), {})
        for arm, advantage in zip(arms, advantage_G, strict=True):
            table_CA[first, second, arm] = advantage
    return table_CA


def policies_after(config, tools, steps):
    """Mean over seeds of the policy after each number of steps in `steps`."""
    algorithm = config.build()
    (term,) = algorithm.terms
    table_CA, make = credit_table(algorithm, tools), torch.Generator().manual_seed(0)
    logits_SA = SAMPLER_A.log().repeat(NUM_SEEDS, 1).requires_grad_()
    seed_N = torch.arange(NUM_SEEDS).repeat_interleave(NUM_GROUPS * GROUP_SIZE)
    found, mask_N1 = [], torch.ones(len(seed_N), 1, dtype=torch.bool)
    for step in range(1, max(steps) + 1):
        arm_N = torch.multinomial(SAMPLER_A, len(seed_N), replacement=True, generator=make)
        grouped = arm_N.view(-1, GROUP_SIZE)
        first, second = (grouped == 0).sum(-1, keepdim=True), (grouped == 1).sum(-1, keepdim=True)
        advantage_N1 = table_CA[first, second, grouped].view(-1, 1)
        batch = Batch({"mask": mask_N1, "advantage": advantage_N1, "logp_behaviour": SAMPLER_A.log()[arm_N][:, None]})
        out = term.loss({"logp": logits_SA.log_softmax(-1)[seed_N, arm_N][:, None]}, batch, {})
        # Each seed is a run of its own, so the mean is over its own actions.
        (gradient_SA,) = torch.autograd.grad(out.loss.sum() / (NUM_GROUPS * GROUP_SIZE), logits_SA)
        logits_SA.data -= 0.2 * gradient_SA
        if step in steps:
            found.append(logits_SA.detach().softmax(-1).mean(0))
    return found


# Config; policy after 200 steps and its tolerance (the reference gives REINFORCE as a range); after 4000 steps; reward there.
METHODS = {
    "reinforce": (reinforce.Config(), (0.0, 0.98, 0.02), 0.015, (0.0, 1.0, 0.0), 0.800),
    "importance weights": (aipo.Config(rho=float("inf")), (0.026, 0.856, 0.118), 0.002, (0.0, 0.003, 0.996), 0.999),
    "aipo, rho 2": (aipo.Config(rho=2.0), (0.026, 0.856, 0.118), 0.002, (0.001, 0.616, 0.383), 0.876),
    "aipo, rho 10": (aipo.Config(rho=10.0), (0.026, 0.856, 0.118), 0.002, (0.0, 0.003, 0.996), 0.999),
    "one-side clip": (grpo.Config(normalise="none"), (0.158, 0.721, 0.121), 0.002, (0.158, 0.721, 0.121), 0.698),
}


@pytest.mark.parametrize("method", METHODS)
def test_after_200_steps_the_policy_is_that_of_the_reference(method, tools):
    config, early, tolerance, _, _ = METHODS[method]
    (policy_A,) = policies_after(config, tools, (200,))
    assert policy_A.tolist() == pytest.approx(early, abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_after_4000_steps_the_bias_of_each_method_shows(method, tools):
    """REINFORCE is drawn to the arm that the sampler likes; importance weights find the best one; AIPO with rho 2 stops half
    way, because the best arm counts for no more than twice its share of the data; the clip froze the policy long ago."""
    config, _, _, late, reward = METHODS[method]
    (policy_A,) = policies_after(config, tools, (4000,))
    assert policy_A.tolist() == pytest.approx(late, abs=0.01)
    assert float(policy_A @ REWARD_A) == pytest.approx(reward, abs=0.003)
