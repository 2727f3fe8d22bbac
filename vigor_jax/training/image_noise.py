"""Noise on images as diffusion models add it: the policy guesses what it cannot see (POVID, Zhou et al. 2024)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8, UInt32

from vigor_jax.training.config import NOISE_STEPS

# Of the noise that a step adds, on a sigmoid from one to the other.
LEAST, MOST = 1e-5, 5e-3


def kept(step: int) -> float:
    """Share of an image's variance that is left after some steps: the product of 1 - beta_t over t = 0 ... step.

    beta_t = sigmoid(x_t) (0.005 - 1e-5) + 1e-5, with 1,000 values x_t from -6 to 6.

    Args:
      step: 0 to 999.
    """
    betas = 1 / (1 + np.exp(-np.linspace(-6, 6, NOISE_STEPS))) * (MOST - LEAST) + LEAST
    return float(np.prod(1 - betas[: step + 1]))


def noised(
    pixels: UInt8[Array, "B 1 S S 3"],
    keys: UInt32[Array, "B 2"],
    step: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Float[Array, "B 1 S S 3"]:
    """sqrt(a) x + sqrt(1 - a) noise, where x is the image as the model sees it and a what is `kept`.

    Args:
      pixels: gray levels 0-255.
      keys: of each image's noise.
      step: of `kept`.
      mean: that the model takes off each color, range [0, 1].
      std: that it divides by.

    Returns:
      Gray levels, of which some lie outside 0-255.
    """
    share = kept(step)
    noise = jax.vmap(lambda key: jax.random.normal(key, pixels.shape[1:]))(keys)
    x = (pixels.astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)
    x = jnp.sqrt(share) * x + jnp.sqrt(1 - share) * noise
    return (x * jnp.asarray(std) + jnp.asarray(mean)) * 255
