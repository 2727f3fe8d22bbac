"""What asking a judge will cost, told before it is asked."""

import logging
from pathlib import Path

import pytest

from vigor_jax.errors import InputError
from vigor_jax.evaluation.judge.client import JudgeConfig, JudgeRequest
from vigor_jax.evaluation.judge.estimate import Estimate, NotAskedError
from vigor_jax.evaluation.judge.judge import Judge

REQUESTS = [JudgeRequest("test", "1", "x" * 401), JudgeRequest("test", "2", "y" * 7)]


def test_tokens_and_cost_are_summed() -> None:
    config = JudgeConfig(
        None, "j", max_tokens=100, price_per_million_prompt_tokens=10, price_per_million_completion_tokens=30
    )
    found = Estimate.of(REQUESTS, config)
    assert (found.requests, found.prompt_tokens, found.completion_tokens) == (2, 101 + 2, 200)
    assert found.cost == pytest.approx((103 * 10 + 200 * 30) / 1e6, abs=1e-15)
    assert str(found) == (
        "2 requests, about 103 tokens of prompts, at most 200 tokens of replies, at most 0.01 by the given prices"
    )
    both = found + Estimate.of(REQUESTS[:1], JudgeConfig(None, "j", max_tokens=None))
    assert (both.requests, both.prompt_tokens, both.completion_tokens, both.cost) == (3, 204, None, None)


def test_a_judge_that_is_not_to_be_asked_is_not(tmp_path: Path) -> None:
    """Needs neither a key nor an endpoint."""
    judge = Judge(JudgeConfig("http://127.0.0.1:9/v1", "j", max_tokens=100, ask=False), tmp_path / "replies.jsonl")
    with pytest.raises(NotAskedError, match=r"test: j is not asked \(judge.ask is false\); it would be 2 req") as error:
        judge.ask_all(REQUESTS, str, desc="test")
    assert error.value.estimate.requests == 2
    assert isinstance(error.value, InputError)


def test_the_cost_is_told_before_the_first_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openai")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    judge = Judge(JudgeConfig("http://127.0.0.1:9/v1", "j"), tmp_path / "replies.jsonl")
    with caplog.at_level(logging.INFO, "vigor_jax"), pytest.raises(InputError, match="expected a key"):
        judge.ask_all(REQUESTS, str, desc="test")
    assert "test: asks j: 2 requests, about 103 tokens of prompts" in caplog.text
