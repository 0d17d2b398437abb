"""Whatever a reader is given, it returns something usable or raises an error of ours. `make fuzz` tries many more inputs."""

import shutil

import hypothesis
import pytest
from fuzzing.inputs import scratch
from fuzzing.targets import TARGETS


@pytest.fixture(scope="module", autouse=True)
def _clean():
    yield
    shutil.rmtree(scratch())
    scratch.cache_clear()


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_read_or_refused_by_name(name):
    target = TARGETS[name]

    @hypothesis.given(target.inputs)
    @hypothesis.settings(max_examples=40, suppress_health_check=list(hypothesis.HealthCheck))
    def check(value):
        target.check(value)

    check()
