"""Clients that start in several threads at once: ADDRESS THREADS; prints a JSON list of what each thread got."""

import json
import sys
import threading
from collections.abc import Callable

from detector_bridge.client import BlockingClient, ClientConfig
from detector_bridge.messages import Request
from tests.detector_bridge.sidecar import encode, picture


def main(address: str, count: str) -> None:
    results: list[str | list[int]] = []
    together = threading.Barrier(int(count))

    def work(number: int) -> None:
        together.wait()
        try:
            with BlockingClient(ClientConfig((address,), timeout=60)) as client:
                client.info()
                requests = [Request(encode(picture(number, 60 + number, 60)), ("dog",)) for _ in range(3)]
                futures = [client.submit(request) for request in requests]
                results.append([number, *(future.result().width for future in futures)])
        except BaseException as error:
            results.append(f"{type(error).__name__}: {error}")

    run_together(work, int(count))
    print(json.dumps(results))


def run_together(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
