"""OWL-ViT and OWLv2 as the transformers library builds them: a box for each patch, scored against each phrase."""

from collections.abc import Sequence

import numpy as np
import torch

from detector_bridge.backends import Scores
from detector_bridge.backends.torch_backend import corners
from detector_bridge.backends.transformers_phrases import PhraseBackend
from detector_bridge.prompts import Prompt, read_phrases


class OwlVit(PhraseBackend):
    """`OwlViTForObjectDetection`, which stretches pictures to squares."""

    kind = "OWL-ViT"
    network_class = "OwlViTForObjectDetection"
    processor_classes = ("OwlViTImageProcessorPil", "OwlViTImageProcessor")

    def make_prompts(self, phrases: Sequence[str]) -> list[Prompt]:
        """See `Backend`: one prompt, since phrases do not influence each other."""
        found = read_phrases(phrases, self.tokenize, self.max_tokens)
        spans = {phrase: (number, number + 1) for number, phrase in enumerate(found)}
        return [Prompt([self.whole(ids) for ids in found.values()], spans)]

    def detect(self, pixels: np.ndarray, prompts: Sequence[Sequence[Sequence[int]]], image_of: Sequence[int]) -> Scores:
        """See `Backend`."""
        most = max(map(len, prompts))
        # The model leaves out texts that begin with 0.
        texts, mask = self.padded([text for own in prompts for text in [*own, *[[0]] * (most - len(own))]])
        texts, mask = (each.view(len(prompts), most, -1) for each in (texts, mask))
        pictures = torch.from_numpy(pixels)[list(image_of)].to(self._device)
        tokens, boxes = [], []
        with self.computing():
            for part in self.parts(len(prompts)):
                outputs = self._network(
                    input_ids=texts[part].flatten(0, 1),
                    attention_mask=mask[part].flatten(0, 1),
                    pixel_values=pictures[part],
                )
                tokens.append(outputs.logits.float().sigmoid())
                boxes.append(corners(outputs.pred_boxes).clamp(0, 1))
        return Scores(torch.cat(tokens).cpu().numpy(), torch.cat(boxes).cpu().numpy())


class Owlv2(OwlVit):
    """`Owlv2ForObjectDetection`, which pads pictures to squares, at the right or at the bottom."""

    kind = "OWLv2"
    network_class = "Owlv2ForObjectDetection"
    processor_classes = ("Owlv2ImageProcessorPil", "Owlv2ImageProcessor")

    def in_picture(self, scores: Scores, width: int, height: int) -> Scores:
        """See `Backend`; what lies in the padding is not in the picture, and gets no score."""
        side = max(width, height)
        boxes = np.clip(scores.boxes_xyxy * np.array([side / width, side / height] * 2, np.float32), 0, 1)
        is_inside = (boxes[..., 2:] > boxes[..., :2]).all(axis=-1)
        return Scores(np.where(is_inside[..., None], scores.tokens, np.float32(0)), boxes)
