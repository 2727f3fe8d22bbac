"""One small model and one running sidecar for all tests that only ask."""

import pytest

from tests.detector_bridge.sidecar import sidecar
from tests.detector_bridge.tiny_detector import write_transformers


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return write_transformers(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="session")
def served(model):
    with sidecar(model, "--batch-size", "8") as running:
        yield running
