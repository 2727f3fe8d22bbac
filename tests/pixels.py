"""Pixel values for the models of other libraries, which take them normalized."""

import numpy as np

from vigor_jax.data.images.preprocessing import Preprocessing


def normalize(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """The definition of what the model computes on the device: pixels / 255, minus the mean, over the deviation, both
    scaled to pixels / 255.

    Args:
        pixels: uint8 [..., 3] in [0, 255].
        preprocessing: The vision tower's settings.

    Returns:
        float32 [..., 3].
    """
    mean = np.asarray(preprocessing.scaled_mean, np.float32)
    std = np.asarray(preprocessing.scaled_std, np.float32)
    return (pixels.astype(np.float32) / np.float32(255) - mean) / std
