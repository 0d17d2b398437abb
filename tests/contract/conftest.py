"""Finds every language algorithm and every named option of it, and gives the tests a toy policy to train.

Nothing here lists methods: a new file in `freerun/algorithms/language` is tested from the moment it exists.

Shapes: B trajectories, T action tokens, S states of the toy policy, V its vocabulary, G trajectories of a group.
"""

import dataclasses
import enum
import importlib
import pkgutil
import typing
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from freerun.algorithms import language
from freerun.algorithms.base import Algorithm
from freerun.ops.reduce import count, element_weights, weighted_sum
from freerun.types import Batch, Group, Prompt, RewardResult, Stop, Trajectory, merge_all

MODULES = [importlib.import_module(f"{language.__name__}.{found.name}") for found in pkgutil.iter_modules(language.__path__)]


def variants_of(module: ModuleType) -> dict[str, object]:
    """The default config, one config for each value that a field names and for each coefficient that is off by default, and
    the configs to which the module gives names."""
    hints = typing.get_type_hints(module.Config)
    found = {"default": module.Config(), **vars(module).get("NAMED", {})}
    for field in dataclasses.fields(module.Config):
        kind, values = hints[field.name], []
        if typing.get_origin(kind) is typing.Literal:
            values = typing.get_args(kind)
        elif isinstance(kind, type) and issubclass(kind, enum.Enum):
            values = list(kind)
        elif kind is bool:
            values = [not field.default]
        elif kind is float and field.default == 0.0:
            values = [0.5]
        found |= {f"{field.name}={value}": module.Config(**{field.name: value}) for value in values if value != field.default}
    return found


VARIANTS = {
    f"{module.__name__.rsplit('.', 1)[1]}-{name}": config for module in MODULES for name, config in variants_of(module).items()
}
POLICY_GRADIENT = {name: config for name, config in VARIANTS.items() if config.build().reinforce_on_policy}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`module` runs over algorithm files, `config` over their variants, `policy_gradient` over those that say they are
    REINFORCE on-policy."""
    for argument, values in {
        "module": {module.__name__.rsplit(".", 1)[1]: module for module in MODULES},
        "config": VARIANTS,
        "policy_gradient": POLICY_GRADIENT,
    }.items():
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, list(values.values()), ids=list(values))


class Toy:
    """A categorical policy with a logits row (and a value) per state, and a batch of eight trajectories that cover its states.

    Row 3 has no tokens, row 5 has all of them. Behaviour, proximal and reference policies lie near the current one.
    """

    num_states, num_tokens = 12, 5
    lengths = (4, 1, 6, 0, 3, 7, 2, 5)

    def __init__(self, seed: int = 0) -> None:
        make = torch.Generator().manual_seed(seed)
        shape = (len(self.lengths), max(self.lengths))

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=make, dtype=torch.float64)

        self.parameters = normal(self.num_states, self.num_tokens + 1)
        self.states_BT = torch.randint(self.num_states, shape, generator=make)
        self.tokens_BT = torch.randint(self.num_tokens, shape, generator=make)
        logp_BT = self.outputs(self.parameters)["logp"]
        lag_BT = torch.randint(4, shape, generator=make)
        mask_BT = torch.arange(shape[1]) < torch.tensor(self.lengths)[:, None]
        expert_B1 = (torch.arange(shape[0]) % 4 == 1)[:, None]
        group_B = torch.arange(shape[0]) // 4
        self.batch = Batch(
            {
                "mask": mask_BT,
                "mask_rollout": mask_BT & ~expert_B1,
                "mask_expert": mask_BT & expert_B1,
                "mask_selected": mask_BT & (torch.arange(shape[0]) % 3 > 0)[:, None],
                "logp_behaviour": logp_BT + 0.4 * normal(*shape),
                "logp_proximal": logp_BT + 0.2 * normal(*shape),
                "logp_reference": logp_BT + 0.4 * normal(*shape),
                "logp_previous": logp_BT + 0.1 * normal(*shape),
                "entropy_proximal": normal(*shape).abs(),
                "version": 5 - lag_BT,
                "lag": lag_BT,
                "advantage": normal(shape[0], 1).expand(shape).clone(),
                "reward": normal(shape[0]),
                "group": group_B,
                "group_tokens": torch.zeros(2, dtype=torch.int64).index_add(0, group_B, mask_BT.sum(-1))[group_B],
                "values": normal(*shape),
                "returns": normal(*shape),
                "value_reference": normal(shape[0]),
            }
        )

    def outputs(self, parameters: Tensor, rows: Tensor | slice = slice(None)) -> dict[str, Tensor]:
        """What a network would give for these rows, with gradient to `parameters` [S, V + 1]."""
        logits_BTV = parameters[self.states_BT[rows]][..., :-1]
        logp_BTV = logits_BTV.log_softmax(-1)
        return {
            "logp": logp_BTV.gather(-1, self.tokens_BT[rows][..., None])[..., 0],
            "entropy": -(logp_BTV.exp() * logp_BTV).sum(-1),
            "values": parameters[self.states_BT[rows]][..., -1],
        }

    def on_policy(self) -> Batch:
        """The batch as if behaviour, proximal, reference and current policy were one."""
        logp_BT = self.outputs(self.parameters)["logp"]
        policies = ("logp_behaviour", "logp_proximal", "logp_reference", "logp_previous")
        return self.batch.with_columns(**dict.fromkeys(policies, logp_BT))


def prepared(algorithm: Algorithm, batch: Batch) -> Batch:
    """`batch`, a whole step, with the columns that the algorithm makes of it."""
    return batch if algorithm.prepare is None else batch.with_columns(**algorithm.prepare(batch, algorithm.init()))


def probed(algorithm: Algorithm, micro_batches: list[tuple[dict[str, Tensor], Batch]]) -> dict:
    """The algorithm's state for a step, after its look at the whole of it."""
    state = algorithm.init()
    if algorithm.probe is None:
        return state
    names = {name for term in algorithm.terms for name in term.outputs}
    outputs = {name: torch.cat([outputs[name].detach() for outputs, _ in micro_batches]) for name in names}
    columns = {name: torch.cat([batch[name] for _, batch in micro_batches]) for name in micro_batches[0][1]}
    return algorithm.probe(outputs, Batch(columns), state)


def step_loss(algorithm: Algorithm, micro_batches: list[tuple[dict[str, Tensor], Batch]]) -> tuple[Tensor, dict]:
    """What a trainer minimises in one step over `micro_batches` (outputs and columns), and the merged metrics."""
    state, total, records = probed(algorithm, micro_batches), torch.zeros((), dtype=torch.float64), []
    for term in algorithm.terms:
        loss_sum, num = torch.zeros((), dtype=torch.float64), torch.zeros(())
        for outputs, batch in micro_batches:
            out, mask_BT = term.loss(outputs, batch, state), batch[term.mask]
            loss_sum = loss_sum + weighted_sum(out.loss, element_weights(mask_BT, term.reduction, batch))
            num = num + count(mask_BT, term.reduction, batch)
            records.append(out.metrics)
        total = total + term.weight * loss_sum / num.clamp(min=1.0)
    return total, merge_all(records)


def step_gradient(algorithm: Algorithm, toy: Toy, batch: Batch, num_micro_batches: int = 1) -> Tensor:
    """Gradient of a step with respect to the toy's parameters, its rows cut into `num_micro_batches`."""
    parameters = toy.parameters.clone().requires_grad_()
    parts = torch.arange(len(toy.lengths)).chunk(num_micro_batches)
    batch = prepared(algorithm, batch)
    step_loss(algorithm, [(toy.outputs(parameters, rows), batch.rows(rows)) for rows in parts])[0].backward()
    return parameters.grad


def group_of(rewards: list[float]) -> Group:
    """A group whose response i has i + 1 tokens."""

    def trajectory(num: int) -> Trajectory:
        action_T = torch.arange(2 + num) >= 2
        return Trajectory(
            tokens_T=torch.zeros(2 + num, dtype=torch.int64),
            action_T=action_T,
            logp_T=torch.where(action_T, -1.0, 0.0),
            version_T=torch.where(action_T, 0, -1).int(),
            text="",
            stop=Stop.EOS,
        )

    trajectories = tuple(trajectory(i + 1) for i in range(len(rewards)))
    return Group(item=0, prompt=Prompt("p", "?"), trajectories=trajectories, rewards=tuple(map(RewardResult, rewards)))


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """The functions above, for test modules."""
    return SimpleNamespace(
        step_loss=step_loss,
        step_gradient=step_gradient,
        prepared=prepared,
        probed=probed,
        group_of=group_of,
        variants=VARIANTS,
    )
