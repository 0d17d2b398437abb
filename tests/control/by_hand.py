"""Stand-ins of a few lines for networks, and a batch of one row, so that losses can be worked out by hand."""

import torch

from freerun.transitions import transitions


def tensor(*numbers):
    return torch.tensor(numbers)


def batch(**columns):
    """One row: at 0, action 0.5 is paid 1 and leads to 1, whose value counts half."""
    defaults = {"obs": tensor(0.0)[:, None], "next_obs": tensor(1.0)[:, None], "action": tensor(0.5)[:, None]}
    return transitions({**defaults, "reward": tensor(1.0), "discount": tensor(0.5), **columns})


class Fixed:
    """A policy that always does the same, so that expectations are values."""

    def __init__(self, action, logp=-1.0):
        self.action, self.logp = action, logp

    def __call__(self, obs, *context):
        return self

    def sample(self, generator=None):
        return torch.full((1, 1), self.action, requires_grad=True), torch.full((1,), self.logp)

    def log_prob(self, action):
        return torch.full((len(action),), self.logp, requires_grad=True)

    def entropy(self):
        return torch.zeros(1)

    @property
    def mode(self):
        return torch.full((1, 1), self.action, requires_grad=True)


class Number:
    """A trained number."""

    def __init__(self, value):
        self.value = value

    def __call__(self):
        return torch.tensor(self.value, requires_grad=True)


def values_of(method, networks, rows, term=0, state=None, **changes):
    """Loss and watched means of a term."""
    algorithm = method.Config(**changes).build()
    state = algorithm.init() if state is None else state
    out = algorithm.terms[term].loss(networks, rows, state, torch.Generator().manual_seed(0))
    return out.loss.tolist(), {name: value.float().mean().item() for name, value in out.watch.items()}
