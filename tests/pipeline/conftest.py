"""One world for the tests of whole runs: to teach its model takes long."""

import pytest

from tests.pipeline.loop_world import make_world


@pytest.fixture(scope="session")
def taught_world(tmp_path_factory):
    """Nothing is written there but `cache`, of compiled programs."""
    return make_world(tmp_path_factory.mktemp("taught") / "world")
