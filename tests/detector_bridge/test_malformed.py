"""Messages that are none, over a real connection: to the server, and from something that is no detector."""

import asyncio
import contextlib
import json
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from detector_bridge import detector_pb2 as pb
from detector_bridge.client import ClientConfig, DetectorClient, DetectorError
from detector_bridge.messages import Request
from tests.detector_bridge.sidecar import encode, picture, sidecar

DETECT, INFO = "/detector_bridge.v1.Detector/Detect", "/detector_bridge.v1.Detector/Info"
# Each breaks the wire format in its own way.
MALFORMED = {
    "no protobuf": b"\xff\xff\xff\xff",
    "text": b"not a message at all",
    "a length beyond the end": b"\x12\xff\x01abc",
    "a text that is not UTF-8": b"\x0a\x02\xff\xfe",
    "cut off": pb.DetectRequest(id="1", image=b"x" * 100, phrases=["dog"]).SerializeToString()[:-20],
    "a field of number 0": b"\x02\x01a",
    "an endless number": b"\x30" + b"\xff" * 11,
}


def good(name: str) -> bytes:
    return pb.DetectRequest(id=name, image=encode(picture(0)), phrases=["dog"]).SerializeToString()


async def send(address: str, messages: list[bytes]) -> tuple[list[pb.DetectReply], grpc.StatusCode, str]:
    """Everything that comes back for bytes sent over one stream, and how the call ends."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(DETECT, response_deserializer=pb.DetectReply.FromString)()
        for message in messages:
            await call.write(message)
        await call.done_writing()
        replies = []
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for reply in call:
                replies.append(reply)
        return replies, await call.code(), await call.details()


@pytest.mark.slow
@pytest.mark.main
@pytest.mark.parametrize("before", [0, 1, 5])
@pytest.mark.parametrize("malformed", MALFORMED.values(), ids=MALFORMED)
def test_what_came_before_is_answered_and_the_call_ends_with_its_own_error(served, malformed, before):
    messages = [*(good(str(i)) for i in range(before)), malformed]
    replies, code, details = asyncio.run(send(served.address, messages))
    assert sorted(reply.id for reply in replies) == [str(i) for i in range(before)]
    assert all(reply.HasField("detections") for reply in replies)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details == f"message {before + 1} of this stream is no DetectRequest: it cannot be parsed"


@pytest.mark.slow
@pytest.mark.main
def test_many_do_not_fill_the_server_and_leave_one_line_each_in_its_log(model):
    """Nor are other streams disturbed."""

    async def run(address):
        async with DetectorClient(ClientConfig((address,), timeout=60)) as client:
            for malformed in MALFORMED.values():
                _, code, _ = await send(address, [good("a"), malformed])
                assert code == grpc.StatusCode.INVALID_ARGUMENT
                await client.ask(Request(encode(picture(0)), ("dog",)))

    with sidecar(model, "--queue", "2") as running:
        asyncio.run(run(running.address))
        running.process.terminate()
        log = [json.loads(line) for line in running.process.communicate(timeout=30)[1].splitlines()]
    told = [line for line in log if line["message"] == "malformed message"]
    assert [line["number"] for line in told] == [2] * len(MALFORMED)
    assert len(log) == len(told) + 2  # that it drains, and that it has ended
    assert not any("exc_info" in line for line in log)


def test_an_empty_message_is_a_request_without_phrases(served):
    replies, code, _ = asyncio.run(send(served.address, [b""]))
    assert code == grpc.StatusCode.OK
    assert [reply.error.code for reply in replies] == [pb.NO_PHRASES]


def test_a_malformed_info_request_is_an_invalid_argument(served):
    with (
        grpc.insecure_channel(served.address) as channel,
        pytest.raises(grpc.RpcError, match="no InfoRequest") as caught,
    ):
        channel.unary_unary(INFO)(MALFORMED["no protobuf"])
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
def impostor():
    """A server whose replies are text, from the first or from the second call on."""
    server = grpc.server(ThreadPoolExecutor(4))
    answers = {"info": b"hello"}

    def detect(requests, context):
        for _ in requests:
            yield b"hello"

    methods = {
        "Info": grpc.unary_unary_rpc_method_handler(lambda request, context: answers["info"]),
        "Detect": grpc.stream_stream_rpc_method_handler(detect),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("detector_bridge.v1.Detector", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", answers
    server.stop(0).wait()


@pytest.mark.parametrize("is_info_good", [False, True])
def test_replies_that_are_none_end_in_one_line(impostor, is_info_good):
    address, answers = impostor
    if is_info_good:
        answers["info"] = pb.InfoReply(limits=pb.Limits(image_bytes=1 << 20)).SerializeToString()

    async def ask():
        async with DetectorClient(ClientConfig((address,), timeout=20)) as client:
            await client.ask(Request(encode(picture(0)), ("dog",)))

    with pytest.raises(DetectorError, match=f"{address}: a reply cannot be parsed"):
        asyncio.run(ask())
