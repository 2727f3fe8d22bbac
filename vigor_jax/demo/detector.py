"""Trains the demo's detector: a GroundingDINO of transformers in miniature, for drawn scenes.

This module and `detector_loss` are the only ones of the package that need PyTorch or transformers; nothing but the
build script imports them.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from tqdm import tqdm

from vigor_jax.demo.detector_data import Batch, draw_pictures, make_batch
from vigor_jax.demo.detector_files import IMAGE_MEAN, IMAGE_STD, MAX_TOKENS, VOCAB_SIZE, make_tokenizer, write_processor
from vigor_jax.demo.detector_loss import detection_loss
from vigor_jax.demo.scenes import IMAGE_SIZE

NUM_STEPS = 4500
NUM_PICTURES = 30_000
BATCH_SIZE = 32
LEARNING_RATE = 1.5e-3
WARM_UP_STEPS = 50
DECAY = 0.5  # share of the steps, at the end
MAX_GRADIENT_NORM = 5.0
# Several places of the encoder's maps lie on each object.
ENCODER_REPEATS = 3

FUSION_SCALE = 0.3
LOGIT_SCALE = 0.35


def build_detector(out: Path, *, num_steps: int = NUM_STEPS, num_pictures: int = NUM_PICTURES, seed: int = 0) -> None:
    """Trains the detector on one core and writes its directory, which transformers and the sidecar load.

    The same seed gives the same weights on the same machine with the same versions.

    Args:
      out: directory, made where there is none: config.json, model.safetensors (float16), and the files of processor
        and tokenizer.
      num_steps: updates.
      num_pictures: scenes drawn beforehand; each is seen several times, with other prompts.
      seed: of scenes, prompts and weights.
    """
    start = time.monotonic()
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    pictures = draw_pictures(num_pictures, rng)
    tokenizer = make_tokenizer()
    network = make_network().train()
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, num_steps))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums come out the same however many cores there are
    try:
        steps = tqdm(range(num_steps), desc="training", unit="step", dynamic_ncols=True)
        for step in steps:
            batch = make_batch(pictures, rng.integers(num_pictures, size=BATCH_SIZE), tokenizer, rng)
            loss = batch_loss(network, batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            smooth = loss.item() if step == 0 else 0.98 * smooth + 0.02 * loss.item()
            steps.set_postfix(loss=f"{smooth:.3f}", refresh=False)
    finally:
        torch.set_num_threads(num_threads)
    out.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(out, state_dict={name: tensor.half() for name, tensor in network.state_dict().items()})
    write_processor(out)
    print(f"wrote {out} after {(time.monotonic() - start) / 60:.1f} minutes")


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
                num_stages=3,
                hidden_sizes=[48, 96, 128],
                depths=[1, 2, 1],
                layer_scale_init_value=1.0,
                out_features=["stage2", "stage3"],
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
            num_feature_levels=2,
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
    # Logits are products of what these put out.
    for norm in (decoder.layer_norm, network.model.enc_output_norm, encoder.layers[-1].text_enhancer_layer.layer_norm_after):
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
