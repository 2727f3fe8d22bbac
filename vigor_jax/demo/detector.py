"""Trains the demo's detector: a GroundingDINO of transformers in miniature, for drawn scenes.

This module and `detector_loss` are the only ones of the package that need PyTorch or transformers; nothing but the
build script imports them.
"""

import itertools
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from tqdm import tqdm

from vigor_jax.demo.detector_data import DOT, Batch, Phrase, draw_pictures, make_batch
from vigor_jax.demo.detector_files import (
    IMAGE_MEAN,
    IMAGE_STD,
    MAX_TOKENS,
    VOCAB_SIZE,
    make_tokenizer,
    write_card,
    write_processor,
)
from vigor_jax.demo.detector_loss import detection_loss
from vigor_jax.demo.drawing import draw
from vigor_jax.demo.scenes import COLOURS, IMAGE_SIZE, SHAPES, Scene, make_scene

NUM_STEPS = 5000
NUM_PICTURES = 30_000
BATCH_SIZE = 32
LEARNING_RATE = 1.5e-3
WARM_UP_STEPS = 50
DECAY = 0.5  # share of the steps, at the end
MAX_GRADIENT_NORM = 5.0
# Several places of the encoder's maps lie on each object.
ENCODER_REPEATS = 3
THRESHOLD = 0.25
NUM_TEST_SCENES = 1000

FUSION_SCALE = 0.3
LOGIT_SCALE = 0.35


def build_detector(
    out: Path,
    *,
    num_steps: int = NUM_STEPS,
    seed: int = 0,
    num_pictures: int = NUM_PICTURES,
    num_test_scenes: int = NUM_TEST_SCENES,
) -> None:
    """Trains the detector on one core, tests it, and writes a directory that transformers and the sidecar load.

    The same seed gives the same weights on the same machine with the same versions.

    Args:
      out: directory, made where there is none: config.json, model.safetensors (float16), the files of processor and
        tokenizer, README.md.
      num_steps: updates.
      seed: of scenes, prompts and weights; the next one draws the scenes of the test.
      num_pictures: scenes drawn beforehand; each is seen several times, with other prompts.
      num_test_scenes: scenes of the test.
    """
    start = time.monotonic()
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums come out the same however many cores there are
    try:
        network = train(num_steps, num_pictures, seed)
        out.mkdir(parents=True, exist_ok=True)
        network.save_pretrained(out, state_dict={name: tensor.half() for name, tensor in network.state_dict().items()})
        write_processor(out)
        minutes = (time.monotonic() - start) / 60
        accuracy = evaluate_detector(out, num_scenes=num_test_scenes, seed=seed + 1)
    finally:
        torch.set_num_threads(num_threads)
    training = {"num_steps": num_steps, "batch_size": BATCH_SIZE, "num_pictures": num_pictures, "seed": seed}
    write_card(out, {**training, "minutes": minutes, "parameters": network.num_parameters()}, accuracy)
    print(
        f"wrote {out}: right about {accuracy['overall']:.2%} of nouns, {accuracy['attributes']:.2%} of phrases with a "
        f"colour; {minutes:.1f} minutes of training on one core"
    )


def train(num_steps: int, num_pictures: int, seed: int) -> Any:
    """The network after training; see `build_detector`."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    pictures = draw_pictures(num_pictures, rng)
    tokenizer = make_tokenizer()
    network = make_network().train()
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, num_steps))
    steps = tqdm(range(num_steps), desc="training", unit="step", dynamic_ncols=True)
    smooth = None
    for _ in steps:
        batch = make_batch(pictures, rng.integers(num_pictures, size=BATCH_SIZE), tokenizer, rng)
        loss = batch_loss(network, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        steps.set_postfix(loss=f"{smooth:.3f}", refresh=False)
    return network


def learning_rate(step: int, num_steps: int) -> float:
    """As a share of the highest: a short rise, flat, then half a cosine down to 0."""
    left = (num_steps - step) / (DECAY * num_steps)
    return min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 - np.cos(np.pi * min(1.0, left)))


def make_network() -> Any:
    """The network before training."""
    network: Any = transformers.GroundingDinoForObjectDetection(
        transformers.GroundingDinoConfig(
            backbone_config=transformers.ConvNextConfig(
                image_size=IMAGE_SIZE,
                patch_size=4,
                num_stages=2,
                hidden_sizes=[48, 96],
                depths=[1, 2],
                layer_scale_init_value=1.0,
                out_features=["stage2"],
            ),
            text_config=transformers.BertConfig(
                vocab_size=VOCAB_SIZE,
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=128,
                max_position_embeddings=MAX_TOKENS,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            ),
            num_feature_levels=1,
            max_text_len=MAX_TOKENS,
            num_queries=20,
            d_model=64,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=128,
            decoder_layers=2,
            decoder_attention_heads=4,
            decoder_ffn_dim=128,
            dropout=0.0,
            fusion_droppath=0.0,
        )
    )
    _start_near(network)
    return network


@torch.no_grad()
def _start_near(network: Any) -> None:
    """Undoes what in the library's random weights is meant for longer training of a deeper model."""
    for name, weight in network.named_parameters():
        if name.endswith(("vision_param", "text_param")):
            weight.fill_(FUSION_SCALE)  # picture and prompt see each other from the first step
    decoder, encoder = network.model.decoder, network.model.encoder
    nn.init.xavier_uniform_(decoder.reference_points_head.layers[-1].weight)  # else queries do not know their places
    text_norm = encoder.layers[-1].text_enhancer_layer.layer_norm_after
    for norm in (decoder.layer_norm, network.model.enc_output_norm, text_norm):  # logits are products of their outputs
        norm.weight.fill_(LOGIT_SCALE)


def batch_loss(network: Any, batch: Batch) -> Tensor:
    """Sum of the losses of the encoder and of every layer of the decoder."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    input_ids = torch.from_numpy(batch.input_ids)
    outputs = network(
        pixel_values=(torch.from_numpy(batch.pixels) / 255 - mean) / std,
        input_ids=input_ids,
        attention_mask=(input_ids != 0).long(),
    )
    boxes, targets = torch.from_numpy(batch.boxes), torch.from_numpy(batch.targets)
    places, words = outputs.enc_outputs_coord_logits.sigmoid(), outputs.enc_outputs_class
    loss = detection_loss(words[..., : input_ids.shape[1]], places, boxes, targets, repeats=ENCODER_REPEATS)
    for words, places in _decoder_answers(network, outputs, input_ids):
        loss = loss + detection_loss(words[..., : input_ids.shape[1]], places, boxes, targets)
    return loss


def _decoder_answers(network: Any, outputs: Any, input_ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and boxes after each layer; the library gives out those of the last one only."""
    starts = [outputs.init_reference_points, *outputs.intermediate_reference_points.unbind(1)]
    for layer, hidden in enumerate(outputs.intermediate_hidden_states.unbind(1)):
        words = network.class_embed[layer](hidden, outputs.encoder_last_hidden_state_text, input_ids != 0)
        yield words, (network.bbox_embed[layer](hidden) + torch.logit(starts[layer], eps=1e-5)).sigmoid()


def evaluate_detector(directory: Path, *, num_scenes: int, seed: int) -> dict[str, Any]:
    """How often the detector says rightly whether something is there, on new scenes of the demo's world.

    Everything goes through the processor and the model that transformers loads, in float32. Each scene is asked about
    all twelve nouns in one prompt, and about coloured nouns in another. A phrase is there if for some box its best
    word scores above 0.25 and so does the mean of its words, as the sidecar has it.

    Args:
      directory: as `build_detector` writes it.
      num_scenes: of the test.
      seed: of the scenes; another one than that of the training.

    Returns:
      "num_scenes", "seed", and shares of right answers: "overall" and "nouns" (noun → share); "attributes", of phrases
      with a colour, and its parts "true", "wrong colour" and "absent".
    """
    processor = transformers.AutoProcessor.from_pretrained(directory, local_files_only=True)
    network = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True
    ).eval()
    rng = np.random.default_rng(seed)
    nouns, attributes = defaultdict(list), defaultdict(list)
    for _ in tqdm(range(num_scenes), desc="testing", unit="scene", dynamic_ncols=True):
        scene = make_scene(rng)
        shapes = {item.shape for item in scene.objects}
        asked = coloured_phrases(scene, rng)
        prompts = [rng.permutation(SHAPES).tolist(), [asked[index][0].text for index in rng.permutation(len(asked))]]
        found = dict(_found(network, processor, scene, prompts))
        for noun in SHAPES:
            nouns[noun].append(found[noun] == (noun in shapes))
        for phrase, kind in asked:
            attributes[kind].append(found[phrase.text] == (kind == "true"))
    return {
        "num_scenes": num_scenes,
        "seed": seed,
        "overall": float(np.mean(list(nouns.values()))),
        "nouns": {noun: float(np.mean(right)) for noun, right in nouns.items()},
        "attributes": float(np.mean([*itertools.chain.from_iterable(attributes.values())])),
        **{kind: float(np.mean(right)) for kind, right in attributes.items()},
    }


def coloured_phrases(scene: Scene, rng: np.random.Generator) -> list[tuple[Phrase, str]]:
    """Three for each shape in a scene: what is "true", in a "wrong colour" (often one that is there), and "absent"."""
    own = {item.shape: item.colour for item in scene.objects}
    absent = rng.permutation([shape for shape in SHAPES if shape not in own])
    phrases = []
    for (shape, colour), other in zip(own.items(), absent.tolist(), strict=False):
        wrong = [c for c in (*COLOURS, *own.values(), *own.values()) if c != colour]
        phrases += [
            (Phrase(colour, shape), "true"),
            (Phrase(str(rng.choice(wrong)), shape), "wrong colour"),
            (Phrase(str(rng.choice(list(own.values()))), other), "absent"),
        ]
    return phrases


@torch.no_grad()
def _found(network: Any, processor: Any, scene: Scene, prompts: list[list[str]]) -> Iterator[tuple[str, bool]]:
    """Each phrase of some prompts, and whether it is in the scene's picture."""
    inputs = processor(images=[draw(scene)] * len(prompts), text=prompts, padding=True, return_tensors="pt")
    scores = network(**inputs).logits.sigmoid()
    for row, prompt in enumerate(prompts):
        (dots,) = (inputs["input_ids"][row] == DOT).nonzero(as_tuple=True)
        starts = [1, *(dots[:-1] + 1).tolist()]
        for phrase, start, end in zip(prompt, starts, dots.tolist(), strict=True):
            own = scores[row, :, start:end]
            kept = (own.amax(1) > THRESHOLD) & (own.mean(1) > THRESHOLD)
            yield phrase, bool(kept.any())
