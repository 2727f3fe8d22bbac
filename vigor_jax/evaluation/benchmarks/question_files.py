"""Where the images of a benchmark's questions are: in its own file, or in a folder under other names."""

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath

from vigor_jax.data.images.preprocessing import SUFFIXES
from vigor_jax.evaluation.benchmarks.questions import ChoiceQuestion, Question
from vigor_jax.records import ImageFile


def write_images(questions: Iterable[ChoiceQuestion], folder: Path) -> dict[str, Path]:
    """Makes files of the images that questions bring along; a file of the same size stays as it is.

    Returns:
        Image → file, as `EvaluatedModel.answer` takes it.
    """
    paths: dict[str, Path] = {}
    for question in questions:
        if question.image is not None and question.image_bytes is not None and question.image not in paths:
            path = paths[question.image] = Path(folder) / question.image
            if not path.exists() or path.stat().st_size != len(question.image_bytes):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(question.image_bytes)
    return paths


def find_files(questions: Iterable[Question], images: Mapping[str, ImageFile]) -> dict[str, ImageFile]:
    """Image → file, as `EvaluatedModel.answer` takes it; what is not there is left out.

    A name without a suffix, such as SEED-Bench's, may be a file's name as it is, or lack the suffix of an image; and
    the file may be in a folder below, as SEED-Bench-image and SEED-Bench-video-image are.
    """
    paths: dict[str, ImageFile] = {}
    below: dict[str, str] | None = None
    for name in dict.fromkeys(question.image for question in questions if question.image):
        called = [f"{name}{suffix}" for suffix in ("", *SUFFIXES)]
        found = next((one for one in called if one in images), None)
        if found is None:
            if below is None:
                below = {PurePath(one).name: one for one in images}
            found = next((below[one] for one in called if one in below), None)
        if found is not None:
            paths[name] = images[found]
    return paths
