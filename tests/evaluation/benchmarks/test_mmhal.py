import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.judge.chat_server import ChatServer, Say
from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_matching import read_answers
from vigor_jax.evaluation.benchmarks import mmhal
from vigor_jax.evaluation.benchmarks.mmhal_prompt import PLACES, PROMPT, parse_rating
from vigor_jax.evaluation.bootstrap import bootstrap
from vigor_jax.evaluation.judge.judge import Judge, JudgeConfig, MalformedReplyError
from vigor_jax.evaluation.judge.prompt import fill, read_prompt

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "mmhal" / "mmhal-bench_answer_template.json"
TYPES = ("attribute", "counting", "other")


@pytest.fixture
def asking(monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def template(num=6, **changes):
    return [
        {
            "question_type": TYPES[i % 3],
            "question_topic": "indoor",
            "image_id": f"image{i}",
            "image_src": f"https://example.org/{i}_o.jpg",
            "image_content": ["Cat", f"Sofa {i}"],
            "question": "How many {cats}?",
            "gt_answer": "Two.",
            "model_answer": "",
            **changes,
        }
        for i in range(num)
    ]


def write(path, records):
    path.write_text(json.dumps(records) if isinstance(records, list) else records)
    return path


@pytest.fixture
def questions(tmp_path):
    return mmhal.read_questions(write(tmp_path / "questions.json", template()))


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: 4", 4),
        ("The answer is wrong.\n\nRating: 0", 0),
        ("rating:6, very informative with good analysis", 6),
        ("**Rating:** 2", 2),
        ("**Rating: 2**", 2),
        ("Rating: **5**.", 5),
        ("## Rating:\n3\n- 3 sentences", 3),
        ("Rating: 4/6", 4),
        ("Rating: **4** / 6", 4),
        ("Rating: [1]", 1),
        ("Rating: (1) out of 6", 1),
        ("_Rating: 1_", 1),
        ('{"rating": 5}', 5),
        ("Rating = 5", 5),
        ("Rating：5", 5),
        ("My rating is 3.", 3),
        ("Rating: 4 because it says 7 dogs", 4),
        ("Rating: 4\n...\nFinal rating: 4", 4),
        ("A rating of that kind is rare. Rating: 2", 2),
        ("Overrating: 5. Rating: 2", 2),
    ],
)
def test_ratings_are_read(text, rating):
    assert parse_rating(text) == rating


@pytest.mark.parametrize(
    "text",
    [
        "", "4", "I'd say four.", "Rating: four", "Rating: N", "Rating: 7", "Rating: 10", "Rating: 45", "Rating: -1",
        "Rating: 4.5", "Rating: 4,5", "Rating: 3-4", "Rating: 3 - 4", "Rating: 3 to 4", "Rating: 3 or 4", "Rating: 4/5",
        "Rating: 8/10", "Rating: 4 out of 10", "Rating: 5%", "Rating: 3\nRating: 5",
        "Rating: 5 ... rating: 3 ... rating: 5", "Rating: 6, very informative\nRating: 5, very informative",
        "Ratings: 3", "Overrating: 5", "Rating 4", "Rating: 4.5.", "Rating: **4**/10",
    ],
)  # fmt: skip
def test_what_is_no_clear_rating_is_malformed(text):
    with pytest.raises(MalformedReplyError):
        parse_rating(text)


texts = st.text() | st.sampled_from(["/5", "- 5", "*", "4 dogs", "or 5", "%", "6"])


@given(before=texts, rating=st.integers(0, 6), after=texts)
def test_agrees_with_the_published_way_on_what_was_asked_for(before, rating, after):
    """The script: in lower case, which of "rating: 0" to "rating: 6" are there."""
    text = f"{before}\nRating: {rating}\n{after}"
    assert [parse_rating(text)] == [number for number in range(7) if f"rating: {number}" in text.lower()]


def test_scores_with_a_judge(tmp_path, questions, asking):
    """The server rates by the answer; one reply is malformed first, another always."""
    said = [6, 3, None, 2, 0, 5]

    def respond(text, before):
        number = next(i for i in range(6) if f"answer <{i}>" in text)
        assert f"Cat, Sofa {number}" in text
        assert "How many {cats}?" in text
        assert "Two." in text
        return Say(
            "Rating: 3 or 4" if said[number] is None or (number == 4 and not before) else f"Rating: {said[number]}"
        )

    answers = [f"answer <{i}> {{question}}" for i in range(6)]
    prices = {"price_per_million_prompt_tokens": 1.0, "price_per_million_completion_tokens": 2.0}
    with ChatServer(respond) as server:
        judge = Judge(JudgeConfig(server.url, "gpt", **prices), tmp_path / "c.jsonl")
        metrics = mmhal.score_mmhal(questions, answers, judge)
        assert mmhal.score_mmhal(questions, answers, judge).score == metrics.score
        assert server.counts.total() == 6 + 1 + 2
        # Another answer is another question; the others are not asked again.
        mmhal.score_mmhal(questions, ["answer <0>", *answers[1:]], judge)
        assert server.counts.total() == 10
    kept = [rating for rating in said if rating is not None]
    assert metrics.score == pytest.approx(float(Fraction(sum(kept), 5)), abs=1e-12)
    assert metrics.hallucination_rate == pytest.approx(2 / 5, abs=1e-12)
    assert metrics.types == {"attribute": 4.0, "counting": 1.5, "other": 5.0}
    assert metrics.judged == 5
    assert [result.request.question_id for result in metrics.malformed] == ["3"]
    assert [reply.text for reply in metrics.malformed[0].replies] == ["Rating: 3 or 4"] * 3
    assert [result.value for result in metrics.results] == said
    assert metrics.spending.asked.replies == 9
    assert metrics.spending.asked.cost == pytest.approx((900 * 1 + 90 * 2) / 1e6, abs=1e-15)


@given(ratings=st.lists(st.none() | st.integers(0, 6), min_size=1, max_size=40).filter(lambda x: set(x) != {None}))
def test_figures_follow_their_definitions(ratings):
    questions = [mmhal.MmhalQuestion(i, "other", f"{i % 7}", (), "", "") for i in range(len(ratings))]
    counts = mmhal.count(questions, ratings)
    found = mmhal.rates(np.sum(list(counts.values()), axis=0))
    kept = [rating for rating in ratings if rating is not None]
    assert found["score"] == pytest.approx(float(Fraction(sum(kept), len(kept))), abs=1e-12)
    assert found["hallucination_rate"] == pytest.approx(
        sum(rating in (0, 1, 2) for rating in kept) / len(kept), abs=1e-12
    )
    assert set(counts) == {f"{i % 7}" for i, rating in enumerate(ratings) if rating is not None}
    interval = bootstrap(np.array(list(counts.values())), mmhal.rates, num=50)["score"]
    assert min(kept) <= interval.low <= interval.high <= max(kept)


def test_a_judge_that_never_rates_is_told(tmp_path, questions, asking):
    with ChatServer(lambda text, before: Say("I cannot see the image")) as server:
        judge = Judge(JudgeConfig(server.url, "gpt", max_attempts=1), tmp_path / "c.jsonl")
        with pytest.raises(InputError, match="no reply of gpt has a rating; the first is 'I cannot see the image'"):
            mmhal.score_mmhal(questions, ["x"] * 6, judge)
        with pytest.raises(InputError, match="each of 6 questions, got 5"):
            mmhal.score_mmhal(questions, ["x"] * 5, judge)


def read(path, questions):
    return read_answers([path], mmhal.asked(questions)).texts


def test_answers_in_every_layout(tmp_path, questions):
    texts = [f"text {i}" for i in range(6)]
    filled = [{**record, "model_answer": text} for record, text in zip(template(), texts, strict=True)]
    by_id = [{"question_id": i + 1, "answer": text} for i, text in enumerate(texts)]
    by_image = [{"image": f"image{i}.jpg", "question": "How many {cats}?", "answer": t} for i, t in enumerate(texts)]
    ours = [{"image": f"image{i}", "prompt": "How many {cats}?", "text": t} for i, t in enumerate(texts)]
    for records in (filled, by_id, by_image, ours):
        for order in (1, -1):
            jsonl = "".join(json.dumps(record) + "\n" for record in records[::order])
            assert read(write(tmp_path / "a", jsonl), questions) == texts
        assert read(write(tmp_path / "a", records), questions) == texts


def test_bad_answers(tmp_path, questions):
    good = [{"question_id": i + 1, "answer": "x"} for i in range(6)]
    for extra in ({"question_id": 7, "answer": "x"}, {"question_id": [1], "answer": "x"}):
        assert read(write(tmp_path / "a.json", [*good, extra]), questions) == ["x"] * 6
    for records, message in (
        (good[:5], "expected 6 answers, 1 are missing, to question 6"),
        ([*good, good[2]], "item 7: question 3 is answered twice"),
        (
            [{"image": "image0", "question": "another", "answer": "x"}],
            "item 1: expected the answer to one of 6 questions",
        ),
        ([{"answer": "x"}], "expected 6 answers, got 1"),
        ([{"question_id": 1, "answer": 5}], "item 1: expected a string under 'answer', got 5"),
    ):
        with pytest.raises(InputError, match=message):
            read(write(tmp_path / "a.json", records), questions)
    with pytest.raises(InputError, match="every answer is empty; fill in 'model_answer'"):
        mmhal.refuse_empty(read(write(tmp_path / "a.json", template()), questions), "a.json")


def test_bad_questions(tmp_path):
    for records, message in (
        ([], "expected MMHal-Bench's questions"),
        (template(image_content=["Cat", 3]), "item 1: expected strings under 'image_content'"),
        (template(gt_answer=None), "item 1: expected a string under 'gt_answer'"),
    ):
        with pytest.raises(InputError, match=message):
            mmhal.read_questions(write(tmp_path / "q.json", records))


def test_prompts(tmp_path):
    texts = {"image_content": "{question}", "question": "{}", "gt_answer": r"\1", "model_answer": "{model_answer}"}
    named = 'JSON {"a": 1} {image_content}|{question}|{gt_answer}|{model_answer}|{question}'
    prompt = read_prompt(write(tmp_path / "named", named), PLACES)
    assert fill(prompt, texts) == r'JSON {"a": 1} {question}|{}|\1|{model_answer}|{}'
    numbered = read_prompt(write(tmp_path / "numbered", "### Contents\n{}\n### Q\n{}\n### A\n{}\n### R\n{}\n"), PLACES)
    assert fill(numbered, texts) == "### Contents\n{question}\n### Q\n{}\n### A\n\\1\n### R\n{model_answer}\n"
    assert read_prompt(write(tmp_path / "own", PROMPT), PLACES) == PROMPT
    for bad, message in (
        ("{} {} {}", "image_content"),
        (named.replace("{gt_answer}", ""), r"\{gt_answer\} is missing"),
    ):
        with pytest.raises(InputError, match=message):
            read_prompt(write(tmp_path / "bad", bad), PLACES)
    with pytest.raises(InputError, match="cannot read it"):
        read_prompt(tmp_path / "absent", PLACES)


def test_the_prompt_of_the_user_is_used(tmp_path, questions, asking):
    with ChatServer(lambda text, before: Say("Rating: 1")) as server:
        judge = Judge(JudgeConfig(server.url, "gpt"), tmp_path / "c.jsonl")
        mmhal.score_mmhal(
            questions[:1], ["mine"], judge, prompt="C {image_content} Q {question} G {gt_answer} A {model_answer}"
        )
        assert set(server.counts) == {"C Cat, Sofa 0 Q How many {cats}? G Two. A mine"}


@pytest.mark.skipif(not REAL.exists(), reason="the benchmark's file is not here")
def test_the_real_questions(tmp_path):
    questions = mmhal.read_questions(REAL)
    assert len(questions) == len({question.image_id for question in questions}) == 96
    assert set(Counter(question.question_type for question in questions).values()) == {12}
    filled = [record | {"model_answer": f"a {i}"} for i, record in enumerate(json.loads(REAL.read_text()))]
    assert read(write(tmp_path / "a", filled), questions) == [f"a {i}" for i in range(96)]
