"""Preferences as batches: image and prompt once in a row, and each response a branch behind them.

Under the mask of `inference.tree_attention` each response reads like a separate conversation, so two responses cost one
image and one prompt.
"""

import dataclasses
import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8, UInt32
from PIL import Image

from vigor_jax.data.batches.loader import Batch, ordered_batches, shuffled_batches
from vigor_jax.data.batches.response_rows import response_row
from vigor_jax.data.batches.tree_batches import TreeRows, collate, padded_sizes
from vigor_jax.data.batches.tree_sequences import Row
from vigor_jax.data.images.preprocessing import Preprocessing, load_image, preprocess
from vigor_jax.data.preferences.read import PreferenceRow
from vigor_jax.data.text.conversation import Template, encode_responses
from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError


class PreferenceRows(NamedTuple):
    """Rows as they go to the devices: C responses a row at most, K pairs, P places.

    Attributes:
        responses: rows of `data.batches.response_rows`; the weights are those of the tokens in their response's score.
        owners: the response of each place; -1 where there is none.
        lengths: tokens of each response; 0 where a row has no more.
        better: of each pair; 0 where a row has no more.
        worse: the same.
        is_pair: which of the K are pairs.
        ref_logps: log p of each token under the reference, see `training.dpo_update.logps_of`; 0 until it is known.
        ref_unseen: the same where another image is shown; None if none is.
        other_pixels: the image that is shown in place of the row's own; None if none is.
        noise_keys: of the noise on each image; None if there is none.
    """

    responses: TreeRows
    owners: Int32[Any, "B P"]
    lengths: Int32[Any, "B C"]
    better: Int32[Any, "B K"]
    worse: Int32[Any, "B K"]
    is_pair: Bool[Any, "B K"]
    ref_logps: Float32[Any, "B P"]
    ref_unseen: Float32[Any, "B P"] | None = None
    other_pixels: UInt8[Any, "B 1 S S 3"] | None = None
    noise_keys: UInt32[Any, "B 2"] | None = None

    @property
    def pixels(self) -> UInt8[Any, "B 1 S S 3"]:
        """The rows' own images."""
        return self.responses.pixels


class EncodedPreference(NamedTuple):
    """A preference as tokens.

    Attributes:
        row: of `data.batches.response_rows`; the weights are those of the tokens in their response's score.
        lengths: tokens of each response, or how many places are about it.
    """

    row: Row
    lengths: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class PreferenceEncoder:
    """Preferences to tokens, with the settings of a run.

    Attributes:
        tokenizer: the policy's tokenizer.
        template: conversation format.
        image_token_id: stands for one image feature.
        num_image_tokens: features of an image.
        max_length: most tokens of a row: the prompt and all responses.
        max_positions: of the model: the prompt and one response.
        changed_weight: of tokens that the other response has not, see `changed_tokens`; other than 1 only for two
            responses.
        length_normalized: a response's score is the mean over its tokens rather than the sum.
    """

    tokenizer: Tokenizer
    template: Template
    image_token_id: int
    num_image_tokens: int
    max_length: int
    max_positions: int
    changed_weight: float = 1.0
    length_normalized: bool = False

    def tokens(self, row: PreferenceRow) -> tuple[list[int], list[list[int]]]:
        """Ids of the prompt, and of each response.

        Raises:
            InputError: the row cannot be written, is too long, or two responses have the same tokens. The message does
                not name the row.
        """
        preference = row.preference
        prompt, responses = encode_responses(
            self.tokenizer,
            self.template,
            preference.prompt,
            preference.responses,
            image_token_id=self.image_token_id,
            num_image_tokens=self.num_image_tokens,
            with_image=row.image is not None,
            history=preference.history,
            context=preference.context,
            whole=preference.whole,
        )
        if len({tuple(ids) for ids in responses}) < len(responses):
            raise InputError("two responses have the same tokens; remove one")
        check_fits(prompt, responses, self.max_length, self.max_positions)
        return prompt, responses

    def __call__(self, row: PreferenceRow) -> EncodedPreference:
        """A row whose places are those before each token of each response, in their order.

        Raises:
            InputError: as `tokens`.
        """
        prompt, responses = self.tokens(row)
        written = response_row(prompt, responses)
        weights = np.concatenate(self._weights(responses))
        return EncodedPreference(dataclasses.replace(written, weights=weights), tuple(map(len, responses)))

    def _weights(self, responses: Sequence[Sequence[int]]) -> list[np.ndarray]:
        weights = [np.ones(len(ids), np.float32) for ids in responses]
        if self.changed_weight != 1:
            assert len(responses) == 2, "what has changed is told between two"
            factor = np.float32(self.changed_weight)
            weights = [np.where(changed, factor, np.float32(1)) for changed in changed_tokens(*responses)]
        return [each / each.sum() for each in weights] if self.length_normalized else weights


def check_fits(prompt: Sequence[int], responses: Sequence[Sequence[int]], max_length: int, max_positions: int) -> None:
    """Refuses a row that is too long.

    Args:
        prompt: token ids.
        responses: token ids of each.
        max_length: most tokens of a row.
        max_positions: of the model.

    Raises:
        InputError: it is. The message does not name the row.
    """
    if (longest := len(prompt) + max(map(len, responses))) > max_positions:
        raise InputError(
            f"prompt and response have {longest} tokens, and the model has {max_positions} positions; shorten "
            "the response or remove the row"
        )
    if (length := len(prompt) + sum(map(len, responses))) > max_length:
        raise InputError(
            f"prompt and {len(responses)} responses have {length} tokens, and max_length is {max_length}; "
            "raise it, or remove the row (responses are never cut)"
        )


class RowEncoder(Protocol):
    """Writes preferences as tokens.

    Attributes:
        tokenizer: of the model.
    """

    @property
    def tokenizer(self) -> Tokenizer: ...

    def __call__(self, row: PreferenceRow, /) -> EncodedPreference:
        """A row, and how many of its places are about each response.

        Raises:
            InputError: it cannot be written. The message does not name it.
        """


def changed_tokens(one: Sequence[int], other: Sequence[int]) -> tuple[Bool[np.ndarray, "N"], Bool[np.ndarray, "M"]]:
    """Which tokens of each of two responses are not in a common run of both (RLHF-V's corrected segments)."""
    changed = np.ones(len(one), bool), np.ones(len(other), bool)
    for start, there, length in difflib.SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks():
        changed[0][start : start + length] = False
        changed[1][there : there + length] = False
    return changed


def in_pairs(rows: Sequence[PreferenceRow]) -> list[PreferenceRow]:
    """Rows of two responses each, the better one first: one for every pair."""
    found = []
    for row in rows:
        for better, worse in row.preference.pairs():
            responses = (row.preference.responses[better], row.preference.responses[worse])
            pair = dataclasses.replace(row.preference, responses=responses, ratings=(1.0, 0.0))
            found.append(row._replace(preference=pair))
    return found


# By a row's key: for each token of each response, in order, log p under the reference; and the same where another
# image is shown, empty if none is.
References: TypeAlias = Mapping[bytes, tuple[np.ndarray, np.ndarray]]


def crop(image: Image.Image, most: float, digest: bytes) -> Image.Image:
    """A part of an image of the same proportions, anywhere in it, of up to this share of its area (mDPO, section 3.2).

    Args:
        image: of any size.
        most: in (0, 1].
        digest: of the row, which decides on size and place: the same at each time.
    """
    size, across, down = np.random.default_rng(list(digest)).random(3)
    scale = (most * (1 - size)) ** 0.5
    width, height = (max(1, round(side * scale)) for side in image.size)
    left, top = round(across * (image.width - width)), round(down * (image.height - height))
    return image.crop((left, top, left + width, top + height))


@dataclasses.dataclass(frozen=True)
class PreferenceLoader:
    """Preferences to batches, in the order and with the guarantees of `data.batches.loader.Loader`.

    Attributes:
        data: the data set; None is a place that is empty, where nothing is learned.
        data_file: where it comes from, for messages.
        encoder: writes it.
        preprocessing: the vision tower's settings.
        batch_size: preferences an update, of all processes together.
        num_responses: of a preference, at most.
        num_pairs: of a preference, at most.
        epochs: passes over the data.
        seed: of the order, and of noise.
        bucket: padded lengths are multiples of this.
        rows: which rows of the global batch this process holds, ascending; all by default.
        references: what the reference says; None until it is known.
        cropped: also shows a part of each image, of up to this share of it, see `crop`; None does not.
        noised: gives each row a key for noise.
    """

    data: Sequence[PreferenceRow | None]
    data_file: Path
    encoder: RowEncoder
    preprocessing: Preprocessing
    batch_size: int
    num_responses: int
    num_pairs: int
    epochs: int = 1
    seed: int = 0
    bucket: int = 128
    rows: Sequence[int] | None = None
    references: References | None = None
    cropped: float | None = None
    noised: bool = False

    @property
    def num_steps(self) -> int:
        """Full batches in all epochs together."""
        return len(self.data) * self.epochs // self.batch_size

    @property
    def num_dropped(self) -> int:
        """Preferences of the last epoch that fill no batch."""
        return len(self.data) * self.epochs % self.batch_size

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """As `Loader.batches`."""
        return shuffled_batches(
            len(self.data), self.make, batch_size=self.batch_size, epochs=self.epochs, seed=self.seed, start=start
        )

    def in_order(self) -> Iterator[Batch]:
        """Every preference once; rows of padding fill the last batch up."""
        return ordered_batches(len(self.data), self.make, batch_size=self.batch_size)

    def make(self, indices: Sequence[int]) -> Batch:
        """The batch of some preferences; if they are fewer than `batch_size`, rows of padding follow.

        Raises:
            InputError: an image cannot be read.
        """
        data = [self.data[index] for index in indices]
        encoded = [None if row is None else self._encoded(row) for row in data]
        written = [found.row for found in encoded if found is not None]
        length, places = padded_sizes(written, self.bucket) if written else (self.bucket, self.bucket)
        mine = range(self.batch_size) if self.rows is None else self.rows
        held = [_Held(data[row], encoded[row]) if row < len(data) else _Held(None, None) for row in mine]
        pixels, other = self._pixels(held)
        own = [found.encoded.row if found.encoded else None for found in held]
        pad_id = self.encoder.tokenizer.pad_id
        responses = collate(own, length, places, pad_id, pixels, self._instructions(data, mine))
        rows = self._with_pairs(responses, held)._replace(
            other_pixels=other, noise_keys=self._noise_keys(held) if self.noised else None
        )
        num_tokens = sum(len(row.token_ids) for row in written)
        return Batch(rows, tuple(row.title for row in data if row is not None), num_tokens)

    def _encoded(self, row: PreferenceRow) -> EncodedPreference:
        try:
            return self.encoder(row)
        except InputError as error:
            raise InputError(f"{self.data_file}, {row.title}: {error}") from error

    def _pixels(self, held: Sequence["_Held"]) -> tuple[np.ndarray, np.ndarray | None]:
        """The rows' images, and those that are shown in their place."""
        size = self.preprocessing.size
        pixels = np.zeros((len(held), 1, size, size, 3), np.uint8)
        other = None if self.cropped is None else np.zeros_like(pixels)
        for local, (row, _) in enumerate(held):
            if row is None or row.image is None:
                continue
            try:
                image = load_image(row.image)
                pixels[local, 0] = preprocess(image, self.preprocessing)
                if other is not None and self.cropped is not None:
                    other[local, 0] = preprocess(crop(image, self.cropped, row.digest()), self.preprocessing)
            except InputError as error:
                raise InputError(f"{self.data_file}, {row.title}: {error}") from error
        return pixels, other

    def _instructions(self, rows: Sequence[PreferenceRow | None], mine: Sequence[int]) -> np.ndarray | None:
        """What is asked about each image of this process, as wide as all processes have it: `Int32[N 1 Q]`."""
        padded = [*rows, *[None] * (self.batch_size - len(rows))]
        asked = ["" if row is None or row.image is None else row.preference.first_prompt for row in padded]
        ids = self.encoder.tokenizer.instruction_ids(asked)
        return None if ids is None else ids[list(mine), None]

    def _noise_keys(self, held: Sequence["_Held"]) -> UInt32[np.ndarray, "N 2"]:
        digests = [self.seed.to_bytes(8, "big") + (row.digest() if row else b"") for row, _ in held]
        keys = [np.frombuffer(hashlib.blake2b(digest, digest_size=8).digest(), ">u4") for digest in digests]
        return np.stack(keys).astype(np.uint32)

    def _with_pairs(self, responses: TreeRows, held: Sequence["_Held"]) -> PreferenceRows:
        num_rows, num_places = responses.places.shape
        owners = np.full((num_rows, num_places), -1, np.int32)
        lengths = np.zeros((num_rows, self.num_responses), np.int32)
        better, worse = (np.zeros((num_rows, self.num_pairs), np.int32) for _ in range(2))
        is_pair = np.zeros((num_rows, self.num_pairs), bool)
        ref_logps = np.zeros((num_rows, num_places), np.float32)
        ref_unseen = np.zeros_like(ref_logps) if self.noised or self.cropped is not None else None
        for local, (row, encoded) in enumerate(held):
            if row is None or encoded is None:
                continue
            sizes, total = encoded.lengths, sum(encoded.lengths)
            lengths[local, : len(sizes)] = sizes
            owners[local, :total] = np.repeat(np.arange(len(sizes)), sizes)
            pairs = np.array(row.preference.pairs(), np.int32)
            better[local, : len(pairs)], worse[local, : len(pairs)] = pairs.T
            is_pair[local, : len(pairs)] = True
            if self.references is not None:
                own, unseen = self.references[row.key()]
                ref_logps[local, :total] = own
                if ref_unseen is not None:
                    ref_unseen[local, :total] = unseen
        return PreferenceRows(responses, owners, lengths, better, worse, is_pair, ref_logps, ref_unseen)


class _Held(NamedTuple):
    """A row of this process, and its tokens; None fills a batch up."""

    row: PreferenceRow | None
    encoded: EncodedPreference | None
