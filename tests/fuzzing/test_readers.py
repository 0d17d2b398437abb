"""Whatever a reader is given, it returns something usable or raises an error of ours. `make fuzz` tries many more inputs."""

import shutil

import hypothesis
import pytest
from fuzzing.control_targets import NEEDS, whole_minari
from fuzzing.inputs import scratch
from fuzzing.targets import TARGETS


@pytest.fixture(scope="module", autouse=True)
def _clean():
    yield
    shutil.rmtree(scratch())
    for made in (scratch, whole_minari):
        made.cache_clear()


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_read_or_refused_by_name(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed")
    target = TARGETS[name]

    @hypothesis.given(target.inputs)
    @hypothesis.settings(max_examples=40, suppress_health_check=list(hypothesis.HealthCheck))
    def check(value):
        target.check(value)

    check()
