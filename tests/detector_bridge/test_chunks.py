"""Lists of phrases that are split into several prompts."""

import numpy as np
import pytest
import torch
import transformers

from detector_bridge.backends.transformers import TransformersBackend
from detector_bridge.prompts import find_phrases, make_prompts
from tests.detector_bridge.sidecar import picture
from tests.detector_bridge.tiny_detector import write_transformers

PHRASES = ["dog", "traffic light", "light", "hot dog", "red circle", "person", "big blue car", "surfboard", "a b c d"]


@pytest.fixture(scope="module")
def indifferent(tmp_path_factory):
    """A model for which phrases of one prompt do not know each other.

    GroundingDINO's do: pictures are fused with the whole prompt, the most promising places for any of its phrases
    become queries, each gets the embedding of its rank, and queries look at the whole prompt again. Here fusion is as
    weak as the library begins with, every place is a query, all embeddings are alike, and that look shows nothing.
    """
    folder = write_transformers(tmp_path_factory.mktemp("model"), queries=85, short_side=64, long_side=64)
    model = transformers.GroundingDinoForObjectDetection.from_pretrained(folder)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("vision_param", "text_param")):
                weight.fill_(1e-4)
            if "encoder_attn_text.out_proj" in name:
                weight.zero_()
        embedding = model.model.query_position_embeddings.weight
        embedding.copy_(embedding[:1].expand_as(embedding))
    model.save_pretrained(folder)
    return TransformersBackend.load(folder)


def found(backend, image, max_tokens):
    prompts, answers = make_prompts(PHRASES, backend.tokenize, max_tokens), {}
    scores = backend.detect(backend.prepare(image)[None], [prompt.tokens for prompt in prompts], [0] * len(prompts))
    for prompt, tokens, boxes in zip(prompts, scores.tokens, scores.boxes_xyxy, strict=True):
        answers |= find_phrases(prompt.spans, tokens, boxes, 0.25, 0.25)
    return len(prompts), answers


@pytest.mark.slow
@pytest.mark.main
@pytest.mark.parametrize("max_tokens", [8, 12, 20])
def test_split_lists_equal_whole_ones(indifferent, max_tokens):
    scores = []
    for seed in range(4):
        count, whole = found(indifferent, picture(seed, 64, 64), 256)
        assert count == 1
        count, split = found(indifferent, picture(seed, 64, 64), max_tokens)
        assert count > 1
        for phrase in PHRASES:
            assert split[phrase].score == pytest.approx(whole[phrase].score, abs=1e-3)
            if abs(whole[phrase].score - 0.25) > 1e-3:
                assert split[phrase].present == whole[phrase].present
            scores.append(whole[phrase].score)
    assert np.ptp(scores) > 0.2, "scores that are all alike would show nothing"


@pytest.mark.slow
@pytest.mark.main
def test_many_prompts_are_run_a_few_at_a_time(indifferent):
    pixels = indifferent.prepare(picture(0, 64, 64))[None]
    prompts = [prompt.tokens for prompt in make_prompts([f"dog {i}" for i in range(60)], indifferent.tokenize, 20)]
    assert len(prompts) > indifferent._rows_at_once
    together = indifferent.detect(pixels, prompts, [0] * len(prompts))
    for i, prompt in enumerate(prompts):
        alone = indifferent.detect(pixels, [prompt], [0])
        # Places that are equally promising may change their ranks; each is found by its box.
        distances = np.abs(together.boxes_xyxy[i][:, None] - alone.boxes_xyxy[0]).max(-1)
        order = distances.argmin(0)
        assert sorted(order) == list(range(len(order)))
        np.testing.assert_allclose(together.tokens[i, order, : len(prompt)], alone.tokens[0], atol=1e-4)
        np.testing.assert_allclose(together.boxes_xyxy[i, order], alone.boxes_xyxy[0], atol=1e-4)
