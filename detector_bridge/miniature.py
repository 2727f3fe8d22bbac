"""Trains a small GroundingDINO on lessons in a file: for scenes so simple that it takes minutes on a CPU.

    python -m detector_bridge.miniature --lessons lessons.npz --out DIR

The file has pictures, and of every update which of them it looks at, their prompts' tokens and boxes, and which tokens
are true of which box: see `Lessons`. `vigor_jax.demo.build` writes such a file and calls this.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from tqdm import tqdm

from detector_bridge.command import Parser, run
from detector_bridge.miniature_loss import detection_loss

LEARNING_RATE = 1.5e-3
WARM_UP_STEPS = 50
DECAY = 0.5  # share of the steps, at the end
MAX_GRADIENT_NORM = 5.0
# Several places of the encoder's maps lie on each object.
ENCODER_REPEATS = 3

FUSION_SCALE = 0.3
LOGIT_SCALE = 0.35


@dataclasses.dataclass(frozen=True)
class Lessons:
    """Arrays of an `.npz` file; N pictures, S updates of B of them, M boxes and T tokens at most.

    Attributes:
      pictures: uint8 [N, 3, H, W], H = W.
      indices: int [S, B], which pictures an update looks at.
      input_ids: int [S, B, T], 0 beyond a prompt's end.
      boxes: float32 [S, B, M, 4], center x, y, width, height, relative to the picture; 0 where there is none.
      targets: bool [S, B, M, T], the tokens that are true of a box.
      image_mean: float [3], of gray levels from 0 to 1.
      image_std: float [3].
      vocab_size: number of tokens.
    """

    pictures: np.ndarray
    indices: np.ndarray
    input_ids: np.ndarray
    boxes: np.ndarray
    targets: np.ndarray
    image_mean: np.ndarray
    image_std: np.ndarray
    vocab_size: np.ndarray


class Batch:
    """One update's lessons, less what is padding in all of its rows."""

    def __init__(self, lessons: Lessons, step: int) -> None:
        num_tokens = int((lessons.input_ids[step] != 0).sum(1).max())
        num_boxes = int((lessons.boxes[step, ..., 2] > 0).sum(1).max())
        mean, std = (
            torch.tensor(x, dtype=torch.float32)[:, None, None] for x in (lessons.image_mean, lessons.image_std)
        )
        self.pixels = (torch.from_numpy(lessons.pictures[lessons.indices[step]]) / 255 - mean) / std
        self.input_ids = torch.from_numpy(lessons.input_ids[step, :, :num_tokens].astype(np.int64))
        self.boxes = torch.from_numpy(lessons.boxes[step, :, :num_boxes])
        self.targets = torch.from_numpy(lessons.targets[step, :, :num_boxes, :num_tokens])


def main() -> None:
    """Runs the command line; see the module's docstring."""
    parser = Parser(
        prog="python -m detector_bridge.miniature", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--lessons", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="gets config.json and model.safetensors, in float16")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums come out the same however many cores there are
    with np.load(options.lessons) as file:
        lessons = Lessons(**{field.name: file[field.name] for field in dataclasses.fields(Lessons)})
    network = train(lessons, options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    halves = {name: tensor.half() for name, tensor in network.state_dict().items()}
    network.save_pretrained(options.out, state_dict=halves)


def train(lessons: Lessons, seed: int) -> Any:
    """The network after one pass; the same seed gives the same weights on the same machine with the same versions."""
    torch.manual_seed(seed)
    network = make_network(lessons).train()
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    num_steps = len(lessons.indices)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, num_steps))
    steps = tqdm(range(num_steps), desc="training", unit="step", dynamic_ncols=True)
    smooth = None
    for step in steps:
        loss = batch_loss(network, Batch(lessons, step))
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


def make_network(lessons: Lessons) -> Any:
    """The network before training."""
    num_tokens = lessons.input_ids.shape[-1]
    network: Any = transformers.GroundingDinoForObjectDetection(
        transformers.GroundingDinoConfig(
            backbone_config=transformers.ConvNextConfig(
                image_size=lessons.pictures.shape[-1],
                patch_size=4,
                num_stages=2,
                hidden_sizes=[48, 96],
                depths=[1, 2],
                layer_scale_init_value=1.0,
                out_features=["stage2"],
            ),
            text_config=transformers.BertConfig(
                vocab_size=int(lessons.vocab_size),
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=128,
                max_position_embeddings=num_tokens,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            ),
            num_feature_levels=1,
            max_text_len=num_tokens,
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
    input_ids = batch.input_ids
    outputs = network(pixel_values=batch.pixels, input_ids=input_ids, attention_mask=(input_ids != 0).long())
    boxes, targets = batch.boxes, batch.targets
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


if __name__ == "__main__":
    run(main)
