"""The blocking client in many threads."""

import json
import subprocess
import sys

import pytest

from detector_bridge.client import BlockingClient, ClientConfig
from detector_bridge.messages import Request
from tests.detector_bridge.sidecar import ROOT, encode, picture
from tests.detector_bridge.threads import run_together


@pytest.mark.slow
@pytest.mark.main
@pytest.mark.parametrize("count", [2, 4, 16])
def test_the_first_clients_of_a_process_may_start_together(served, count):
    """In a separate process each time: only the first clients of one could be at odds."""
    command = [sys.executable, "-m", "tests.detector_bridge.threads", served.address, str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert sorted(json.loads(done.stdout)) == [[number, *[60 + number] * 3] for number in range(count)]


def test_many_threads_share_one_client(served):
    widths: list[int] = []
    with BlockingClient(ClientConfig((served.address,), timeout=60)) as client:

        def work(number: int) -> None:
            request = Request(encode(picture(number, 60 + number, 60)), ("dog",))
            widths.extend(client.submit(request).result().width - number for _ in range(3))

        run_together(work, 12)
    assert widths == [60] * 36


def test_clients_come_and_go_in_threads(served):
    """Closing one must not disturb those of other threads."""
    answered: list[int] = []

    def work(number: int) -> None:
        for _ in range(4):
            with BlockingClient(ClientConfig((served.address,), timeout=60)) as client:
                answered.append(client.submit(Request(encode(picture(number, 60, 60)), ("dog",))).result().height)

    run_together(work, 6)
    assert answered == [60] * 24
