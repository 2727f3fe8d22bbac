"""Parts of candidates → parts of verdicts of one stream: after sampling, or in a thread while others are sampled."""

import itertools
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from vigor_jax.data.images.store import Images, open_images
from vigor_jax.data.records.store import (
    count_parts,
    has_part,
    join,
    part_metadata,
    part_name,
    part_seal,
    read_part,
    write_part,
)
from vigor_jax.errors import InputError
from vigor_jax.records import Candidate, ScoreItem, Verdict
from vigor_jax.rewards.stream import RewardStream
from vigor_jax.stages.stage import OnPart

logger = logging.getLogger(__name__)


def score(
    stream: RewardStream,
    records: str | Path,
    images: str | Path,
    *,
    process_index: int = 0,
    process_count: int = 1,
    together: bool = False,
    made_with: str = "",
    needs: Sequence[str] = (),
) -> None:
    """Writes the parts of `verdicts/STREAM/` that are not there.

    Args:
      stream: the judge.
      records: has `candidates/`; local or remote.
      images: where the images are, a place of `data.images.store.open_images`.
      process_index: of this process.
      process_count: of all.
      together: all processes judge each part together, as a model on the mesh must, and one of them writes it; else
        each judges its own parts.
      made_with: names the settings, for the parts' seals.
      needs: streams whose verdicts it reads; they exist.

    Raises:
      InputError: candidates are missing, an image cannot be read, or there are verdicts of another model.
    """
    candidates = join(records, "candidates")
    count = count_parts(candidates)
    part_metadata(candidates)  # which refuses parts of several runs
    if different := check_digest(stream, records):
        raise InputError(different)
    own = [index for index in range(count) if together or index % process_count == process_index]
    folder = join(records, "verdicts", stream.name)
    todo = [index for index in own if not has_part(folder, index, count)]
    if not todo:
        logger.info("score: all verdicts of %s are there", stream.name)
        return
    writes = {index for index in todo if index % process_count == process_index}
    with tqdm(
        total=len(own),
        initial=len(own) - len(todo),
        unit="part",
        desc=f"score, {stream.name}",
        dynamic_ncols=True,
        disable=process_index != 0,
    ) as bar:
        for _ in _judge_parts(stream, records, open_images(images), todo, count, writes, made_with, needs):
            bar.update()


@contextmanager
def scoring_ahead(
    stream: RewardStream,
    records: str | Path,
    images: str | Path,
    *,
    process_index: int = 0,
    process_count: int = 1,
    made_with: str = "",
    needs: Sequence[str] = (),
    then: Sequence[OnPart] = (),
) -> Iterator[OnPart]:
    """Judges parts in a thread, as soon as they are named, while the accelerator samples the next ones.

    Args:
      stream: as in `score`, as are the others but for `then`.
      records: as above.
      images: as above.
      process_index: as above.
      process_count: as above.
      made_with: as above.
      needs: streams whose verdicts on a part exist when it is named.
      then: are told (index, count) of each part of this process whose verdicts are there: streams that need these.

    Yields a function that takes (index, count) of a complete part of `candidates/`. Leaving the context waits for
    the parts that were named; how much of the work was hidden behind sampling is logged.

    Raises:
      InputError: as `score`, when the context is left.
    """
    if different := check_digest(stream, records):
        raise InputError(different)
    folder = join(records, "verdicts", stream.name)
    opened = open_images(images)
    named: queue.Queue[tuple[int, int] | None] = queue.Queue()
    busy, failures, halted = 0.0, list[BaseException](), threading.Event()

    def work() -> None:
        nonlocal busy
        while (part := named.get()) is not None:
            index, count = part
            if halted.is_set() or index % process_count != process_index:
                continue
            started = time.monotonic()
            try:
                if not has_part(folder, index, count):
                    for _ in _judge_parts(stream, records, opened, [index], count, {index}, made_with, needs):
                        pass
            except BaseException as error:  # it is raised where the context is left
                failures.append(error)
                halted.set()
                continue
            busy += time.monotonic() - started
            for tell in then:
                tell(index, count)

    thread = threading.Thread(target=work, name=f"score-{stream.name}", daemon=True)
    thread.start()
    try:
        yield lambda index, count: named.put((index, count))
    except BaseException:
        halted.set()  # an interrupted user does not want to wait for more than the part under way
        raise
    finally:
        ended = time.monotonic()
        named.put(None)
        thread.join()
        waited = time.monotonic() - ended
        if busy:
            logger.info(
                "score: %s worked %.1f s, %.1f s of them while candidates were sampled",
                stream.name, busy, max(0.0, busy - waited),
            )  # fmt: skip
    if failures:
        raise failures[0]


def when_all(told: int, follow: OnPart) -> OnPart:
    """What is to be told of each part by several streams, and passes it on when all of them have."""
    counts: Counter[int] = Counter()
    lock = threading.Lock()

    def tell(index: int, count: int) -> None:
        with lock:
            counts[index] += 1
            is_last = counts[index] == told
        if is_last:
            follow(index, count)

    return tell


def check_digest(stream: RewardStream, records: str | Path) -> str:
    """Says so if the stream's verdicts on disk were made with another model or other settings; else ""."""
    folder = join(records, "verdicts", stream.name)
    before = part_metadata(folder).get("digest", stream.digest)
    if before == stream.digest:
        return ""
    was, now = before[:12], stream.digest[:12]
    return f"{folder} was made with another {stream.name}: its digest was {was}, and now it is {now}"


def _judge_parts(
    stream: RewardStream,
    records: str | Path,
    images: Images,
    todo: Sequence[int],
    count: int,
    writes: set[int],
    made_with: str,
    needs: Sequence[str] = (),
) -> Iterator[int]:
    """Judges parts in one go, so that the stream reads ahead across their borders; yields each one's index when it
    is done."""
    candidates, verdicts = join(records, "candidates"), join(records, "verdicts", stream.name)
    sizes: list[int] = []  # images in each part, known once the first of them is asked for

    def items() -> Iterator[ScoreItem]:
        for index in todo:
            part = list(score_items(read_part(candidates, index, count, Candidate), images))
            if needs:
                part = _with_verdicts(part, records, index, count, needs)
            sizes.append(len(part))
            yield from part

    judged = stream.judge(items())
    for position, index in enumerate(todo):
        found = list(next(judged))
        for _ in range(sizes[position] - 1):
            found += next(judged)
        if index in writes:
            made_of = part_seal(candidates, index, count).digest
            metadata = {"digest": stream.digest}
            write_part(verdicts, index, count, found, Verdict, metadata, made_with=made_with, made_of=made_of)
        yield index


def _with_verdicts(
    items: Sequence[ScoreItem], records: str | Path, index: int, count: int, needs: Sequence[str]
) -> list[ScoreItem]:
    """The items of a part, each with the verdicts of other streams on its texts.

    Raises:
      InputError: verdicts are missing, or are of other candidates.
    """
    candidates = part_seal(join(records, "candidates"), index, count).digest
    for name in needs:
        folder = join(records, "verdicts", name)
        if part_seal(folder, index, count).made_of not in ("", candidates):
            raise InputError(
                f"{join(folder, part_name(index, count))} is of other candidates than those that are there; remove it "
                "and run the stage score again"
            )
    verdicts = {name: read_part(join(records, "verdicts", name), index, count, Verdict) for name in needs}
    return [
        item._replace(
            verdicts={name: tuple(itertools.islice(each, len(item.texts))) for name, each in verdicts.items()}
        )
        for item in items
    ]


def score_items(candidates: Iterable[Candidate], images: Images) -> Iterator[ScoreItem]:
    """The candidates of each image and prompt, which stand together.

    Raises:
      InputError: an image is gone; names it.
    """
    for (image, prompt), group in itertools.groupby(candidates, key=lambda record: (record.image, record.prompt)):
        if image not in images:
            raise InputError(f"score: {images.file(image)} has candidates and is gone; put it back, or sample again")
        yield ScoreItem(image, images.file(image), prompt, tuple(record.text for record in group))
