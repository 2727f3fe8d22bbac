"""The server in a separate process, over real sockets, asked by the real client and by strangers."""

import asyncio
import functools
import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import grpc
import numpy as np
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detector_bridge import detector_pb2 as pb
from detector_bridge import detector_pb2_grpc as pb_grpc
from detector_bridge.backends.transformers import TransformersBackend
from detector_bridge.client import ClientConfig, DetectorClient, DetectorError
from detector_bridge.images import decode
from detector_bridge.messages import Answer, Request
from detector_bridge.prompts import find_phrases, make_prompts
from detector_bridge.refusal import RefusedError
from tests.detector_bridge.sidecar import ROOT, encode, failed_start, picture, sidecar, wait_until
from tests.detector_bridge.test_images import png_header

PHRASES = ("dog", "traffic light", "light", "hot dog", "red circle", "person", "Dog.", "surfboard")
PHOTOS = sorted((ROOT.parent / "shared" / "data" / "photos").glob("*.jpg"))[:4]


def ask(address: str, requests, **config) -> list[Answer | RefusedError]:
    async def run():
        async with DetectorClient(ClientConfig((address,), **config)) as client:
            return [answer async for answer in client.detect(requests)]

    return asyncio.run(run())


def directly(model, image: bytes, phrases, box_threshold=0.25, text_threshold=0.25) -> dict:
    """The backend called in this process, one picture and one prompt at a time."""
    backend = _loaded(model)
    pixels, found = backend.prepare(decode(image, 10**8)), {}
    for prompt in make_prompts(phrases, backend.tokenize, backend.max_tokens):
        scores = backend.detect(pixels[None], [prompt.tokens], [0])
        found |= find_phrases(prompt.spans, scores.tokens[0], scores.boxes_xyxy[0], box_threshold, text_threshold)
    return found


@functools.cache
def _loaded(model) -> TransformersBackend:
    return TransformersBackend.load(model)


def assert_equal(answer: Answer, found: dict) -> None:
    for detection in answer.detections:
        expected = found[detection.phrase.lower().rstrip(".")]
        assert detection.present == expected.present
        assert detection.score == pytest.approx(expected.score, abs=1e-4)
        best = slice(0, 100)  # the server's limit
        np.testing.assert_allclose(detection.scores, expected.scores[best], atol=1e-4)
        np.testing.assert_allclose(detection.boxes_xyxy, expected.boxes_xyxy[best], atol=1e-4)


def test_answers_equal_the_backend(served, model):
    images = [encode(picture(seed, *size)) for seed, size in enumerate([(160, 120), (160, 120), (90, 200), (400, 12)])]
    answers = ask(served.address, [Request(image, PHRASES) for image in images])
    for image, answer in zip(images, answers, strict=True):
        assert isinstance(answer, Answer)
        assert [found.phrase for found in answer.detections] == list(PHRASES)
        assert answer.detections[0].score == answer.detections[6].score  # "dog" and "Dog."
        assert_equal(answer, directly(model, image, PHRASES))
    verdicts = {tuple(found.present for found in answer.detections) for answer in answers}
    assert len({score for answer in answers for score in (found.score for found in answer.detections)}) > 20
    assert len(verdicts) > 1, "verdicts that are all alike would show nothing"


@pytest.mark.skipif(not PHOTOS, reason="real photographs are not here")
def test_photographs(served, model):
    answers = ask(served.address, [Request(path, PHRASES) for path in PHOTOS])
    for path, answer in zip(PHOTOS, answers, strict=True):
        assert_equal(answer, directly(model, path.read_bytes(), PHRASES))


def test_a_batch_equals_one_by_one(served):
    requests = [Request(encode(picture(seed)), PHRASES[seed % 3 :]) for seed in range(20)]
    together = ask(served.address, requests)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = ask(served.address, [request])
        for one, other in zip(alone.detections, answer.detections, strict=True):
            assert one.present == other.present
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
            np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=1e-4)


def test_thresholds_of_a_request(served, model):
    image = encode(picture(3))
    low, high, given_ = ask(
        served.address,
        [Request(image, PHRASES, 0.0, 0.0), Request(image, PHRASES, 1.0, 1.0), Request(image, PHRASES, 0.3, 0.45)],
    )
    assert all(len(found.scores) == 40 for found in low.detections)  # every query
    assert not any(found.present for found in high.detections)
    # On a busy machine they may be in different batches.
    np.testing.assert_allclose(*([found.score for found in answer.detections] for answer in (low, high)), atol=1e-4)
    assert_equal(given_, directly(model, image, PHRASES, 0.3, 0.45))


def test_long_lists_are_split_and_merged(served, model):
    """Each phrase is answered as in a prompt of its chunk; more phrases than one prompt holds change none before."""
    words = [f"{color} {thing}" for color in ("red", "green", "blue", "old") for thing in PHRASES[:6] * 4]
    many = tuple(f"{phrase} {i}" for i, phrase in enumerate(words))
    image = encode(picture(4))
    (answer,) = ask(served.address, [Request(image, many)])
    assert [found.phrase for found in answer.detections] == list(many)
    assert_equal(answer, directly(model, image, many))


@pytest.mark.parametrize(
    ("request_", "code", "named"),
    [
        (Request(encode(picture(0), "JPEG")[:600], ("dog",)), "INVALID_IMAGE", "cannot be read"),
        (Request(b"", ("dog",)), "INVALID_IMAGE", "0 bytes"),
        (Request(png_header(30_000, 30_000), ("dog",)), "IMAGE_TOO_LARGE", "30000 x 30000"),
        (Request(b"\0" * (33 << 20), ("dog",)), "IMAGE_TOO_LARGE", "bytes"),
        (Request(b"\0" * (60 << 20), ("dog",)), "IMAGE_TOO_LARGE", "bytes"),
        (Request(encode(picture(0, 3000, 1)), ("dog",)), "INVALID_IMAGE", "3000 x 1"),
        (Request(encode(picture(0)), ()), "NO_PHRASES", "at least one"),
        (Request(encode(picture(0)), ("dog", "")), "EMPTY_PHRASE", "phrase 1 of 2"),
        (Request(encode(picture(0)), tuple(f"dog {i}" for i in range(5000))), "TOO_MANY_PHRASES", "5000"),
        (Request(encode(picture(0)), ("dog " * 300,)), "PHRASE_TOO_LONG", "300 tokens"),
        (Request(encode(picture(0)), ("dog",), 1.5), "INVALID_THRESHOLD", "box_threshold is 1.5"),
        (Request(encode(picture(0)), ("dog",), 0.5, -0.1), "INVALID_THRESHOLD", "text_threshold is -0.1"),
        (Request(encode(picture(0)), ("dog",), float("nan")), "INVALID_THRESHOLD", "nan"),
    ],
)
def test_a_bad_request_is_refused_and_the_stream_continues(served, request_, code, named):
    good = Request(encode(picture(5)), PHRASES)
    before, refused, after = ask(served.address, [good, request_, good])
    assert isinstance(refused, RefusedError)
    assert refused.code == code
    assert named in refused.message
    assert "\n" not in refused.message
    assert [found.score for found in before.detections] == [found.score for found in after.detections]


async def raw(address: str, requests, **options) -> list[pb.DetectReply]:
    async with grpc.aio.insecure_channel(address) as channel:
        call = pb_grpc.DetectorStub(channel).Detect(iter(requests), **options)
        return [reply async for reply in call]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.builds(
            pb.DetectRequest,
            id=st.text(max_size=5),
            image=st.binary(max_size=300) | st.just(encode(picture(1, 60, 60))),
            phrases=st.lists(st.text(max_size=30), max_size=5),
            box_threshold=st.none() | st.floats(width=32),
            timeout_ms=st.integers(0, 2**32 - 1),
        ),
        max_size=8,
    )
)
def test_random_requests_each_get_one_reply(served, requests):
    replies = asyncio.run(raw(served.address, requests))
    assert sorted(reply.id for reply in replies) == sorted(request.id for request in requests)
    assert all(reply.WhichOneof("result") for reply in replies)
    assert all(reply.error.code != pb.INTERNAL for reply in replies)
    assert served.process.poll() is None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=400), st.booleans())
def test_random_bytes_on_the_port_do_no_harm(served, content, http2):
    host, port = served.address.split(":")
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if http2 else b""
    with socket.create_connection((host, int(port)), timeout=5) as stranger:
        stranger.sendall(preface + content)
    assert served.process.poll() is None


def test_a_client_that_speaks_no_grpc(served):
    host, port = served.address.split(":")
    browser = http.client.HTTPConnection(host, int(port), timeout=5)
    browser.request("GET", "/")
    with pytest.raises((http.client.HTTPException, OSError)):
        browser.getresponse()
    assert isinstance(ask(served.address, [Request(encode(picture(0)), ("dog",))])[0], Answer)


def test_malformed_messages_break_their_own_call_only(served):
    async def garbage():
        async with grpc.aio.insecure_channel(served.address) as channel:
            method = f"/{pb.DESCRIPTOR.services_by_name['Detector'].full_name}/Detect"
            call = channel.stream_stream(method)(iter([b"\xff\xff\xff\xff"]))
            return [reply async for reply in call]

    with pytest.raises(grpc.aio.AioRpcError):
        asyncio.run(garbage())
    assert isinstance(ask(served.address, [Request(encode(picture(0)), ("dog",))])[0], Answer)


def test_info_health_and_reflection(served, model):
    with grpc.insecure_channel(served.address) as channel:
        info = pb_grpc.DetectorStub(channel).Info(pb.InfoRequest())
        assert (info.backend, info.model, list(info.devices), info.dtype) == (
            "transformers",
            model.name,
            ["cpu"],
            "float32",
        )
        assert info.digest == TransformersBackend.load(model).digest
        assert (info.box_threshold, info.text_threshold) == (0.25, 0.25)
        assert (info.limits.tokens, info.limits.phrases) == (256, 1000)
        assert {"torch", "transformers"} <= set(info.versions)
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "detector_bridge.v1.Detector"):
            reply = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        (listed,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter(asked))
        names = {service.name for service in listed.list_services_response.service}
        assert {"detector_bridge.v1.Detector", "grpc.health.v1.Health"} <= names


@pytest.mark.slow
@pytest.mark.main
def test_a_request_whose_time_is_over_is_not_run(model):
    with sidecar(model, "--batch-size", "1") as running:
        image = encode(picture(0))
        requests = [pb.DetectRequest(id=str(i), image=image, phrases=["dog"]) for i in range(40)]
        requests += [pb.DetectRequest(id="late", image=image, phrases=["dog"], timeout_ms=1)]
        replies = {reply.id: reply for reply in asyncio.run(raw(running.address, requests))}
    assert replies["late"].error.code == pb.DEADLINE_EXCEEDED
    assert all(replies[str(i)].HasField("detections") for i in range(40))


@pytest.mark.slow
@pytest.mark.main
def test_a_reader_that_never_reads_stops_nobody_else(model):
    """Its requests fill the room of one stream, and no more."""

    async def run(address):
        async with grpc.aio.insecure_channel(address) as channel:
            call = pb_grpc.DetectorStub(channel).Detect()
            image = encode(picture(0))

            async def send():
                for i in range(500):
                    await call.write(pb.DetectRequest(id=str(i), image=image, phrases=["dog"] * 900))

            sending = asyncio.create_task(send())
            async with DetectorClient(ClientConfig((address,), timeout=60)) as client:
                for seed in range(3):
                    assert isinstance(await client.ask(Request(encode(picture(seed)), ("dog",))), Answer)
            sending.cancel()
            call.cancel()

    with sidecar(model, "--queue", "70") as running:
        asyncio.run(run(running.address))


@pytest.mark.slow
def test_a_cancelled_stream_leaves_the_queue(model):
    async def run(address):
        async with grpc.aio.insecure_channel(address) as channel:
            for _ in range(5):
                call = pb_grpc.DetectorStub(channel).Detect()
                for i in range(20):
                    await call.write(pb.DetectRequest(id=str(i), image=encode(picture(i)), phrases=["dog"]))
                call.cancel()
        async with DetectorClient(ClientConfig((address,), timeout=20)) as client:
            await client.ask(Request(encode(picture(0)), ("dog",)))

    with sidecar(model, "--queue", "20") as running:
        asyncio.run(run(running.address))
        wait_until(lambda: running.process.poll() is None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def metrics(port: int) -> dict[str, float]:
    """What Prometheus would read."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


@pytest.mark.slow
@pytest.mark.main
def test_sigterm_answers_what_was_read_and_ends(model):
    port = free_port()

    def all_read() -> bool:
        values = metrics(port)
        answered = values.get('detector_requests_total{result="OK"}', 0)
        return 1 <= answered <= 30 == answered + values["detector_requests_in_flight"]

    async def run(running):
        async with grpc.aio.insecure_channel(running.address) as channel:
            call = pb_grpc.DetectorStub(channel).Detect()
            for i in range(30):
                await call.write(pb.DetectRequest(id=str(i), image=encode(picture(i)), phrases=["dog"]))
            await asyncio.to_thread(wait_until, all_read)
            running.process.send_signal(signal.SIGTERM)
            replies = []
            while (reply := await call.read()) is not grpc.aio.EOF:
                replies.append(reply)
            assert await call.code() == grpc.StatusCode.OK
            return replies

    with sidecar(model, "--metrics-port", str(port)) as running:
        replies = asyncio.run(run(running))
        assert running.process.wait(20) == 0
        log = [json.loads(line) for line in running.process.stderr.read().splitlines()]
    assert all(reply.HasField("detections") for reply in replies)
    assert len({reply.id for reply in replies}) == len(replies) == 30
    assert [line["message"] for line in log] == ["draining", "ended"]
    assert all({"time", "level", "logger"} <= set(line) for line in log)


@pytest.mark.slow
@pytest.mark.main
def test_metrics(model):
    port = free_port()
    with sidecar(model, "--metrics-port", str(port)) as running:
        ask(running.address, [Request(encode(picture(i)), ("dog",)) for i in range(6)] + [Request(b"", ("dog",))])
        values = metrics(port)
    assert values['detector_requests_total{result="OK"}'] == 6
    assert values['detector_requests_total{result="INVALID_IMAGE"}'] == 1
    assert values["detector_batch_pictures_sum"] == 6
    assert values["detector_requests_in_flight"] == 0


@pytest.mark.slow
def test_two_replicas_give_the_same_answers(model, served):
    requests = [Request(encode(picture(seed)), PHRASES) for seed in range(12)]
    with sidecar(model, "--devices", "cpu,cpu", "--batch-size", "2") as running:
        answers = ask(running.address, requests)
    for one, other in zip(answers, ask(served.address, requests), strict=True):
        for a, b in zip(one.detections, other.detections, strict=True):
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)


@pytest.mark.slow
def test_unix_socket(model, tmp_path):
    with sidecar(model, listen=f"unix:{tmp_path}/s") as running:
        assert (tmp_path / "s").stat().st_mode & 0o077 == 0
        assert isinstance(ask(running.address, [Request(encode(picture(0)), ("dog",))])[0], Answer)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Certificates of a server, a client and a stranger, each signed by its own authority; and tokens."""
    place = tmp_path_factory.mktemp("tls")
    for name in ("server", "client", "stranger"):
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        authority.cert_pem.write_to_path(place / f"{name}.ca")
        issued.private_key_pem.write_to_path(place / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(place / f"{name}.pem")
    (place / "token").write_text("open sesame\n")
    (place / "other").write_text("guess\n")
    return place


@pytest.mark.slow
@pytest.mark.main
def test_tls_with_client_certificates(model, certificates):
    pem, key, ca = (
        {name: certificates / f"{name}.{kind}" for name in ("server", "client", "stranger")}
        for kind in ("pem", "key", "ca")
    )
    request = Request(encode(picture(0)), ("dog",))
    options = ("--tls-cert", pem["server"], "--tls-key", key["server"], "--tls-client-ca", ca["client"])
    with sidecar(model, *map(str, options), listen="0.0.0.0:0") as running:
        address = "127.0.0.1:" + running.address.rpartition(":")[2]
        known = {"tls_ca": ca["server"], "tls_cert": pem["client"], "tls_key": key["client"]}
        assert isinstance(ask(address, [request], **known)[0], Answer)
        for wrong in (
            {},  # no TLS
            {"tls_ca": ca["server"]},  # no certificate
            known | {"tls_cert": pem["stranger"], "tls_key": key["stranger"]},
            known | {"tls_ca": ca["stranger"]},  # does not know the server
        ):
            with pytest.raises(DetectorError, match=rf"{address}.*UNAVAILABLE"):
                ask(address, [request], timeout=1.5, **wrong)


@pytest.mark.slow
@pytest.mark.main
def test_token(model, certificates):
    request = Request(encode(picture(0)), ("dog",))
    with sidecar(model, "--token-file", str(certificates / "token"), listen="0.0.0.0:0") as running:
        address = "127.0.0.1:" + running.address.rpartition(":")[2]
        assert isinstance(ask(address, [request], token_file=certificates / "token")[0], Answer)
        for wrong in ({}, {"token_file": certificates / "other"}):
            started = time.monotonic()
            with pytest.raises(DetectorError, match=f"{address}: UNAUTHENTICATED.*token_file"):
                ask(address, [request], **wrong)
            assert time.monotonic() - started < 30, "a wrong token is not worth a second attempt"
        with grpc.insecure_channel(address) as channel:  # probes bring no token
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                pb_grpc.DetectorStub(channel).Info(pb.InfoRequest())


LOADS = [pytest.mark.slow, pytest.mark.main]  # as far as PyTorch


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ((), "--model"),
        (("--model", "{model}", "--listen", "0.0.0.0:0"), "can be reached from other machines"),
        (("--model", "{model}", "--listen", "[::]:0"), "can be reached from other machines"),
        (("--model", "{model}", "--listen", "example.org:50051"), "can be reached from other machines"),
        (("--model", "{model}", "--listen", "50051"), "HOST:PORT"),
        (("--model", "{model}", "--tls-cert", "x.pem"), "--tls-key"),
        (("--model", "{model}", "--token-file", "nowhere"), "nowhere cannot be read"),
        (("--model", "{model}", "--box-threshold", "2"), "--box-threshold is 2.0"),
        (("--model", "{model}", "--batch-size", "0"), "--batch-size is 0"),
        (("--model", "{model}", "--bach-size", "1"), "--bach-size"),
        (
            ("--model", "nowhere"),
            "nowhere does not exist; give a local directory with a detector as transformers saves it, or ORG/NAME on",
        ),
        (("--model", "nowhere", "--backend", "groundingdino"), "give a local directory with a GroundingDINO's .pth"),
        pytest.param(("--model", "{model}", "--devices", "cuda:7"), "cuda:7", marks=LOADS),
        pytest.param(("--model", "{empty}"), "weights", marks=LOADS),
        pytest.param(
            ("--model", "{model}", "--backend", "groundingdino", "--listen", "127.0.0.1:0"), "*.pth", marks=LOADS
        ),
    ],
)
def test_refuses_to_start(model, tmp_path, options, named):
    message = failed_start(*(option.format(model=model, empty=tmp_path) for option in options))
    assert named in message


def test_a_port_in_use_is_refused(served, model):
    assert "in use" in failed_start("--model", str(model), "--listen", served.address)


def test_command_line_client(served, tmp_path):
    image, out = tmp_path / "photo.png", tmp_path / "out.png"
    picture(0).save(image)
    command = [sys.executable, "-m", "detector_bridge.client", "--address", served.address, "--image", str(image)]
    done = subprocess.run(
        [*command, "--phrases", "dog, traffic light", "--draw", str(out)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (answer,) = ask(served.address, [Request(image, ("dog", "traffic light"))])
    for found in answer.detections:
        (row,) = (line for line in done.stdout.splitlines() if line.startswith(found.phrase + " "))
        assert f"{'yes' if found.present else 'no'} " in row
        assert f"{found.score:.2f}" in row
    from PIL import Image

    with Image.open(out) as drawn:
        assert drawn.size == (160, 120)
        assert np.any(np.asarray(drawn.convert("RGB")) != np.asarray(picture(0)))

    bad = subprocess.run([*command, "--phrases", "dog, ."], cwd=ROOT, capture_output=True, text=True)
    assert bad.returncode == 2
    assert bad.stderr.count("\n") == 1
    assert "EMPTY_PHRASE" in bad.stderr


@pytest.mark.slow
@pytest.mark.main
def test_order_is_that_of_the_requests(served):
    random.seed(0)
    sizes = [(60, 60), (200, 90), (90, 200)]
    requests = [Request(encode(picture(i, *random.choice(sizes))), PHRASES[: 1 + i % 4]) for i in range(60)]
    requests[7] = Request(b"", ("dog",))
    answers = ask(served.address, requests, in_flight=32)
    for request, answer in zip(requests, answers, strict=True):
        if request.image:
            assert [found.phrase for found in answer.detections] == list(request.phrases)
    assert isinstance(answers[7], RefusedError)
