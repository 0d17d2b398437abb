"""Finds every control method and every named option of it, and gives the tests small networks and a batch to try it on.

Nothing here lists methods: a new file in `freerun/algorithms/control` is tested from the moment it exists.

Shapes: B rows of a batch, T steps of a chunk, N environments.
"""

import dataclasses
import enum
import importlib
import pkgutil
import typing
from types import ModuleType

import pytest
import torch
from torch import Tensor

from freerun.algorithms import control
from freerun.algorithms.control_base import ControlAlgorithm
from freerun.models import control as models
from freerun.transitions import Spaces, transitions
from freerun.types import Batch

MODULES = [importlib.import_module(f"{control.__name__}.{found.name}") for found in pkgutil.iter_modules(control.__path__)]
CONTINUOUS = Spaces(obs=(3,), actions=2, discrete=False)
DISCRETE = Spaces(obs=(3,), actions=4, discrete=True)


def variants_of(module: ModuleType) -> dict[str, object]:
    """The default config, and one config for each value that a field names, each switch and each coefficient that is off."""
    hints = typing.get_type_hints(module.Config)
    found = {"default": module.Config()}
    for field in dataclasses.fields(module.Config):
        kind, values = hints[field.name], []
        if typing.get_origin(kind) is typing.Literal:
            values = typing.get_args(kind)
        elif isinstance(kind, type) and issubclass(kind, enum.Enum):
            values = list(kind)
        elif kind is bool:
            values = [not field.default]
        elif (kind is float and field.default == 0.0) or field.default is None:
            values = [0.5]
        found |= {f"{field.name}={value}": module.Config(**{field.name: value}) for value in values if value != field.default}
    return found


VARIANTS = {
    f"{module.__name__.rsplit('.', 1)[1]}-{name}": config for module in MODULES for name, config in variants_of(module).items()
}
IN_SPACES = {
    f"{name}-{'discrete' if spaces.discrete else 'continuous'}": (config, spaces)
    for name, config in VARIANTS.items()
    for spaces in (CONTINUOUS, DISCRETE)
    if config.build().actions in ("any", "discrete" if spaces.discrete else "continuous")
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`module` runs over files, `config` over their variants, `toy` over variants in all spaces that they are for."""
    for argument, values in {"module": {m.__name__.rsplit(".", 1)[1]: m for m in MODULES}, "config": VARIANTS}.items():
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, list(values.values()), ids=list(values))
    if "toy" in metafunc.fixturenames:
        metafunc.parametrize("toy", list(IN_SPACES.values()), ids=list(IN_SPACES), indirect=True)


class Toy:
    """A method with its networks, and a chunk of 6 steps of 4 environments: one episode terminates, one is cut."""

    steps, envs = 6, 4

    def __init__(self, config: object, spaces: Spaces, seed: int = 0) -> None:
        self.config, self.spaces = config, spaces
        self.algorithm: ControlAlgorithm = narrow(config).build()
        self.networks = models.build(self.algorithm.networks, spaces, seed=seed)
        for target in self.algorithm.targets:
            # Targets lag behind: other weights show whether a loss reads the right ones.
            (self.networks[target.target],) = models.build(
                {target.online: self.algorithm.networks[target.online]}, spaces, seed=seed + 1
            ).values()
        for network in self.networks.values():
            for name, parameter in network.named_parameters():
                # Biases that are not zero, so that no gradient vanishes by symmetry.
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
        self.state = self.algorithm.init()
        self.chunk = chunk_of(spaces, self.steps, self.envs, self.algorithm.gamma)
        self.batch = self.rows(self.chunk)
        models.remember(self.networks, self.algorithm.networks, "dataset", self.batch["obs"], self.batch["action"])

    def rows(self, chunk: Batch) -> Batch:
        """The chunk as rows, with what the method makes of it."""
        whole = self.prepared(chunk)
        return transitions({name: column.flatten(0, 1) for name, column in whole.items()})

    @property
    def by_source(self) -> dict[str, Batch]:
        """The rows as those of every source that a term names."""
        return dict.fromkeys({term.source for term in self.algorithm.terms} - {""}, self.batch) or {"all": self.batch}

    def prepared(self, chunk: Batch) -> Batch:
        if self.algorithm.prepare is None:
            return chunk
        with torch.no_grad():
            return chunk.with_columns(**self.algorithm.prepare(self.networks, chunk, self.state))

    def losses(self, batch: Batch) -> dict[str, tuple[Tensor, object]]:
        """The mean loss of each term on `batch`, and everything it gave, each with the same noise."""
        outs = {}
        for term in self.algorithm.terms:
            out = term.loss(self.networks, batch, self.state, torch.Generator().manual_seed(1))
            outs[term.name] = out.loss.mean(), out
        return outs

    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        """The gradient of each term with respect to what it trains, as one vector."""
        found = {}
        for term in self.algorithm.terms:
            parameters = [p for name in term.trains for p in self.networks[name].parameters()]
            loss = self.losses(batch)[term.name][0]
            found[term.name] = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        return found


def narrow(config: object) -> object:
    """The same method with hidden layers of 16: what a contract promises does not depend on their width, and time does."""
    widths = {name: value for name, value in dataclasses.asdict(config).items() if name.endswith("hidden")}
    return dataclasses.replace(config, **{name: (16,) * len(layers) for name, layers in widths.items()})


def chunk_of(spaces: Spaces, steps: int, envs: int, gamma: float) -> Batch:
    """Made-up columns of every kind, [T, N, ...]."""
    make = torch.Generator().manual_seed(3)
    shape = (steps, envs)

    def normal(*more: int) -> Tensor:
        return torch.randn(*shape, *more, generator=make)

    def seen() -> Tensor:
        if not spaces.pixels:
            return normal(*spaces.obs)
        return torch.randint(spaces.largest + 1, (*shape, *spaces.obs), generator=make, dtype=torch.uint8)

    if spaces.discrete:
        action, next_action = (torch.randint(spaces.actions, shape, generator=make) for _ in range(2))
    else:
        action, next_action = (normal(spaces.actions).tanh() for _ in range(2))
    terminated, truncated = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    terminated[2, 1] = truncated[4, 3] = True
    return transitions(
        {
            "obs": seen(),
            "action": action,
            "reward": normal(),
            "next_obs": seen(),
            "terminated": terminated,
            "truncated": truncated,
            "discount": gamma * (~terminated).float(),
            "log_prob": normal() - 1.0,
            "version": torch.zeros(shape, dtype=torch.int32),
            "lag": torch.zeros(shape, dtype=torch.int32),
            "episode": torch.arange(envs).expand(shape),
            "step": torch.arange(steps)[:, None].expand(shape),
            "next_action": next_action,
            "mc_return": normal(),
            "weight": torch.ones(shape),
            "row": torch.arange(steps * envs).view(shape),
            "source": torch.zeros(shape, dtype=torch.int64),
        }
    )


@pytest.fixture
def toy(request: pytest.FixtureRequest) -> Toy:
    return Toy(*request.param)


@pytest.fixture(scope="session")
def toys() -> type[Toy]:
    """`toys(config, spaces)`: a toy of one's own."""
    return Toy
