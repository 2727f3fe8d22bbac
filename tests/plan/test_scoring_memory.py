"""What scoring keeps in memory on chips that are not here, by the plan of a 7B with two layers in each tower."""

import dataclasses
import json

import pytest

from tests.plan.test_pods import V5E, needs_cuda, needs_tpu, planned
from vigor_jax.hf.llava.config import to_hf
from vigor_jax.models.llava import LlavaConfig

pytestmark = [pytest.mark.slow, pytest.mark.main]
FULL, LAYERS = LlavaConfig(), 2
ROWS, LENGTH = 16, 2048  # of configs/vigor_all_7b.yaml


def scoring(tmp_path, topology, *arguments):
    """Bytes of temporaries on a device, and of the scores that one layer has there for all rows together."""
    text, vision = (dataclasses.replace(each, num_layers=LAYERS) for each in (FULL.text, FULL.vision))
    small = dataclasses.replace(FULL, text=text, vision=vision)
    (tmp_path / "config.json").write_text(json.dumps(to_hf(small, "bfloat16", 0)))
    plan = planned(topology, *arguments, "--run.stages", "score", "--model.path", str(tmp_path))
    (judge,) = plan["estimates"]
    assert judge["rows"] == ROWS
    scores = 4 * ROWS * FULL.text.num_heads * LENGTH**2 // plan["num_devices"]
    return judge["temporaries"], scores


@needs_tpu
def test_tpus_make_no_scores(tmp_path):
    temporaries, scores = scoring(tmp_path, "v5e:4x4", *V5E)
    assert temporaries < scores


@needs_cuda
def test_gpus_make_no_scores(tmp_path):
    temporaries, scores = scoring(tmp_path, "h200:1")
    assert temporaries < scores / 4
