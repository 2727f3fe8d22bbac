"""The command `python -m detector_bridge.client`: one image, some phrases, one table."""

import argparse
import asyncio
from pathlib import Path

import numpy as np

from detector_bridge.client import ClientConfig, DetectorClient
from detector_bridge.command import Parser
from detector_bridge.errors import DetectorError, InputError
from detector_bridge.messages import Answer, Request
from detector_bridge.prompts import split_phrases
from detector_bridge.refusal import RefusedError


def arguments() -> argparse.Namespace:
    parser = Parser(prog="python -m detector_bridge.client", description="Asks a sidecar what an image shows.")
    add = parser.add_argument
    add("--address", required=True, help="HOST:PORT or unix:PATH of the sidecar; several: comma-separated")
    add("--image", type=Path, required=True, help="image file")
    add("--phrases", required=True, help='such as "dog, traffic light" or "dog . traffic light ."')
    add("--box-threshold", type=float, help="in [0, 1]; default: the server's")
    add("--text-threshold", type=float, help="in [0, 1]; default: the server's")
    add("--draw", type=Path, metavar="OUT.png", help="draw the boxes into a copy of the image (needs Pillow)")
    add("--timeout", type=float, default=60.0, help="seconds; default %(default)s")
    add("--token-file", type=Path, help="the server's token")
    add("--tls-ca", type=Path, help="certificates of who signs the server's, PEM: turns TLS on")
    add("--tls-cert", type=Path, help="this client's certificate, PEM")
    add("--tls-key", type=Path, help="its key, PEM")
    return parser.parse_args()


async def _ask_once(options: argparse.Namespace) -> Answer:
    config = ClientConfig(
        tuple(address.strip() for address in options.address.split(",")),
        timeout=options.timeout,
        token_file=options.token_file,
        tls_ca=options.tls_ca,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
    )
    request = Request(options.image, split_phrases(options.phrases), options.box_threshold, options.text_threshold)
    async with DetectorClient(config) as client:
        return await client.ask(request)


def main() -> None:
    options = arguments()
    try:
        answer = asyncio.run(_ask_once(options))
    except RefusedError as error:
        raise InputError(f"{options.image}: {error}") from None
    except DetectorError as error:  # which names the image
        raise InputError(str(error)) from None
    width = max(6, *(len(found.phrase) for found in answer.detections))
    print(f"{options.image}: {answer.width} x {answer.height} pixels")
    print(f"{'phrase':{width}}  present  score  boxes (x_min y_min x_max y_max, pixels; score)")
    size = np.array([answer.width, answer.height] * 2)
    for found in answer.detections:
        boxes = [
            " ".join(f"{value:.0f}" for value in box * size) + f"; {score:.2f}"
            for box, score in zip(found.boxes_xyxy, found.scores, strict=True)
        ]
        row = f"{found.phrase:{width}}  {'yes' if found.present else 'no':7}  {found.score:.2f}   "
        print(row + f"\n{'':{width + 18}}".join(boxes))
        for kind, words in (
            ("not known to the text encoder, take another word", [w for w in found.unknown_words if w.is_lost]),
            ("not in the text encoder's vocabulary", [w for w in found.unknown_words if not w.is_lost]),
        ):
            if words:
                print(f"{'':{width}}  {kind}: {', '.join(map(str, words))}")
    if options.draw:
        from detector_bridge.draw import draw

        draw(options.image, answer, options.draw)
        print(f"boxes drawn into {options.draw}")
