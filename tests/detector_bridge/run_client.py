"""One client in a separate process: ADDRESS COUNT CLIENTS WHICH OUT; its answers are pickled into OUT."""

import asyncio
import pickle
import sys
from pathlib import Path

from detector_bridge.client import ClientConfig, DetectorClient
from detector_bridge.messages import Request
from tests.detector_bridge.sidecar import encode, picture

SIZES = [(160, 120), (60, 60), (90, 200)]
WORDS = ("dog", "cat", "traffic light", "light", "hot dog", "red circle", "person")


def mixed_requests(count: int) -> list[Request]:
    """Good ones of several sizes and lengths; of each fifty, one is bad."""
    images = [encode(picture(seed, *SIZES[seed % 3]), "JPEG") for seed in range(12)]
    return [
        Request(
            images[i % 12] if i % 50 != 7 else images[0][:500], WORDS[i % 5 : i % 5 + 1 + i % 3], name=f"request {i}"
        )
        for i in range(count)
    ]


async def main(address: str, count: str, clients: str, which: str, out: str) -> None:
    requests = mixed_requests(int(count))[int(which) :: int(clients)]
    async with DetectorClient(ClientConfig((address,), timeout=400, in_flight=16)) as client:
        answers = [answer async for answer in client.detect(requests)]
    Path(out).write_bytes(pickle.dumps(answers))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
