"""The loss that trains a small GroundingDINO: DETR's, with words of the prompt in place of classes.

The transformers library brings its own loss, which leaves the encoder's heads without gradients and mixes up the
targets of prompts that differ.
"""

import torch
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 1.0
CLASS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT = 2.0, 5.0, 2.0


def detection_loss(
    logits: Tensor,
    boxes: Tensor,
    target_boxes: Tensor,
    targets: Tensor,
    *,
    repeats: int = 1,
) -> Tensor:
    """Focal loss of every query's words and distance of the matched boxes, per object.

    Args:
      logits: [B, Q, T], of each query and token of the prompt; -inf at padding.
      boxes: [B, Q, 4], center x, y, width, height in [0, 1].
      target_boxes: [B, M, 4], of the objects.
      targets: bool [B, M, T], the words that are true of each object; objects without any are passed over.
      repeats: how many queries shall find each object.

    Returns:
      A scalar.
    """
    target_boxes, targets = target_boxes.repeat(1, repeats, 1), targets.repeat(1, repeats, 1)
    valid = logits.isfinite()
    rows, queries, objects = match(logits, boxes, target_boxes, targets)
    wanted = torch.zeros_like(valid)
    wanted[rows, queries] = targets[rows, objects]
    count = max(len(rows), 1)
    classes = (focal(logits.masked_fill(~valid, 0), wanted) * valid).sum()
    found, true = boxes[rows, queries], target_boxes[rows, objects]
    distance = L1_WEIGHT * (found - true).abs().sum() + GIOU_WEIGHT * (1 - giou(found, true)).sum()
    return (CLASS_WEIGHT * classes + distance) / count


@torch.no_grad()
def match(
    logits: Tensor,
    boxes: Tensor,
    target_boxes: Tensor,
    targets: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """A query for each object that has words, such that together they cost least; arguments as in `detection_loss`.

    Returns:
      Rows of the batch, queries and objects, all [K] int64.
    """
    logits = logits.masked_fill(~logits.isfinite(), 0)
    yes, no = (focal(logits, torch.full_like(logits, answer, dtype=torch.bool)) for answer in (True, False))
    words = targets.float()
    words = words / words.sum(-1, keepdim=True).clamp(min=1)
    cost = CLASS_WEIGHT * (yes - no) @ words.transpose(1, 2)
    cost = cost + L1_WEIGHT * torch.cdist(boxes, target_boxes, p=1)
    cost = cost - GIOU_WEIGHT * giou(boxes[:, :, None], target_boxes[:, None])
    asked_for = targets.any(-1)
    found = []
    for row, own in enumerate(asked_for):
        (objects,) = own.nonzero(as_tuple=True)
        queries, columns = linear_sum_assignment(cost[row, :, objects].numpy())
        found.append(torch.stack([torch.full((len(queries),), row), torch.from_numpy(queries), objects[columns]]))
    rows, queries, objects = torch.cat(found, dim=1)
    return rows, queries, objects


def focal(logits: Tensor, targets: Tensor) -> Tensor:
    """-α (1 - p)^γ log p where the answer is yes, -(1 - α) p^γ log(1 - p) where it is no (Lin et al. 2017).

    Both may have any shape.
    """
    sign = torch.where(targets, 1.0, -1.0)
    alpha = torch.where(targets, FOCAL_ALPHA, 1 - FOCAL_ALPHA)
    return -alpha * (-sign * logits).sigmoid() ** FOCAL_GAMMA * functional.logsigmoid(sign * logits)


def giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalized intersection over union (Rezatofighi et al. 2019) of boxes [*, 4] as center and size, in
    (-1, 1]."""
    (low, high), (other_low, other_high) = (
        (center - size / 2, center + size / 2) for center, size in (box.split(2, dim=-1) for box in (first, second))
    )
    shared = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0).prod(-1)
    union = first[..., 2:].prod(-1) + second[..., 2:].prod(-1) - shared
    hull = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).prod(-1)
    tiny = 1e-7
    return shared / (union + tiny) - (hull - union) / (hull + tiny)
