"""Builds the networks of control from their descriptions (`networks.py`) for the spaces of a run.

An ensemble's members share no parameter and are computed together: one batched product a layer. The same seed builds the same
weights wherever it is called, so actors and the trainer agree before the first version arrives.

Shapes: B rows (any leading dimensions of a single network), M members, I and O widths of a layer's input and output.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from freerun.errors import ConfigError
from freerun.networks import Body, Deterministic, Ensemble, Neighbours, Network, Policy, Scalar
from freerun.ops.distributions import Categorical, Distribution, Gaussian, SquashedGaussian
from freerun.transitions import Spaces

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu_, "tanh": torch.tanh_, "silu": F.silu}
"""Applied to what a layer has just made, so in its place where the gradient needs only the result."""
GAINS = {"relu": math.sqrt(2.0), "tanh": math.sqrt(2.0), "silu": 1.0}
CLIP = 10.0
"""Bound of a normalised observation."""


def build(networks: Mapping[str, Network], spaces: Spaces, *, seed: int, normalise: bool = False) -> dict[str, nn.Module]:
    """The networks, with weights that follow from `seed` and each one's name."""
    return {name: _build(network, spaces, _generator(seed, name), normalise) for name, network in networks.items()}


def _generator(seed: int, name: str) -> Generator:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)


def _build(network: Network, spaces: Spaces, generator: Generator, normalise: bool) -> nn.Module:
    match network:
        case Policy():
            return PolicyNetwork(network, spaces, generator, normalise)
        case Deterministic():
            return DeterministicNetwork(network, spaces, generator, normalise)
        case Ensemble():
            return EnsembleNetwork(network, spaces, generator, normalise)
        case Scalar():
            return ScalarNetwork(network)
        case Neighbours():
            from freerun.models.neighbours import NeighboursNetwork

            return NeighboursNetwork(network, Observer(Body(encoder="flat"), spaces, generator, normalise))


# --- inputs ------------------------------------------------------------------------------------------------------------------


class Observer(nn.Module):
    """From an observation to a vector: normalised (with statistics that `set_statistics` gives; identity before), or bytes as
    shares of the largest; then encoded."""

    shift: Tensor
    scale: Tensor

    def __init__(self, body: Body, spaces: Spaces, generator: Generator, normalise: bool) -> None:
        super().__init__()
        self.normalise = normalise and not spaces.pixels
        self._dims = len(spaces.obs)
        encoder = _fitting(spaces.obs) if body.encoder == "auto" else body.encoder
        self._largest = spaces.largest if spaces.pixels else 0
        if self.normalise:
            self.register_buffer("shift", torch.zeros(spaces.obs))
            self.register_buffer("scale", torch.ones(spaces.obs))
        if len(spaces.obs) != (1 if encoder == "flat" else 3):
            raise ConfigError(
                f"encoder '{encoder}' does not fit the observations",
                given=f"observations of shape {spaces.obs}",
                expected="'flat' for vectors; 'pixels' or 'grid' for three dimensions, channels first",
                todo="set the encoder of the algorithm's networks",
            )
        self.convolutions = _convolutions(encoder, spaces.obs, generator) if encoder != "flat" else None
        with torch.no_grad():
            self.width = int(self(torch.zeros(1, *spaces.obs)).shape[-1])

    def forward(self, obs_B: Tensor) -> Tensor:
        if self.normalise:
            obs_B = ((obs_B - self.shift) * self.scale).clamp(-CLIP, CLIP)
        elif self._largest:
            obs_B = obs_B.float() / self._largest
        if self.convolutions is None:
            return obs_B
        lead = obs_B.shape[: -self._dims]
        return self.convolutions(obs_B.reshape(-1, *obs_B.shape[-self._dims :])).reshape(*lead, -1)

    @property
    def statistics(self) -> Tensor:
        """What inputs are normalised with, as one tensor; empty where they are not."""
        return torch.stack([self.shift, self.scale]) if self.normalise else torch.zeros(0)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """From now on inputs are `(obs - mean) / std`."""
        if self.normalise:
            self.shift.copy_(mean)
            self.scale.copy_(1.0 / std)


def _fitting(shape: Sequence[int]) -> str:
    """The encoder for observations of this shape: convolutions for pixels reduce an image to a thirtieth."""
    return "flat" if len(shape) != 3 else "pixels" if min(shape[1:]) >= 36 else "grid"


def _convolutions(encoder: str, shape: Sequence[int], generator: Generator) -> nn.Sequential:
    if encoder == "pixels":
        layers = [(shape[0], 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)]
    else:
        layers = [(shape[0], 16, 2, 1), (16, 32, 2, 1), (32, 64, 2, 1)]
    modules: list[nn.Module] = []
    for inputs, outputs, kernel, stride in layers:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride)
        _initialise(convolution.weight, convolution.bias, "orthogonal", math.sqrt(2.0), generator)
        modules += [convolution, nn.ReLU()]
    return nn.Sequential(*modules, nn.Flatten())


# --- layers ------------------------------------------------------------------------------------------------------------------


class Layers(nn.Module):
    """Linear layers with activations between them, for one network."""

    def __init__(self, width: int, outputs: int, body: Body, generator: Generator, *, gain: float = 1.0) -> None:
        super().__init__()
        widths = [width, *body.hidden, outputs]
        linear = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        self.linear = nn.ModuleList(linear)
        self.norms = nn.ModuleList(nn.LayerNorm(h) for h in body.hidden) if body.layer_norm else None
        self._activation = ACTIVATIONS[body.activation]
        for i, layer in enumerate(linear):
            last = i == len(linear) - 1
            _initialise(layer.weight, layer.bias, body.init, gain if last else GAINS[body.activation], generator)
        # The same parameters: for small networks looking a module up and calling it costs as much as its arithmetic.
        self._parts = [(layer.weight, layer.bias) for layer in linear]

    def forward(self, x_BI: Tensor) -> Tensor:
        *hidden, (last_OI, last_O) = self._parts
        for i, (weight_OI, bias_O) in enumerate(hidden):
            x_BI = F.linear(x_BI, weight_OI, bias_O)
            x_BI = self._activation(x_BI if self.norms is None else self.norms[i](x_BI))
        return F.linear(x_BI, last_OI, last_O)


class StackedLayers(nn.Module):
    """The same for `members` networks at once: [B, I] or [M, B, I] in, [M, B, O] out."""

    def __init__(self, width: int, outputs: int, body: Body, members: int, generator: Generator, *, gain: float) -> None:
        super().__init__()
        widths = [width, *body.hidden, outputs]
        pairs = list(itertools.pairwise(widths))
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(members, a, b)) for a, b in pairs)
        self.biases = nn.ParameterList(nn.Parameter(torch.empty(members, 1, b)) for _, b in pairs)
        self.norm_weights, self.norm_biases = nn.ParameterList(), nn.ParameterList()
        if body.layer_norm:
            self.norm_weights.extend(nn.Parameter(torch.ones(members, 1, h)) for h in body.hidden)
            self.norm_biases.extend(nn.Parameter(torch.zeros(members, 1, h)) for h in body.hidden)
        self._activation, self._members = ACTIVATIONS[body.activation], members
        for i, (weight_MIO, bias_M1O) in enumerate(zip(self.weights, self.biases, strict=True)):
            last = i == len(pairs) - 1
            for weight_IO, bias_1O in zip(weight_MIO.data, bias_M1O.data, strict=True):
                _initialise(weight_IO.T, bias_1O[0], body.init, gain if last else GAINS[body.activation], generator)
        self._parts = list(zip(self.weights, self.biases, strict=True))
        self._norms = list(zip(self.norm_weights, self.norm_biases, strict=True))

    def forward(self, x_BI: Tensor) -> Tensor:
        x = x_BI.expand(self._members, *x_BI.shape) if x_BI.dim() == 2 else x_BI
        *hidden, (last_MIO, last_M1O) = self._parts
        for i, (weight_MIO, bias_M1O) in enumerate(hidden):
            x = torch.baddbmm(bias_M1O, x, weight_MIO)
            if self._norms:
                scale_M1O, shift_M1O = self._norms[i]
                x = torch.addcmul(shift_M1O, F.layer_norm(x, x.shape[-1:]), scale_M1O)
            x = self._activation(x)
        if last_MIO.shape[-1] == 1:
            # One output is an inner product; as a matrix product it is several times slower to differentiate.
            return (x * last_MIO.transpose(1, 2)).sum(-1, keepdim=True) + last_M1O
        return torch.baddbmm(last_M1O, x, last_MIO)


def _initialise(weight_OI: Tensor, bias_O: Tensor | None, how: str, gain: float, generator: Generator) -> None:
    """Fill a layer's weight [O, I, ...] and bias."""
    assert bias_O is not None, "every layer here has a bias"
    with torch.no_grad():
        if how == "orthogonal":
            # A copy, because the orthogonal matrix is made for a contiguous one.
            weight_OI.copy_(nn.init.orthogonal_(torch.empty(weight_OI.shape), gain, generator=generator))
            bias_O.zero_()
        else:
            bound = 1.0 / math.sqrt(weight_OI[0].numel())
            weight_OI.copy_(torch.empty(weight_OI.shape).uniform_(-bound, bound, generator=generator))
            bias_O.copy_(torch.empty(bias_O.shape).uniform_(-bound, bound, generator=generator))


# --- networks ----------------------------------------------------------------------------------------------------------------


class PolicyNetwork(nn.Module):
    """See `networks.Policy`. Called with observations (and a context), it gives a distribution."""

    def __init__(self, network: Policy, spaces: Spaces, generator: Generator, normalise: bool) -> None:
        super().__init__()
        self._network, self._width = network, network.width or spaces.actions
        self._discrete = spaces.discrete and not network.width
        self._both = network.state_std and not self._discrete
        self.observer = Observer(network.body, spaces, generator, normalise)
        outputs = self._width * (2 if self._both else 1)
        gain = 0.01 if network.body.init == "orthogonal" else 1.0
        self.layers = Layers(self.observer.width + network.context, outputs, network.body, generator, gain=gain)
        if not self._discrete and not network.state_std:
            self.log_std = nn.Parameter(torch.zeros(self._width))

    def forward(self, obs_B: Tensor, *context: Tensor) -> Distribution:
        x_BI = self.observer(obs_B)
        out_BO = self.layers(torch.cat([x_BI, *context], -1) if context else x_BI)
        if self._discrete:
            return Categorical(out_BO.log_softmax(-1))
        low, high = self._network.log_std
        if self._both:
            mean_BA, raw_BA = out_BO.split(self._width, -1)
            # Smooth, so that a deviation at a bound still has a gradient.
            log_std_BA = low + 0.5 * (high - low) * (raw_BA.tanh() + 1.0)
        else:
            mean_BA, log_std_BA = out_BO, self.log_std.clamp(low, high).expand_as(out_BO)
        if self._network.squash:
            return SquashedGaussian(mean_BA, log_std_BA)
        return Gaussian(mean_BA.tanh() if self._network.tanh_mean else mean_BA, log_std_BA)


class DeterministicNetwork(nn.Module):
    """See `networks.Deterministic`."""

    def __init__(self, network: Deterministic, spaces: Spaces, generator: Generator, normalise: bool) -> None:
        super().__init__()
        self.observer = Observer(network.body, spaces, generator, normalise)
        self.layers = Layers(self.observer.width + network.context, spaces.actions, network.body, generator)

    def forward(self, obs_B: Tensor, *context: Tensor) -> Tensor:
        x_BI = self.observer(obs_B)
        return self.layers(torch.cat([x_BI, *context], -1) if context else x_BI).tanh()


class EnsembleNetwork(nn.Module):
    """See `networks.Ensemble`. Members share the encoder of an observation, if there is one; the observer comes before them."""

    def __init__(self, network: Ensemble, spaces: Spaces, generator: Generator, normalise: bool) -> None:
        super().__init__()
        self._network, self._spaces = network, spaces
        self.observer = Observer(network.body, spaces, generator, normalise)
        wide = {"actions": spaces.actions, "obs": math.prod(spaces.obs)}
        outputs = network.outputs if isinstance(network.outputs, int) else wide[network.outputs]
        widths = {"obs": self.observer.width, "next_obs": self.observer.width, "action": spaces.actions}
        width = sum(widths[name] for name in network.reads) + network.context
        self._single = outputs == 1
        if network.members == 1:
            self.layers: nn.Module = Layers(width, outputs, network.body, generator)
        else:
            self.layers = StackedLayers(width, outputs, network.body, network.members, generator, gain=1.0)

    def forward(self, *inputs: Tensor) -> Tensor:
        parts = [self._read(name, value) for name, value in zip(self._network.reads, inputs, strict=False)]
        parts += inputs[len(self._network.reads) :]
        x_BI = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
        lead = x_BI.shape[:-1]
        if self._network.members == 1:
            out_MBO = self.layers(x_BI).unsqueeze(0)
        elif len(lead) == 1:
            out_MBO = self.layers(x_BI)
        else:
            out_MBO = self.layers(x_BI.reshape(-1, x_BI.shape[-1])).unflatten(1, lead)
        return out_MBO.squeeze(-1) if self._single else out_MBO

    def apart(self, *inputs: Tensor) -> Tensor:
        """Each member at inputs of its own: [members, B, ...] in, [members, B] or [members, B, outputs] out."""
        parts = [self._read(name, value) for name, value in zip(self._network.reads, inputs, strict=False)]
        x_MBI = torch.cat([*parts, *inputs[len(self._network.reads) :]], -1)
        out_MBO = self.layers(x_MBI)
        return out_MBO.squeeze(-1) if self._single else out_MBO

    def _read(self, name: str, value_B: Tensor) -> Tensor:
        if name != "action":
            return self.observer(value_B)
        return F.one_hot(value_B, self._spaces.actions).float() if self._spaces.discrete else value_B


class ScalarNetwork(nn.Module):
    """See `networks.Scalar`."""

    def __init__(self, network: Scalar) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(float(network.value)))

    def forward(self) -> Tensor:
        return self.value


def set_statistics(networks: Mapping[str, nn.Module], mean: Tensor, std: Tensor) -> None:
    """Give every network of `networks` the statistics of observations to normalise them with."""
    for network in networks.values():
        for module in network.modules():
            if isinstance(module, Observer):
                module.set_statistics(mean, std)


class Remembers(Protocol):
    """A network that is filled with recorded steps."""

    def remember(self, obs_R: Tensor, action_RA: Tensor) -> None: ...


def remember(
    networks: Mapping[str, nn.Module], described: Mapping[str, Network], source: str, obs_R: Tensor, action_RA: Tensor
) -> None:
    """Give every network that looks things up in the data set `source` its steps."""
    for name, description in described.items():
        if isinstance(description, Neighbours) and description.source == source:
            cast(Remembers, networks[name]).remember(obs_R, action_RA)
