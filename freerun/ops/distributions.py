"""Distributions over actions: samples with gradient, log-probs, entropies, modes.

Continuous actions lie in [-1, 1]; densities are with respect to that range. Noise comes from the generator that is given, and
from nothing else.

Shapes: B rows (any leading dimensions), A width of a continuous action, or number of discrete ones.
"""

import math
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

EDGE = 1.0 - 1e-6
"""Where a squashed action is taken to be when it has reached a bound in rounding: its inverse is then finite."""
LOG_2 = math.log(2.0)
LOG_SQRT_TAU = 0.5 * math.log(2.0 * math.pi)


class Distribution(Protocol):
    """What a policy gives for observations."""

    def sample(self, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Actions, with gradient where they are continuous, and their log-probs [B]."""
        ...

    def log_prob(self, action: Tensor) -> Tensor: ...

    def entropy(self) -> Tensor:
        """[B], in nats. Of a squashed Gaussian: of the Gaussian before it is squashed, which bounds it from above."""
        ...

    @property
    def mode(self) -> Tensor:
        """The action to be judged by."""
        ...


class Gaussian(NamedTuple):
    """Independent normal actions, not bounded."""

    mean_BA: Tensor
    log_std_BA: Tensor

    def sample(self, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        noise_BA = torch.randn(self.mean_BA.shape, generator=generator, device=self.mean_BA.device)
        action_BA = torch.addcmul(self.mean_BA, self.log_std_BA.exp(), noise_BA)
        return action_BA, _log_normal(noise_BA, self.log_std_BA)

    def log_prob(self, action: Tensor) -> Tensor:
        return _log_normal((action - self.mean_BA) * (-self.log_std_BA).exp(), self.log_std_BA)

    def entropy(self) -> Tensor:
        return (self.log_std_BA + (LOG_SQRT_TAU + 0.5)).expand_as(self.mean_BA).sum(-1)

    @property
    def mode(self) -> Tensor:
        return self.mean_BA


class SquashedGaussian(NamedTuple):
    """`tanh(u)` of independent normal `u` (Haarnoja et al. 2018, appendix C)."""

    mean_BA: Tensor
    log_std_BA: Tensor

    def sample(self, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        noise_BA = torch.randn(self.mean_BA.shape, generator=generator, device=self.mean_BA.device)
        u_BA = torch.addcmul(self.mean_BA, self.log_std_BA.exp(), noise_BA)
        return u_BA.tanh(), _log_squashed(noise_BA, self.log_std_BA, u_BA)

    def log_prob(self, action: Tensor) -> Tensor:
        u_BA = action.clamp(-EDGE, EDGE).atanh()
        return _log_squashed((u_BA - self.mean_BA) * (-self.log_std_BA).exp(), self.log_std_BA, u_BA)

    def entropy(self) -> Tensor:
        return (self.log_std_BA + (LOG_SQRT_TAU + 0.5)).expand_as(self.mean_BA).sum(-1)

    @property
    def mode(self) -> Tensor:
        return self.mean_BA.tanh()


class Categorical(NamedTuple):
    """Discrete actions; `logp_BA` are normalised log-probs."""

    logp_BA: Tensor

    def sample(self, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        # The largest of log-probs plus Gumbel noise is a draw; -log of a unit exponential is Gumbel.
        noise_BA = torch.empty_like(self.logp_BA, requires_grad=False).exponential_(generator=generator).log()
        action_B = (self.logp_BA.detach() - noise_BA).argmax(-1)
        return action_B, self.log_prob(action_B)

    def log_prob(self, action: Tensor) -> Tensor:
        return self.logp_BA.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        return -(self.logp_BA.exp() * self.logp_BA).sum(-1)

    @property
    def mode(self) -> Tensor:
        return self.logp_BA.argmax(-1)


def repeated(policy: Distribution, num: int) -> Distribution:
    """`num` copies side by side, in front: samples are [num, B, ...], each drawn for itself."""
    match policy:
        case Gaussian() | SquashedGaussian() | Categorical():
            return type(policy)(*(part.expand(num, *part.shape) for part in policy))
    raise TypeError(f"copies of a {type(policy).__name__} are not defined")


def still(policy: Distribution) -> Distribution:
    """The same distribution as a constant: what it says of an action has a gradient in the action alone."""
    match policy:
        case Gaussian() | SquashedGaussian() | Categorical():
            return type(policy)(*(part.detach() for part in policy))
    raise TypeError(f"a {type(policy).__name__} cannot be held still")


def log_slope(u_BA: Tensor) -> Tensor:
    """`sum log(1 - tanh(u)^2)` over the last dimension, stable for large |u|."""
    return 2.0 * (_half_log_slope(u_BA).sum(-1) + LOG_2 * u_BA.shape[-1])


def _half_log_slope(u_BA: Tensor) -> Tensor:
    """Half the logarithm of the slope of tanh, without log 2: `u - log(1 + exp(2u))`."""
    return torch.sub(u_BA, F.softplus(u_BA, beta=2.0), alpha=2.0)


def _log_normal(noise_BA: Tensor, log_std_BA: Tensor) -> Tensor:
    """Log density of `mean + std * noise`."""
    return -LOG_SQRT_TAU * noise_BA.shape[-1] - _distance(noise_BA, log_std_BA).sum(-1)


def _log_squashed(noise_BA: Tensor, log_std_BA: Tensor, u_BA: Tensor) -> Tensor:
    """Log density of `tanh(u)` where `u` is `mean + std * noise`: `_log_normal - log_slope` in half as many operations, which
    is what counts for actions of few dimensions."""
    parts_BA = torch.add(_distance(noise_BA, log_std_BA), _half_log_slope(u_BA), alpha=2.0)
    return -(LOG_SQRT_TAU + 2.0 * LOG_2) * noise_BA.shape[-1] - parts_BA.sum(-1)


def _distance(noise_BA: Tensor, log_std_BA: Tensor) -> Tensor:
    """What a normal density falls off by, of each dimension."""
    return torch.addcmul(log_std_BA, noise_BA, noise_BA, value=0.5)


def gaussian_noise(action_BA: Tensor, std: float, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """`action` with normal noise, clipped to [-1, 1], and the log density of what was drawn before the clip."""
    log_std_BA = torch.full_like(action_BA, math.log(std))
    noisy_BA, logp_B = Gaussian(action_BA, log_std_BA).sample(generator)
    return noisy_BA.clamp(-1.0, 1.0), logp_B


def epsilon_greedy(best_B: Tensor, num: int, epsilon: float, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """`best_B`, or one of `num` actions at random with probability `epsilon`; log-probs of what was drawn."""
    other_B = torch.randint(num, best_B.shape, generator=generator, device=best_B.device)
    explore_B = torch.rand(best_B.shape, generator=generator, device=best_B.device) < epsilon
    action_B = torch.where(explore_B, other_B, best_B)
    share = epsilon / num
    return action_B, torch.where(action_B == best_B, 1.0 - epsilon + share, share).log()
