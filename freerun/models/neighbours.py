"""The recorded action of whoever stood nearest: a data set as a network without parameters. Needs the extra `control`.

Shapes: B rows, R recorded steps, D width of an observation and an action side by side, A width of an action.
"""

from typing import Any

import torch
from torch import Tensor, nn

from freerun.errors import ConfigError
from freerun.models.control import Observer
from freerun.networks import Neighbours

try:
    from scipy.spatial import KDTree
except ImportError as error:
    raise ConfigError(
        "nearest neighbours need a package that is not installed",
        given=str(error),
        expected="scipy",
        todo="pip install 'freerun[control]'",
    ) from error


class NeighboursNetwork(nn.Module):
    """See `networks.Neighbours`. `observer` turns observations into the vectors whose distance counts; when it learns other
    statistics, the tree is built anew."""

    def __init__(self, network: Neighbours, observer: Observer) -> None:
        super().__init__()
        self._network, self.observer = network, observer
        self._obs_R: Tensor | None = None
        self._action_RA = torch.zeros(0)
        self._tree: KDTree | None = None
        self._statistics = observer.statistics

    def remember(self, obs_R: Tensor, action_RA: Tensor) -> None:
        """These are the recorded steps. Of more than `most`, evenly spaced ones are kept."""
        every = -(-len(obs_R) // self._network.most)
        self._obs_R, self._action_RA = obs_R[::every], action_RA[::every]
        self._tree = None

    @torch.no_grad()
    def forward(self, obs_B: Tensor, action_BA: Tensor) -> Tensor:
        """Actions [B, A], without gradient. Raises `ConfigError` if there is nothing to be near to."""
        if self._obs_R is None:
            raise ConfigError(
                "an algorithm looks for neighbours in a data set that the run does not have",
                given=f"no source of the name '{self._network.source}'",
                expected="a DatasetConfig of that name among the sources",
                todo="add it to `sources` in the recipe",
            )
        _, index_B = self._current(self._obs_R).query(self._keys(obs_B, action_BA))
        return self._action_RA[torch.from_numpy(index_B)].to(action_BA.device)

    def _current(self, obs_R: Tensor) -> KDTree:
        """The tree over what is remembered, as the observer sees it now."""
        statistics = self.observer.statistics
        if self._tree is None or not torch.equal(statistics.to(self._statistics.device), self._statistics):
            self._statistics = statistics.clone()
            self._tree = KDTree(self._keys(obs_R.to(statistics.device), self._action_RA.to(statistics.device)))
        return self._tree

    def _keys(self, obs_R: Tensor, action_RA: Tensor) -> Any:
        seen_R = self._network.obs_scale * self.observer(obs_R)
        return torch.cat([seen_R, action_RA], -1).double().cpu().numpy()
