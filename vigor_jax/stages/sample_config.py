"""Candidates of unlabeled images: the options."""

import dataclasses

from vigor_jax import fingerprint
from vigor_jax.data.text.conversation import check_template
from vigor_jax.errors import InputError
from vigor_jax.inference.sampling_config import SamplingConfig


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """What is sampled.

    Attributes:
      images: the unlabeled images: a folder, searched however deep, tar shards or Parquet, local or remote
        (docs/images.md).
      prompts: each image is asked one of them, drawn by its name and the seed.
      template: conversation format; by default `model.template`.
      images_per_part: images in one file of candidates; what a kill can lose is one file. Each starts with empty rows,
        so take at least ten times `sampling.batch_size`: fewer leave rows empty while the last answers end.
      limit: only this many images, the first in their order, which in a folder is that of the names; 0 takes all.
      int8: hold the language model's weights in 8 bits meanwhile; what it says changes a little, see `models.int8`.
      sampling: how candidates are drawn.
    """

    images: str | None = fingerprint.place(None)
    prompts: tuple[str, ...] = ("Describe this image in detail.",)
    template: str | None = None
    images_per_part: int = 256
    limit: int = 0
    int8: bool = False
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        check_template(self.template, "sample.template")
        if not self.prompts:
            raise InputError("sample.prompts: expected at least one, got none")
        if self.images_per_part < 1 or self.limit < 0:
            raise InputError(
                f"sample.images_per_part must be at least 1 and limit at least 0, got {self.images_per_part} and "
                f"{self.limit}"
            )
