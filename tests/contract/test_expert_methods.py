"""What is particular to the methods that imitate an expert: CHORD beside its own responses, PEAR before them.

Shapes: B trajectories, T action tokens, V vocabulary.
"""

import itertools
import math

import pytest
import torch

from freerun.algorithms.language import chord, grpo, pear, sft
from freerun.errors import ConfigError
from freerun.types import Batch


def log(*values):
    return torch.tensor([values], dtype=torch.float64).log()


def slopes(algorithm, logp_BT, batch, state=None, *, term=0):
    """Derivative of a term's element-wise loss with respect to each log-prob, and the values of its metrics."""
    logp_BT = logp_BT.clone().requires_grad_()
    out = algorithm.terms[term].loss({"logp": logp_BT}, batch, algorithm.init() if state is None else state)
    out.loss.sum().backward()
    return logp_BT.grad[0].tolist(), {name: metric.value for name, metric in out.metrics.items()}


def on(mask, batch):
    """The batch of which only the tokens of `mask` exist."""
    return batch.with_columns(mask=batch[mask])


# CHORD


def test_chord_without_mixing_is_grpo_on_the_rollouts(toy, tools):
    method = chord.Config(peak=0.0, valley=0.0).build()
    ppo = grpo.Config(reduction="token_mean").build()
    left = tools.step_gradient(method, toy, toy.batch)
    assert torch.equal(left, tools.step_gradient(ppo, toy, on("mask_rollout", toy.batch)))
    group = tools.group_of([0.3, -1.0, 0.7])
    assert torch.equal(method.credit(group, method.init())[0], ppo.credit(group, {})[0])


def test_chord_with_nothing_but_mixing_and_no_weight_is_supervised_fine_tuning_on_the_demonstrations(toy, tools):
    left = tools.step_gradient(chord.Config(peak=1.0, valley=1.0, weight="none").build(), toy, toy.batch)
    assert torch.equal(left, tools.step_gradient(sft.Config().build(), toy, on("mask_expert", toy.batch)))


def test_chord_adds_its_branches_in_proportion(toy, tools):
    """Each branch is divided by its own number of tokens, so neither dilutes the other."""
    mixed = tools.step_gradient(chord.Config(peak=0.3, valley=0.3).build(), toy, toy.batch)
    policy, expert = (tools.step_gradient(chord.Config(peak=m, valley=m).build(), toy, toy.batch) for m in (0.0, 1.0))
    assert torch.allclose(mixed, 0.7 * policy + 0.3 * expert, rtol=1e-6)


@pytest.mark.parametrize(("weight", "phi"), [("undecided", 0.25 * 0.75), ("likelihood", 0.25), ("none", 1.0)])
def test_chord_moves_the_logits_of_a_demonstrated_token_by_its_weight_times_onehot_minus_p(weight, phi):
    p_V = torch.tensor([0.25, 0.6, 0.15], dtype=torch.float64)
    logits_V = p_V.log().requires_grad_()
    mask_BT = torch.ones(1, 1, dtype=torch.bool)
    algorithm = chord.Config(peak=1.0, valley=1.0, weight=weight).build()
    out = algorithm.terms[1].loss(
        {"logp": logits_V.log_softmax(-1)[None, :1]}, Batch({"mask_expert": mask_BT}), algorithm.init()
    )
    out.loss.sum().backward()
    assert torch.allclose(-logits_V.grad, phi * (torch.tensor([1.0, 0.0, 0.0]) - p_V))


@pytest.mark.parametrize(
    ("start", "times"),
    [(1e-3, (18, 1026, 1094)), (1e-2, (16, 122, 187)), (0.1, (13, 27, 89)), (0.5, (10, 13, 71))],
)
def test_the_surer_chord_has_to_be_the_longer_a_new_token_takes(start, times):
    """Time until one binary logit under gradient flow has brought a demonstrated token from `start` to .9: the integral of
    dz / (-dL/dz)."""
    z_T = torch.linspace(math.log(start / (1 - start)), math.log(9.0), 200_001, dtype=torch.float64)
    mask_BT = torch.ones(1, len(z_T), dtype=torch.bool)
    for weight, time in zip(("none", "likelihood", "undecided"), times, strict=True):
        logit_T = z_T.clone().requires_grad_()
        algorithm = chord.Config(peak=1.0, valley=1.0, weight=weight).build()
        logp_BT = torch.nn.functional.logsigmoid(logit_T)[None]
        algorithm.terms[1].loss({"logp": logp_BT}, Batch({"mask_expert": mask_BT}), algorithm.init()).loss.sum().backward()
        assert float(torch.trapezoid(-1.0 / logit_T.grad, z_T)) == pytest.approx(time, abs=0.6)


def test_chord_leaves_tokens_above_its_cutoff_alone():
    batch = Batch({"mask_expert": torch.ones(1, 3, dtype=torch.bool)})
    algorithm = chord.Config(peak=1.0, valley=1.0, weight="none", cutoff=0.5).build()
    assert slopes(algorithm, log(0.2, 0.49, 0.51), batch, term=1)[0] == [-1.0, -1.0, 0.0]


def test_the_share_of_the_expert_rises_linearly_and_falls_by_half_a_cosine():
    config = chord.Config(warmup=4, decay=10, peak=0.8, valley=0.2)
    shares = [config.mixing(step) for step in (0, 1, 4, 9, 14, 100)]
    assert shares == pytest.approx([0.0, 0.2, 0.8, 0.5, 0.2, 0.2])
    paper = chord.Config(weight="none", peak=0.9, valley=0.05, decay=200)
    assert [paper.mixing(s) for s in (0, 100, 200)] == pytest.approx([0.9, 0.475, 0.05])


def test_the_share_is_state_that_the_end_of_an_iteration_replaces():
    algorithm = chord.Config(peak=0.9, valley=0.1, decay=2).build()
    state, seen = algorithm.init(), []
    for _ in range(4):
        seen.append((state["step"], state["mixing"]))
        state = algorithm.events["iteration_end"](state, {})
    assert seen == [(0, 0.9), (1, pytest.approx(0.5)), (2, pytest.approx(0.1)), (3, pytest.approx(0.1))]


def test_a_micro_batch_without_demonstrations_adds_nothing_to_the_experts_loss(toy, tools):
    """And one with nothing else adds nothing to the policy's: both are 0, neither is NaN."""
    parameters = toy.parameters.clone().requires_grad_()
    none = toy.batch.with_columns(mask_expert=torch.zeros_like(toy.batch["mask"]), mask_rollout=toy.batch["mask"])
    loss, metrics = tools.step_loss(chord.Config(peak=1.0, valley=1.0).build(), [(toy.outputs(parameters), none)])
    loss.backward()
    assert loss.item() == 0.0
    assert metrics["expert_nll"].count == 0
    assert torch.equal(parameters.grad, torch.zeros_like(parameters))


# PEAR


def weights(config, log_ratio, mask=None):
    log_ratio_BT = torch.tensor([log_ratio], dtype=torch.float64)
    mask_BT = torch.ones_like(log_ratio_BT, dtype=torch.bool) if mask is None else torch.tensor([mask])
    return pear.log_weight(log_ratio_BT, mask_BT, config=config)[0].exp().tolist()


def free(**changes):
    """PEAR without any bound or discount."""
    return pear.Config(
        **{"gamma": 1.0, "low": -math.inf, "high": math.inf, "log_low": -math.inf, "log_high": math.inf, **changes}
    )


def test_pear_weighs_a_token_by_the_ratios_of_those_after_it():
    ratios = [math.log(r) for r in (2.0, 3.0, 5.0, 7.0, 11.0)]
    assert weights(free(form="token"), ratios) == pytest.approx([3 * 5 * 7 * 11, 5 * 7 * 11, 7 * 11, 11, 1])
    assert weights(free(form="block", block=2), ratios) == pytest.approx([5 * 7 * 11, 5 * 7 * 11, 11, 11, 1])
    assert weights(free(form="sequence"), ratios) == pytest.approx(5 * [2 * 3 * 5 * 7 * 11])


def test_pear_discounts_by_the_distance_from_the_end_of_the_block_to_the_end_of_the_response():
    assert weights(free(form="token", gamma=0.5), 5 * [0.0]) == pytest.approx([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1])
    assert weights(free(form="block", block=2, gamma=0.5), 5 * [0.0]) == pytest.approx([1 / 8, 1 / 8, 1 / 2, 1 / 2, 1])
    assert weights(free(form="sequence", gamma=0.5), 5 * [0.0]) == pytest.approx(5 * [1.0])


def test_pear_bounds_each_ratio_and_then_each_weight():
    config = pear.Config(form="token", gamma=1.0)
    assert weights(config, [9.0, 1.0, -1.0, 0.1]) == pytest.approx([math.exp(x) for x in (0.3 - 0.08 + 0.1, 0.02, 0.1, 0.0)])
    assert weights(config, 30 * [1.0])[0] == pytest.approx(math.exp(5.0))
    assert weights(config, 200 * [-1.0])[0] == pytest.approx(math.exp(-10.0))


def test_pear_steps_over_masked_tokens():
    x = math.log(3.0)
    mask = [False, True, True, False, True, True, False]
    full = weights(free(form="block", block=2, gamma=0.5), [9.0, x, x, 9.0, x, x, 9.0], mask)
    bare = weights(free(form="block", block=2, gamma=0.5), 4 * [x])
    assert [w for w, m in zip(full, mask, strict=True) if m] == pytest.approx(bare)


def test_pear_with_blocks_of_one_is_its_token_form_and_with_one_block_weighs_nothing():
    ratios = torch.randn(7, generator=torch.Generator().manual_seed(0)).tolist()
    assert weights(free(form="block", block=1), ratios) == weights(free(form="token"), ratios)
    for block in (7, 8, 100):
        assert weights(pear.Config(form="block", block=block), ratios) == 7 * [1.0]


@pytest.mark.parametrize("form", ["token", "block", "sequence"])
def test_pear_on_the_policys_own_responses_is_supervised_fine_tuning(form, toy, tools):
    left = tools.step_gradient(pear.Config(form=form, gamma=1.0).build(), toy, toy.on_policy())
    assert torch.equal(left, tools.step_gradient(sft.Config().build(), toy, toy.batch))


def test_the_expected_weight_of_every_prefix_is_one():
    """`E_beta[exp(sum over j > t of log pi / beta)] = 1`, by enumeration of all responses of three tokens whose distribution
    depends on what came before."""
    make = torch.Generator().manual_seed(0)
    tables = [torch.randn(8, 2, generator=make, dtype=torch.float64).log_softmax(-1) for _ in range(2)]
    expected = dict.fromkeys(("token", "block", "sequence"), 0.0)
    for tokens in itertools.product((0, 1), repeat=3):
        prefixes = [1, 2 + tokens[0], 4 + 2 * tokens[0] + tokens[1]]
        policy, author = (torch.stack([t[p, token] for p, token in zip(prefixes, tokens, strict=True)]) for t in tables)
        for form in expected:
            found = torch.tensor(weights(free(form=form, block=2), (policy - author).tolist()), dtype=torch.float64)
            expected[form] = expected[form] + author.sum().exp() * found
    for found in expected.values():
        assert found.tolist() == pytest.approx(3 * [1.0], rel=1e-12)


def test_the_expected_pear_gradient_is_the_likelihood_of_the_policys_own_continuations():
    """Of two tokens, the first is drawn from the author, the second in effect from the policy: `beta(a) beta(b | a) G_1 =
    beta(a) pi(b | a)`."""
    author_1, author_2 = torch.tensor([0.7, 0.3]), torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    policy_2 = torch.tensor([[0.9, 0.1], [0.7, 0.3]])
    mass = torch.zeros(2, 2)
    for a, b in itertools.product((0, 1), repeat=2):
        ratio = math.log(policy_2[a, b] / author_2[a, b])
        mass[a, b] = author_1[a] * author_2[a, b] * weights(free(form="token"), [0.0, ratio])[0]
    assert torch.allclose(mass, author_1[:, None] * policy_2)


# Configs


@pytest.mark.parametrize(
    ("method", "broken", "rule"),
    [
        (chord, {"peak": 0.1, "valley": 0.2}, "0 <= valley <= peak <= 1"),
        (chord, {"cutoff": 0.0}, "0 < cutoff <= 1"),
        (chord, {"decay": -1}, "warmup, decay >= 0"),
        (chord, {"weight": "phi"}, "weight is one of undecided, likelihood, none"),
        (pear, {"gamma": 0.0}, "0 < gamma <= 1"),
        (pear, {"low": 0.1}, "low <= 0 <= high"),
        (pear, {"block": 0}, "block >= 1"),
    ],
)
def test_a_broken_config_says_which_rule_it_breaks(method, broken, rule):
    with pytest.raises(ConfigError) as caught:
        method.Config(**broken)
    assert caught.value.expected == rule
