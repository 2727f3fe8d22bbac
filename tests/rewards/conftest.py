"""Two small models, and a running sidecar of each for all tests that only ask."""

import pytest

from tests.detector_bridge.sidecar import sidecar
from tests.detector_bridge.tiny_detector import write_transformers


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return write_transformers(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="session")
def served(model):
    with sidecar(model) as running:
        yield running


@pytest.fixture(scope="session")
def another(tmp_path_factory):
    """Of a model with other weights."""
    with sidecar(write_transformers(tmp_path_factory.mktemp("another"), seed=1)) as running:
        yield running
