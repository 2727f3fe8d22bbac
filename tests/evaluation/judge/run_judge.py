"""Asks a judge from another process, which a test kills: `python -m tests.evaluation.judge.run_judge URL CACHE NUM`."""

import sys
from pathlib import Path

from vigor_jax.evaluation.judge.judge import Judge, JudgeConfig, JudgeRequest


def requests(num: int) -> list[JudgeRequest]:
    return [JudgeRequest("kill", str(i), f"question {i}") for i in range(num)]


def make_judge(url: str, cache: Path) -> Judge:
    return Judge(JudgeConfig(url, "judge", concurrency=4, timeout=20), cache)


if __name__ == "__main__":
    make_judge(sys.argv[1], Path(sys.argv[2])).ask_all(requests(int(sys.argv[3])), str)
