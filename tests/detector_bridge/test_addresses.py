"""Addresses that gRPC would try until the time is over are refused at once."""

import subprocess
import sys
import time

import pytest

from detector_bridge.addresses import Security, check_address, check_target
from detector_bridge.client import BlockingClient, ClientConfig
from detector_bridge.errors import InputError
from tests.detector_bridge.sidecar import ROOT

WRONG = [
    ("http://127.0.0.1:50051", "leave out http://"),
    ("https://gpu-1:50051", "leave out https://"),
    ("grpc://gpu-1:50051", "leave out grpc://"),
    ("tcp://gpu-1:50051/", "leave out tcp://"),
    ("gpu-1", "got no port"),
    ("gpu-1:", "got no port"),
    (":50051", "got no host"),
    ("50051", "got no port"),
    ("", "got nothing"),
    ("gpu-1: 50051", "got a space"),
    ("gpu 1:50051", "got a space"),
    (" gpu-1:50051", "got a space"),
    ("gpu-1:50051\n", "got a space"),
    ("gpu-1:port", "got port port"),
    ("gpu-1:0x50", "got port 0x50"),
    ("gpu-1:-1", "got port -1"),
    ("gpu-1:65536", "got port 65536"),
    ("gpu-1:５００５１", "got port"),
    ("::1:50051", "IPv6 address into brackets"),
    ("fe80::1", "IPv6 address into brackets"),
    ("gpu-1:50051:50051", "IPv6 address into brackets"),
    ("user@gpu-1:50051", "got host user@gpu-1"),
    ("gpu-1/detector:50051", "got host gpu-1/detector"),
    ("unix:", "got a path of 0 letters"),
    ("unix://", "got a path of 0 letters"),
    ("unix:" + "/x" * 60, "got a path of 120 letters"),
]
RIGHT = (
    "127.0.0.1:50051", "gpu-1:50051", "detector-0.detector:1", "my_host.example.org:65535", "[::1]:50051",
    "[fe80::1%eth0]:50051", "unix:/tmp/s", "unix:relative/s", "unix:///tmp/s", "dns:///gpu-1:50051", "xds:///detector",
    "ipv4:10.0.0.1:50051,10.0.0.2:50051", "bücher.example:50051",
)  # fmt: skip


@pytest.mark.parametrize(("address", "named"), WRONG)
def test_wrong_ones_are_named(address, named):
    with pytest.raises(InputError) as caught:
        check_target(address)
    assert "expected HOST:PORT, [IPV6]:PORT or unix:PATH" in str(caught.value)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        check_address(address, Security())
    with pytest.raises(InputError):
        BlockingClient(ClientConfig(("127.0.0.1:1", address)))


@pytest.mark.parametrize("address", RIGHT)
def test_right_ones_pass(address):
    check_target(address)


def test_only_a_server_may_take_any_port():
    check_address("127.0.0.1:0", Security())
    with pytest.raises(InputError, match="got port 0; it is a number from 1 to 65535"):
        check_target("127.0.0.1:0")


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "localhost", "127.0.0.1:9,,127.0.0.1:9", "127.0.0.1:9,"])
def test_the_command_does_not_wait(address):
    command = [sys.executable, "-m", "detector_bridge.client", "--address", address, "--image", "x.jpg"]
    started = time.monotonic()
    done = subprocess.run([*command, "--phrases", "dog"], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 2
    assert done.stderr.startswith("error: address ")
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["timeout", "connect_timeout", "in_flight"])
def test_numbers_that_nothing_can_be_waited_for(name, value):
    with pytest.raises(InputError, match=f"{name}: expected a finite number above 0, got {value}"):
        ClientConfig(("127.0.0.1:9",), **{name: value})


def test_a_refused_number_and_a_lost_server_are_one_line_each(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"x")
    command = [sys.executable, "-m", "detector_bridge.client", "--address", "127.0.0.1:9", "--phrases", "dog"]
    command += ["--image", tmp_path / "x.jpg", "--timeout"]
    for seconds, said in (("nan", "error: timeout: expected"), ("0.2", f"error: {tmp_path / 'x.jpg'}: no detections")):
        done = subprocess.run([*command, seconds], cwd=ROOT, capture_output=True, text=True, timeout=50)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(said)
