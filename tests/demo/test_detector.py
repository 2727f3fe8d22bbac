"""The demo's detector: its loss, what it is taught, how it is written, and how well the one that is shipped does."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from detector_bridge.client import BlockingClient, ClientConfig
from detector_bridge.local import LocalConfig, LocalDetector
from detector_bridge.messages import Request
from detector_bridge.miniature import Batch, Lessons
from detector_bridge.miniature_loss import detection_loss, focal, giou, match
from tests.detector_bridge.sidecar import encode
from vigor_jax.demo import detector
from vigor_jax.demo.detector import build_detector, colored_phrases, evaluate_detector
from vigor_jax.demo.detector_data import Phrase, draw_pictures, make_batch, make_phrases, write_lessons
from vigor_jax.demo.detector_files import IMAGE_MEAN, IMAGE_STD, MAX_TOKENS, make_tokenizer
from vigor_jax.demo.drawing import box_xyxy, draw
from vigor_jax.demo.scenes import IMAGE_SIZE, SHAPES, make_scene

SHIPPED = Path(detector.__file__).parent / "checkpoints" / "detector"
TEST_SEED = 2026
SIZES = {"num_steps": 3, "num_pictures": 40, "num_test_scenes": 2}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make so small a network slower, and much so on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def plain_focal(logit: float, target: bool) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -0.25 * (1 - p) * math.log(p) if target else -0.75 * p * math.log(1 - p)


@given(st.floats(-15, 15), st.booleans())
def test_focal_loss_is_the_plain_formula(logit: float, target: bool) -> None:
    (found,) = focal(torch.tensor([logit], dtype=torch.float64), torch.tensor([target]))
    assert float(found) == pytest.approx(plain_focal(logit, target), rel=1e-6, abs=1e-12)


def test_focal_loss_of_sure_answers_is_finite() -> None:
    logits = torch.tensor([-200.0, -200.0, 200.0, 200.0], requires_grad=True)
    loss = focal(logits, torch.tensor([True, False, True, False]))
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.tensor([50.0, 0, 0, 150]))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


cells = st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(1, 5), st.integers(1, 5))


@given(cells, cells)
def test_giou_counts_cells(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    grids = np.zeros((2, 12, 12), bool)
    for grid, (left, top, width, height) in zip(grids, (first, second), strict=True):
        grid[top : top + height, left : left + width] = True
    rows, columns = grids.any((0, 2)).nonzero()[0], grids.any((0, 1)).nonzero()[0]
    hull = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    shared, union = (grids[0] & grids[1]).sum(), (grids[0] | grids[1]).sum()
    boxes = torch.tensor(
        [[left + w / 2, top + h / 2, w, h] for left, top, w, h in (first, second)], dtype=torch.float64
    )
    assert float(giou(boxes[0], boxes[1])) == pytest.approx(shared / union - (hull - union) / hull, abs=1e-6)


def answers(seed: int, B: int = 3, Q: int = 5, M: int = 3, T: int = 6) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(B, Q, T, generator=random)
    logits[0, :, T - 2 :] = -math.inf
    boxes, target_boxes = (0.1 + 0.4 * torch.rand(B, N, 4, generator=random) for N in (Q, M))
    targets = torch.rand(B, M, T, generator=random) < 0.4
    targets[0, :, T - 2 :] = False
    targets[1, 0] = False  # not asked for
    return logits, boxes, target_boxes, targets


def plain_cost(logits: torch.Tensor, box: torch.Tensor, target_box: torch.Tensor, words: torch.Tensor) -> float:
    """Of one query and one object."""
    own = [float(logit) for logit, word in zip(logits, words, strict=True) if word]
    wording = sum(plain_focal(logit, True) - plain_focal(logit, False) for logit in own) / len(own)
    return 2 * wording + 5 * float((box - target_box).abs().sum()) - 2 * float(giou(box, target_box))


@pytest.mark.parametrize("seed", range(5))
def test_no_other_matching_costs_less(seed: int) -> None:
    logits, boxes, target_boxes, targets = answers(seed)
    rows, queries, objects = match(logits, boxes, target_boxes, targets)
    for row in range(len(logits)):
        asked = [index for index in range(targets.shape[1]) if targets[row, index].any()]
        mine = dict(zip(objects[rows == row].tolist(), queries[rows == row].tolist(), strict=True))
        assert sorted(mine) == asked
        assert len(set(mine.values())) == len(asked)
        cost = [
            [plain_cost(logits[row, q], boxes[row, q], target_boxes[row, m], targets[row, m]) for m in asked]
            for q in range(boxes.shape[1])
        ]
        totals = [
            sum(cost[q][column] for column, q in enumerate(chosen))
            for chosen in itertools.permutations(range(boxes.shape[1]), len(asked))
        ]
        total = sum(cost[mine[m]][column] for column, m in enumerate(asked))
        assert total == pytest.approx(min(totals), abs=1e-5)


def test_loss_is_the_sum_over_queries_by_object() -> None:
    logits, boxes, target_boxes, targets = answers(0)
    rows, queries, objects = match(logits, boxes, target_boxes, targets)
    matched = {(row, q): m for row, q, m in zip(rows.tolist(), queries.tolist(), objects.tolist(), strict=True)}
    total = 0.0
    for row, q in itertools.product(range(logits.shape[0]), range(logits.shape[1])):
        m = matched.get((row, q))
        for token, logit in enumerate(logits[row, q].tolist()):
            if logit > -math.inf:
                total += 2 * plain_focal(logit, m is not None and bool(targets[row, m, token]))
        if m is not None:
            total += 5 * float((boxes[row, q] - target_boxes[row, m]).abs().sum())
            total += 2 * (1 - float(giou(boxes[row, q], target_boxes[row, m])))
    assert float(detection_loss(logits, boxes, target_boxes, targets)) == pytest.approx(total / len(matched), rel=1e-5)


def test_repeats_want_several_queries_for_each_object() -> None:
    """Against objects that are written down several times."""
    logits, boxes, target_boxes, targets = answers(1, Q=9)
    repeated = detection_loss(logits, boxes, target_boxes, targets, repeats=3)
    written = detection_loss(logits, boxes, torch.cat([target_boxes] * 3, 1), torch.cat([targets] * 3, 1))
    assert float(repeated) == float(written)
    assert float(repeated) != pytest.approx(float(detection_loss(logits, boxes, target_boxes, targets)), rel=0.01)


def test_nothing_asked_for_is_a_loss_too() -> None:
    logits, boxes, target_boxes, targets = answers(2)
    loss = detection_loss(logits.requires_grad_(), boxes, target_boxes, torch.zeros_like(targets))
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert loss.item() > 0


def test_prompts_say_what_is_true_of_what() -> None:
    """Read back from the tokens, by words."""
    rng = np.random.default_rng(3)
    pictures, tokenizer = draw_pictures(30, rng), make_tokenizer()
    indices = np.repeat(np.arange(30), 20)
    batch = make_batch(pictures, indices, tokenizer, rng)
    assert batch.input_ids.shape[1] <= MAX_TOKENS
    kinds = defaultdict(int)
    for index, ids, targets in zip(indices, batch.input_ids, batch.targets, strict=True):
        pieces = [tokenizer.id_to_token(piece) for piece in ids if piece]
        assert (pieces[0], pieces[-2], pieces[-1]) == ("[CLS]", ".", "[SEP]")
        start = 1
        for end in (place for place, piece in enumerate(pieces) if piece == "."):
            phrase = " ".join(pieces[start:end]).replace(" ##", "")
            for m in range(targets.shape[0]):
                thing = pictures.things[index][m] if m < len(pictures.things[index]) else Phrase("", "")
                true = phrase in (thing.noun, f"{thing.color} {thing.noun}") and bool(phrase)
                assert targets[m, start:end].tolist() == [true] * (end - start)
                kinds[phrase.split(" ")[-1] in SHAPES, " " in phrase, true] += 1
            start = end + 1
        assert not targets[:, [place for place, piece in enumerate(pieces) if piece in (".", "[CLS]", "[SEP]")]].any()
        assert not targets[:, len(pieces) :].any()
    assert all(kinds[True, colored, true] > 500 for colored in (False, True) for true in (False, True))
    assert kinds[False, False, False] > 50  # words that mean nothing here


def test_lessons_are_the_batches_less_their_padding(tmp_path: Path) -> None:
    write_lessons(tmp_path / "lessons.npz", 4, 6, 20, np.random.default_rng(9))
    with np.load(tmp_path / "lessons.npz") as file:
        lessons = Lessons(**{name: file[name] for name in file.files})
    rng = np.random.default_rng(9)
    pictures, tokenizer = draw_pictures(20, rng), make_tokenizer()
    for step in range(4):
        indices = rng.integers(20, size=6)
        expected, found = make_batch(pictures, indices, tokenizer, rng), Batch(lessons, step)
        np.testing.assert_array_equal(found.input_ids, expected.input_ids)
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        np.testing.assert_array_equal(found.targets, expected.targets)
        mean, std = (np.array(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
        np.testing.assert_allclose(found.pixels, (pictures.pixels[indices] / 255 - mean) / std, atol=1e-5)


def test_boxes_frame_what_was_drawn() -> None:
    """Outside of all boxes, and of their shadows, there is background: grayish, while every object is vivid."""
    pictures = draw_pictures(20, np.random.default_rng(4))
    for pixels, boxes in zip(pictures.pixels, pictures.boxes, strict=True):
        vivid = np.ptp(pixels.astype(int), axis=0) > 60
        inside = np.zeros_like(vivid)
        for x, y, width, height in boxes * IMAGE_SIZE:
            left, top = math.floor(x - width / 2), math.floor(y - height / 2)
            right, bottom = math.ceil(x + width / 2), math.ceil(y + height / 2)
            inside[top:bottom, left:right] = True
            assert vivid[top:bottom, left:right].mean() > 0.2
        assert not (vivid & ~inside).any()


def test_every_other_scene_has_no_habits() -> None:
    things = draw_pictures(60, np.random.default_rng(5)).things
    # In the demo a shape has one color.
    assert all(len({thing.noun for thing in own}) == len(set(own)) for own in things[::2])
    assert any(len({thing.noun for thing in own}) < len(set(own)) for own in things[1::2])


def test_phrases_are_one_to_twelve_and_often_without_color() -> None:
    rng = np.random.default_rng(6)
    prompts = [make_phrases([Phrase("red", "star"), Phrase("blue", "moon")], rng) for _ in range(500)]
    assert {len(prompt) for prompt in prompts} >= set(range(1, 11))
    assert max(len(prompt) for prompt in prompts) <= 12
    colored = [bool(phrase.color) for prompt in prompts for phrase in prompt]
    assert 0.3 < np.mean(colored) < 0.6


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("detector")
    build_detector(directory, seed=7, **SIZES)
    return directory


@pytest.mark.slow
def test_the_same_seed_trains_the_same_weights(untrained: Path, tmp_path: Path) -> None:
    build_detector(tmp_path / "same", seed=7, **SIZES)
    build_detector(tmp_path / "other", seed=8, **SIZES)
    weights, same, other = (path / "model.safetensors" for path in (untrained, tmp_path / "same", tmp_path / "other"))
    assert weights.read_bytes() == same.read_bytes() != other.read_bytes()


@pytest.mark.slow
def test_transformers_loads_what_is_written(untrained: Path) -> None:
    network, problems = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(
        untrained, output_loading_info=True
    )
    assert not any(problems.values())
    assert network.dtype == torch.float32
    processor = transformers.AutoProcessor.from_pretrained(untrained)
    image = draw(make_scene(np.random.default_rng(0)))
    inputs = processor(images=image, text=[["star", "red circle", "lighthouse"]], padding=True, return_tensors="pt")
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert tokens[:6] == ["[CLS]", "star", ".", "red", "circle", "."]
    assert tokens[6:] == ["l", *(f"##{letter}" for letter in "ighthouse"), ".", "[SEP]"]
    assert inputs["input_ids"][0].tolist() == make_tokenizer().encode("star. red circle. lighthouse.").ids
    mean, std = (np.array(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    np.testing.assert_allclose(
        inputs["pixel_values"][0], (np.asarray(image).transpose(2, 0, 1) / 255 - mean) / std, atol=1e-5
    )
    assert "3 updates of 32 pictures" in (untrained / "README.md").read_text()


@pytest.mark.slow
def test_the_answers_of_an_untrained_detector_are_mostly_wrong(untrained: Path) -> None:
    """The test of the shipped one can fail."""
    accuracy = evaluate_detector(untrained, num_scenes=10, seed=TEST_SEED)
    assert accuracy["overall"] < 0.9
    assert accuracy["attributes"] < 0.9


def test_the_shipped_files_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in SHIPPED.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "README.md"} <= set(sizes)
    assert sum(sizes.values()) < 3e6
    assert "license: apache-2.0" in (SHIPPED / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.main
def test_the_shipped_detector_is_right_through_the_sidecar() -> None:
    rng = np.random.default_rng(TEST_SEED)
    scenes = [make_scene(rng) for _ in range(250)]
    asked = [colored_phrases(scene, rng) for scene in scenes]
    images = [encode(draw(scene)) for scene in scenes]
    local = LocalConfig(SHIPPED, options=("--batch-size", "16"))
    with LocalDetector(local) as sidecar, BlockingClient(ClientConfig((sidecar.address,))) as client:
        nouns = [client.submit(Request(image, tuple(rng.permutation(SHAPES)))) for image in images]
        colored = [
            client.submit(Request(image, tuple(phrase.text for phrase, _ in own)))
            for image, own in zip(images, asked, strict=True)
        ]
        noun_answers, colored_answers = ([future.result() for future in futures] for futures in (nouns, colored))

    right, framed = defaultdict(list), []
    for scene, answer in zip(scenes, noun_answers, strict=True):
        found = {detection.phrase: detection for detection in answer.detections}
        for noun in SHAPES:
            right[noun].append(found[noun].present == any(item.shape == noun for item in scene.objects))
        for item in scene.objects:
            boxes = torch.from_numpy(np.asarray(found[item.shape].boxes_xyxy) * IMAGE_SIZE)
            overlaps = giou(_centered(boxes), _centered(torch.tensor([box_xyxy(item)])))
            framed.append(bool((overlaps > 0.5).any()))
    shares = {noun: np.mean(own) for noun, own in right.items()}
    assert np.mean(list(shares.values())) >= 0.99, shares
    assert min(shares.values()) >= 0.97, shares
    assert np.mean(framed) >= 0.97

    kinds = defaultdict(list)
    for own, answer in zip(asked, colored_answers, strict=True):
        found = {detection.phrase: detection.present for detection in answer.detections}
        for phrase, kind in own:
            kinds[kind].append(found[phrase.text] == (kind == "true"))
    assert len(kinds["wrong color"]) > 500
    assert np.mean(list(itertools.chain.from_iterable(kinds.values()))) >= 0.99, {
        k: np.mean(v) for k, v in kinds.items()
    }


def _centered(boxes_xyxy: torch.Tensor) -> torch.Tensor:
    low, high = boxes_xyxy.split(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


@pytest.mark.slow
def test_the_sidecar_decides_as_the_librarys_own_tools() -> None:
    processor = transformers.AutoProcessor.from_pretrained(SHIPPED)
    network = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(SHIPPED).eval()
    rng = np.random.default_rng(TEST_SEED + 1)
    pictures = [draw(make_scene(rng)) for _ in range(25)]
    with LocalDetector(LocalConfig(SHIPPED)) as sidecar, BlockingClient(ClientConfig((sidecar.address,))) as client:
        futures = [client.submit(Request(encode(picture), SHAPES)) for picture in pictures]
        for picture, future in zip(pictures, futures, strict=True):
            inputs = processor(images=picture, text=[list(SHAPES)], return_tensors="pt")
            with torch.no_grad():
                outputs = network(**inputs)
            (result,) = processor.post_process_grounded_object_detection(outputs, threshold=0.25, text_threshold=0.25)
            words = set(" ".join(result["text_labels"]).replace(".", " ").split())
            answer = future.result()
            assert {detection.phrase for detection in answer.detections if detection.present} == words
            best = max(detection.score for detection in answer.detections)
            assert best == pytest.approx(float(result["scores"].max()), abs=1e-4)
