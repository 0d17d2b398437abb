"""Asynchronous, off-policy reinforcement learning in native PyTorch."""

__version__ = "0.1.0"
