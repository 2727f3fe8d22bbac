"""The sidecar with the authors' own package, in the environment that it needs, next to the one with transformers."""

import os
from pathlib import Path

import numpy as np
import pytest

from detector_bridge.client import BlockingClient, ClientConfig
from detector_bridge.convert import to_original
from detector_bridge.local import LocalConfig, LocalDetector
from detector_bridge.messages import Request
from tests.detector_bridge.sidecar import ROOT, encode, picture
from tests.detector_bridge.tiny_detector import write_transformers

PYTHON = Path(os.environ.get("VIGOR_DETECTOR_PYTHON", ROOT / ".venv-detector" / "bin" / "python"))
PHRASES = ("dog", "traffic light", "light", "red circle", "person")


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason="NOT TESTED: groundingdino-py; make it with scripts/detector_env.sh")
def test_both_sidecars_answer_alike(tmp_path):
    ours = write_transformers(tmp_path / "transformers", d_model=256)
    to_original(ours, tmp_path / "original")
    sizes = ("--short-side", "112", "--long-side", "200")
    requests = [Request(encode(picture(seed)), PHRASES, 0.0, 0.0) for seed in range(4)]

    def answers(config: LocalConfig) -> tuple[str, list]:
        with LocalDetector(config) as local, BlockingClient(ClientConfig((local.address,))) as client:
            return client.info()[0].backend, [client.submit(request).result() for request in requests]

    name, first = answers(LocalConfig(ours, options=sizes))
    other_name, second = answers(LocalConfig(tmp_path / "original", "groundingdino", PYTHON, sizes))
    assert (name, other_name) == ("transformers", "groundingdino")
    scores = []
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one.detections, other.detections, strict=True):
            assert a.score == pytest.approx(b.score, abs=1e-3)
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-3)
            # Boxes that score alike may change places.
            distances = np.abs(a.boxes_xyxy[:, None] - b.boxes_xyxy[None]).max(-1)
            assert distances.min(1).max() < 1e-3
            assert distances.min(0).max() < 1e-3
            scores.append(a.score)
    assert np.ptp(scores) > 0.1
