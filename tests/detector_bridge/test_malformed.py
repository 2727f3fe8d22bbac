"""Messages that are none, over a real connection: to the server, and from something that is no detector."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from detector_bridge import detector_pb2 as pb
from detector_bridge.client import ClientConfig, DetectorClient, DetectorError, Request
from tests.detector_bridge.sidecar import encode, picture, sidecar

DETECT, INFO = "/detector_bridge.v1.Detector/Detect", "/detector_bridge.v1.Detector/Info"
# Each breaks the wire format in a way of its own.
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


async def send(address: str, messages: list[bytes]) -> tuple[list[pb.DetectReply], grpc.StatusCode]:
    """Everything that comes back for bytes sent over one stream, and how the call ends."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(DETECT, response_deserializer=pb.DetectReply.FromString)()
        for message in messages:
            await call.write(message)
        await call.done_writing()
        replies = [reply async for reply in call]
        return replies, await call.code()


@pytest.mark.parametrize("malformed", MALFORMED.values(), ids=MALFORMED)
def test_one_gets_an_error_and_the_others_their_answers(served, malformed):
    replies, code = asyncio.run(send(served.address, [good("a"), good("b"), malformed, good("c")]))
    assert code == grpc.StatusCode.OK
    by_id = {reply.id: reply for reply in replies}
    assert len(replies) == len(by_id) == 4
    assert all(by_id[name].HasField("detections") for name in "abc")
    assert by_id[""].error.code == pb.MALFORMED_REQUEST
    assert "no DetectRequest" in by_id[""].error.message


def test_many_do_not_fill_the_server_and_leave_no_trace_in_its_log(model):
    messages = [*MALFORMED.values()] * 40
    with sidecar(model, "--queue", "20") as running:
        replies, code = asyncio.run(send(running.address, [*messages, good("a")]))
        running.process.terminate()
        log = running.process.communicate(timeout=30)[1]
    assert code == grpc.StatusCode.OK
    assert sum(reply.error.code == pb.MALFORMED_REQUEST for reply in replies) == len(messages)
    assert [reply.id for reply in replies if reply.HasField("detections")] == ["a"]
    assert "Traceback" not in log


def test_an_empty_message_is_a_request_without_phrases(served):
    replies, _ = asyncio.run(send(served.address, [b""]))
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
