"""A CLIP on the devices of all processes: images, read ahead, and texts become points on one sphere."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float
from PIL import Image

from vigor_jax.data.images.preprocessing import Preprocessing, load_image, preprocess
from vigor_jax.errors import InputError
from vigor_jax.hf.clip.checkpoint import ClipCheckpoint
from vigor_jax.models.layers import stacks_inference
from vigor_jax.parallel.sharding import local_rows, round_up_batch, shard_rows
from vigor_jax.records import ScoreItem

IMAGE_READERS = 4
BATCHES_AHEAD = 1
DTYPE = "float32"  # cosines of two words differ in the third digit, and so do their roundings to bfloat16

Of = TypeVar("Of")
Points: TypeAlias = Float[np.ndarray, "N D"]


class Images(NamedTuple, Generic[Of]):
    """Images that are wanted together.

    Attributes:
      of: what they are of.
      number: how many.
      read: gives those with these numbers, as `preprocess` makes them; called in a thread.
    """

    of: Of
    number: int
    read: Callable[[Sequence[int]], Sequence[np.ndarray]]


class ClipTowers:
    """Embeds images and texts in batches of one size, so that each tower is compiled once.

    With several processes, each asks for the same and gets all, but reads only the images of its rows.

    Args:
      checkpoint: the CLIP; its weights are loaded when the first point is wanted.
      mesh: all devices; batches are split over `data` x `fsdp`.
      batch_size: of images and of texts; rounded up to what splits.

    Attributes:
      size: of a batch.
      compilations: how often a tower was compiled so far.
    """

    def __init__(self, checkpoint: ClipCheckpoint, mesh: Mesh, batch_size: int) -> None:
        self._checkpoint, self._mesh = checkpoint, mesh
        self.size, self.compilations = round_up_batch(batch_size, mesh), 0
        self._own_rows = frozenset(local_rows(self.size, mesh))
        whole = NamedSharding(mesh, P())
        self._image_tower = jax.jit(self._images, out_shardings=whole)
        self._text_tower = jax.jit(self._texts, out_shardings=whole)

    def embed_images(self, wanted: Iterable[Images[Of]]) -> Iterator[list[tuple[Of, Points]]]:
        """Unit vectors of images, in their order; a batch is read ahead.

        A pass has the images of several groups, as far as they fit, and of `size` groups at most; those of a larger
        group take several passes.

        Args:
          wanted: the same in all processes.

        Yields:
          What each pass is of, with the points of its images: float32, none where none was wanted.
        """
        waiting: collections.deque[tuple[list[Images[Of]], dict[int, Future]]] = collections.deque()
        readers = ThreadPoolExecutor(IMAGE_READERS, "read-image")
        try:
            for groups in self._batches(wanted):
                waiting.append((groups, self._read_ahead(groups, readers)))
                if len(waiting) > BATCHES_AHEAD:
                    yield self._embedded(*waiting.popleft())
            while waiting:
                yield self._embedded(*waiting.popleft())
        finally:
            readers.shutdown(cancel_futures=True)

    def embed_texts(self, texts: Sequence[str], *, longest: bool = False) -> Points:
        """Unit vectors of texts.

        Args:
          texts: at least one.
          longest: as for `ClipTokenizer.rows`; rows of another length compile the tower again.

        Raises:
          InputError: as `ClipTokenizer.rows`.
        """
        rows = self._checkpoint.tokenizer.rows(texts, longest=longest)
        padding = -len(rows) % self.size
        rows = np.concatenate([rows, np.repeat(rows[:1], padding, axis=0)])
        found = []
        for first in range(0, len(rows), self.size):
            own = rows[first : first + self.size]
            with jax.set_mesh(self._mesh):
                points = self._text_tower(self._graphdef_and_weights[1], shard_rows(own, self._mesh))
            found.append(jax.device_get(points))
        return np.concatenate(found)[: len(texts)]

    def no_points(self) -> Points:
        """Those of no image or text."""
        return np.zeros((0, self._checkpoint.config.projection_dim), np.float32)

    @cached_property
    def _graphdef_and_weights(self) -> tuple[nnx.GraphDef, nnx.State]:
        with jax.set_mesh(self._mesh):
            scan = stacks_inference()
        graphdef, weights = nnx.split(self._checkpoint.load(mesh=self._mesh, dtype=DTYPE, scan=scan))
        return graphdef, weights

    def _batches(self, wanted: Iterable[Images[Of]]) -> Iterator[list[Images[Of]]]:
        groups: list[Images[Of]] = []
        count = 0
        for group in wanted:
            if groups and count + group.number > self.size:
                yield groups
                groups, count = [], 0
            groups.append(group)
            count += group.number
            if count >= self.size or len(groups) == self.size:  # without any images, too, no more is read ahead
                yield groups
                groups, count = [], 0
        if groups:
            yield groups

    def _read_ahead(self, groups: Sequence[Images[Of]], readers: ThreadPoolExecutor) -> dict[int, Future]:
        """The images of this process's rows to come, by the number of their group."""
        reading, first = {}, 0
        for number, group in enumerate(groups):
            if own := self._own(first, group.number):
                reading[number] = readers.submit(group.read, own)
            first += group.number
        return reading

    def _own(self, first: int, count: int) -> list[int]:
        """Of a group whose images begin at a row, the numbers of those that this process reads."""
        return [number for number in range(count) if (first + number) % self.size in self._own_rows]

    def _embedded(self, groups: Sequence[Images[Of]], reading: dict[int, Future]) -> list[tuple[Of, Points]]:
        starts = np.cumsum([0, *(group.number for group in groups)]).tolist()
        pixels: dict[int, np.ndarray] = {}
        for number, future in reading.items():
            rows = (starts[number] + each for each in self._own(starts[number], groups[number].number))
            pixels |= dict(zip(rows, future.result(), strict=True))
        passes = [self._embed(pixels, first) for first in range(0, starts[-1], self.size)]
        points = np.concatenate(passes) if passes else self.no_points()
        return [
            (group.of, points[start:end]) for group, start, end in zip(groups, starts[:-1], starts[1:], strict=True)
        ]

    def _embed(self, pixels: dict[int, np.ndarray], first: int) -> Points:
        """One pass, over the rows from `first` on."""
        edge = self._checkpoint.preprocessing.size
        batch = np.zeros((self.size, edge, edge, 3), np.uint8)
        for row in range(self.size):
            if (found := pixels.get(first + row)) is not None:
                batch[row] = found
        with jax.set_mesh(self._mesh):
            return jax.device_get(self._image_tower(self._graphdef_and_weights[1], shard_rows(batch, self._mesh)))

    def _images(self, weights: nnx.State, pixels: jax.Array) -> jax.Array:
        self.compilations += 1
        with jax.default_matmul_precision("highest"):  # on TPUs the default rounds to bfloat16
            return nnx.merge(self._graphdef_and_weights[0], weights).embed_images(pixels)

    def _texts(self, weights: nnx.State, token_ids: jax.Array) -> jax.Array:
        self.compilations += 1
        with jax.default_matmul_precision("highest"):  # on TPUs the default rounds to bfloat16
            return nnx.merge(self._graphdef_and_weights[0], weights).embed_texts(token_ids)


def read_pixels(
    item: ScoreItem,
    preprocessing: Preprocessing,
    crops: Callable[[Image.Image], Iterable[Image.Image]] = lambda image: (image,),
) -> list[np.ndarray]:
    """The image of an item as the vision tower takes it, or some parts of it, decoded once.

    Args:
      item: names the image.
      preprocessing: of the tower.
      crops: gives the parts of the upright image.

    Raises:
      InputError: it cannot be read; names it.
    """
    try:
        return [preprocess(each, preprocessing) for each in crops(load_image(item.path))]
    except InputError as error:
        raise InputError(f"{item.image}: {error}") from error
