"""Telling two worlds apart by their transitions: what H2O and domain-adaptive rewards are made of.

Shapes: B rows, K next observations per row, C = 2 classes: real first, simulated second.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BOUND = 2.0
"""Largest size of a discriminator's logit: a ratio of dynamics is at most e^4."""
REAL, SIMULATED = 0, 1


def bounded(raw_BC: Tensor) -> Tensor:
    """Logits from what a discriminator gives."""
    return BOUND * raw_BC.tanh()


def classification_loss(logits_sa_BC: Tensor, logits_sas_BC: Tensor, label: int) -> Tensor:
    """Cross-entropy of both discriminators, [B]. That of (s, a, s') sees the sum of logits, so that its own are about what s'
    adds to (s, a) (DARC, arXiv 2006.13916)."""
    label_B = torch.full((len(logits_sa_BC),), label, device=logits_sa_BC.device)
    alone_B = F.cross_entropy(logits_sa_BC, label_B, reduction="none")
    return alone_B + F.cross_entropy(logits_sa_BC + logits_sas_BC, label_B, reduction="none")


def log_ratio(logits_sas_BC: Tensor) -> Tensor:
    """`log P_real(s'|s, a) - log P_sim(s'|s, a)`, [B]. Of `log p_sas - log p_sa`, real less simulated, normalisers and (s, a)
    cancel, and the logits of s' are left."""
    return logits_sas_BC[..., REAL] - logits_sas_BC[..., SIMULATED]


def gap_shares(log_ratio_KB: Tensor, largest: float) -> Tensor:
    """How much each simulated row is to be held down, [B], adding up to 1: in proportion to the mean over K scattered next
    observations of `log P_sim - log P_real`, between almost nothing and `largest` (H2O, arXiv 2206.13464, eq. 11)."""
    far_B = (-log_ratio_KB).mean(0).clamp(1e-6, largest)
    return (far_B / far_B.sum()).detach()
