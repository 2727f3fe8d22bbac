"""A server whose Pillow lacks a format: the client sends what it can read, and nothing that a trainer reads is lost."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector_bridge import connection
from detector_bridge.client import BlockingClient, ClientConfig
from detector_bridge.images import decode, formats
from detector_bridge.messages import Answer, Request
from tests.detector_bridge.sidecar import ROOT, Sidecar, encode, picture, sidecar
from tests.detector_bridge.test_client import assert_same
from tests.detector_bridge.test_server import ask
from vigor_jax.records import ScoreItem
from vigor_jax.rewards.detection import DetectorStream
from vigor_jax.rewards.detector_config import DetectionConfig
from vigor_jax.rewards.phrases import PhrasesConfig

# What a build of Pillow without libavif and libwebp looks like from Python.
WITHOUT = """
from PIL import AvifImagePlugin, WebPImagePlugin
AvifImagePlugin.SUPPORTED = WebPImagePlugin.SUPPORTED = False
"""


@contextlib.contextmanager
def site(folder: Path) -> Iterator[None]:
    """Processes started inside have the reduced Pillow."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(WITHOUT)
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), before)))
    try:
        yield
    finally:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def reduced(model, tmp_path_factory) -> Iterator[Sidecar]:
    with site(tmp_path_factory.mktemp("site")), sidecar(model, "--max-image-bytes", "60000") as running:
        yield running


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


IMAGES = {
    "AVIF": encode(picture(0), "AVIF"),
    "WebP": encode(picture(1), "WEBP"),
    "turned WebP": encode(picture(2), "WEBP", exif=exif(6)),
    "JPEG": encode(picture(3), "JPEG"),
    # 180,000 bytes; a PNG of this picture has fewer than the 60,000 that are taken.
    "a TIFF with more bytes than are taken": encode(picture(4).resize((300, 200)), "TIFF"),
}


@pytest.mark.slow
@pytest.mark.main
def test_the_server_says_what_it_reads(served, reduced):
    for running, expected in ((served, formats()), (reduced, ("JPEG", "PNG", "BMP", "GIF", "TIFF"))):
        with BlockingClient(ClientConfig((running.address,))) as client:
            assert tuple(client.info()[0].formats) == expected


@pytest.mark.slow
@pytest.mark.main
@pytest.mark.parametrize("name", IMAGES)
def test_what_it_does_not_take_is_sent_as_a_png(served, reduced, name):
    request = Request(IMAGES[name], ("dog", "traffic light"))
    (answer,), (whole,) = ask(reduced.address, [request]), ask(served.address, [request])
    assert isinstance(answer, Answer)
    assert_same(answer, whole)


@pytest.mark.parametrize("name", IMAGES)
def test_the_reward_takes_what_the_trainer_reads(reduced, tmp_path, name):
    path = tmp_path / "picture.img"
    path.write_bytes(IMAGES[name])
    config = DetectionConfig(addresses=(reduced.address,), phrases=PhrasesConfig(extractor="entities"))
    with DetectorStream(config) as stream:
        ((verdict,),) = stream.judge([ScoreItem("picture", path, "Describe it.", ("A dog.",))])
    assert [signal.label for signal in verdict.signals] == ["dog"]


def test_what_cannot_be_sent_is_refused_and_the_stream_continues(reduced):
    good = Request(IMAGES["JPEG"], ("dog",))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    bad = [Request(encode(noise, "BMP"), ("dog",)), Request(IMAGES["AVIF"][:200], ("dog",)), Request(b"text", ("dog",))]
    answers = ask(reduced.address, [good, *bad, good])
    assert [isinstance(answer, Answer) for answer in answers] == [True, False, False, False, True]
    too_large, truncated, text = answers[1:4]
    assert (too_large.code, truncated.code, text.code) == ("IMAGE_TOO_LARGE", "INVALID_IMAGE", "INVALID_IMAGE")
    assert "the AVIF image cannot be read" in truncated.message
    assert "it is text; accepted: JPEG, PNG, BMP, GIF, TIFF" in text.message


def test_a_client_without_pillow_says_what_to_do(reduced, tmp_path):
    image = tmp_path / "photo.avif"
    image.write_bytes(IMAGES["AVIF"])
    hide = "import sys; sys.modules['PIL'] = None; import runpy; runpy.run_module('detector_bridge.client', "
    command = [sys.executable, "-c", hide + "run_name='__main__')"]
    command += ["--address", reduced.address, "--image", str(image), "--phrases", "dog"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"the image is AVIF, which the server at {reduced.address} cannot read" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_old_server_that_does_not_say_gets_no_avif(served, monkeypatch):
    """As its list of formats is empty."""
    taken = []
    real = connection.Connection._fit

    async def fit(self, image):
        self._formats = connection.FORMATS_BEFORE_AVIF
        taken.append(await real(self, image))
        return taken[-1]

    monkeypatch.setattr(connection.Connection, "_fit", fit)
    (answer,) = ask(served.address, [Request(IMAGES["AVIF"], ("dog",))])
    assert isinstance(answer, Answer)
    assert decode(taken[0]).tobytes() == decode(IMAGES["AVIF"]).tobytes()
    assert taken[0].startswith(b"\x89PNG")


def test_a_pillow_without_a_format_says_so(tmp_path):
    with site(tmp_path / "site"):
        program = "import sys; from pathlib import Path; from vigor_jax.data.images.preprocessing import *\n"
        program += "print(' '.join(SUFFIXES))\n"
        program += "try: load_image(Path(sys.argv[1]))\nexcept InputError as error: print(error)"
        path = tmp_path / "photo.avif"
        path.write_bytes(IMAGES["AVIF"])
        done = subprocess.run([sys.executable, "-c", program, path], cwd=ROOT, capture_output=True, text=True)
    suffixes, message = done.stdout.splitlines()
    assert ".avif" not in suffixes
    assert ".webp" not in suffixes
    assert ".png" in suffixes
    assert f"{path}: not a readable image (the AVIF image cannot be read: this Pillow was built without AVIF" in message
