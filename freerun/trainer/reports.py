"""What a trainer answers, whatever it trains."""

from collections.abc import Mapping
from dataclasses import dataclass

from freerun.types import Metric, WeightsRef


@dataclass(frozen=True, slots=True)
class AccumulateReport:
    """Groups of the step so far, and its trajectories that wait for a micro-batch to fill up."""

    groups: int
    waiting: int


@dataclass(frozen=True, slots=True)
class StepReport:
    """A finished step: the version it published, where, what was measured, and the seconds of each phase."""

    version: int
    ref: WeightsRef
    metrics: Mapping[str, Metric]
    seconds: Mapping[str, float]
