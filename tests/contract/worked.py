"""What hand-worked tests of losses are made of: a row of tokens, and the slope of its loss at each of them.

Shapes: B trajectories, T action tokens; one row unless a test gives more.
"""

import torch

from freerun.types import Batch


def log(*values):
    """Log-probs [1, T]."""
    return torch.tensor([values], dtype=torch.float64).log()


def batch_of(advantage, **columns):
    """A batch of one row with these advantages, all of its tokens real."""
    advantage_BT = torch.tensor([advantage], dtype=torch.float64)
    return Batch({"mask": torch.ones_like(advantage_BT, dtype=torch.bool), "advantage": advantage_BT, **columns})


def slopes(config, logp_BT, batch):
    """Derivative of the first term's element-wise loss with respect to each log-prob of the first row, and the values of its
    metrics. The algorithm has looked at the batch before, if it does."""
    algorithm = config.build()
    state = algorithm.probe({"logp": logp_BT}, batch, algorithm.init()) if algorithm.probe else algorithm.init()
    logp_BT = logp_BT.clone().requires_grad_()
    out = algorithm.terms[0].loss({"logp": logp_BT}, batch, state)
    out.loss.sum().backward()
    return logp_BT.grad[0].tolist(), {name: metric.value for name, metric in out.metrics.items()}


def same_gradient(tools, toy, left, right, **columns):
    """Whether two configs have one gradient on the toy's batch, with `columns` replaced."""
    batch = toy.batch.with_columns(**columns)
    gradients = [tools.step_gradient(config.build(), toy, batch) for config in (left, right)]
    return torch.allclose(*gradients, rtol=1e-6, atol=1e-8)
