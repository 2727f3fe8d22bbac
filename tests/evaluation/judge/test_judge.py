import base64
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.judge.chat_server import Body, ChatServer, Hang, Reset, Say
from tests.evaluation.judge.run_judge import make_judge, requests
from vigor_jax.errors import InputError
from vigor_jax.evaluation.judge import client as judge_client
from vigor_jax.evaluation.judge.cache import Reply, ReplyCache, ReplyKey
from vigor_jax.evaluation.judge.client import JudgeConfig, JudgeRequest
from vigor_jax.evaluation.judge.judge import Judge, MalformedReplyError, spending

pytest.importorskip("openai")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def parse(text):
    """Good replies are 'good N'."""
    if not text.startswith("good "):
        raise MalformedReplyError("not good")
    return int(text.removeprefix("good "))


def ask(num):
    return [JudgeRequest("test", str(i), f"q{i}", ("a", "b")) for i in range(num)]


def good(text, before):
    return Say(f"good {text[1:]}", usage=(int(text[1:]) + 1, 7))


def config(server, **changes):
    return JudgeConfig(**{"base_url": server.url, "model": "m", "timeout": 5, "max_retries": 2, **changes})


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# What comes first; then the question is answered.
FAULTS = {
    "429": [Body('{"error": {"message": "slow down"}}', 429, {"Retry-After": "0.2"})],
    "429 twice": [Body("slow down", 429, {"Retry-After": "0.1"})] * 2,
    "500": [Body('{"error": {"message": "oops"}}', 500)],
    "503": [Body("<html>no</html>", 503, kind="text/html")],
    "silence": [Hang(4)],
    "reset": [Reset(in_body=False)],
    "reset in the body": [Reset(in_body=True)],
    "reset twice": [Reset(in_body=True), Reset(in_body=False)],
    "malformed": [Say("bad", usage=(1000, 100))],
    "malformed twice": [Say("bad", usage=(1000, 100)), Say('{"HL": [1,', usage=(1000, 100))],
    "empty": [Say("", usage=(1000, 100))],
    "refusal": [Say(None, usage=(1000, 100), refusal="I had rather not")],
    "body cut short": [Body('{"choices": [{"message": {"content": "good')],
    "page": [Body("<html>good 1</html>", kind="text/html")],
    "error with status 200": [Body('{"error": {"message": "upstream is gone"}}')],
    "no choices": [Body('{"choices": [], "usage": null}')],
    "fault and malformed": [Body("", 500), Say("bad", usage=(1000, 100)), Reset(in_body=True)],
    "nothing": [],
}


def test_no_answer_is_lost_or_counted_twice_whatever_happens(tmp_path):
    scripts = list(FAULTS.values())

    def respond(text, before):
        script = scripts[int(text[1:])]
        return script[before] if before < len(script) else good(text, before)

    with ChatServer(respond) as server:
        free = config(server, concurrency=len(scripts), timeout=1, max_attempts=3)
        priced = replace(free, price_per_million_prompt_tokens=3, price_per_million_completion_tokens=15)
        cache = tmp_path / "new" / "replies.jsonl"
        results = Judge(priced, cache).ask_all(ask(len(scripts)), parse)
        assert server.counts == {f"q{i}": len(script) + 1 for i, script in enumerate(scripts)}
        assert [result.value for result in results] == list(range(len(scripts)))
        assert [result.request for result in results] == ask(len(scripts))

        said = [sum(isinstance(fault, Say) for fault in script) for script in scripts]
        assert [len(result.replies) for result in results] == [num + 1 for num in said]
        assert len(lines(cache)) == sum(said) + len(scripts)
        refused = list(FAULTS).index("refusal")
        assert results[refused].replies[0].text == "I had rather not"
        prompt = sum(i + 1 for i in range(len(scripts))) + 1000 * sum(said)
        completion = 7 * len(scripts) + 100 * sum(said)
        now, before = vars(spending(results, priced)).values()
        assert (now.replies, now.prompt_tokens, now.completion_tokens) == (len(lines(cache)), prompt, completion)
        assert now.unreported == 0
        assert now.cost == pytest.approx((3 * prompt + 15 * completion) / 1e6, abs=1e-12)
        assert (before.replies, before.prompt_tokens, before.completion_tokens, before.cost) == (0, 0, 0, 0)

        again = Judge(free, cache).ask_all(ask(len(scripts)), parse)
        assert server.counts.total() == sum(map(len, scripts)) + len(scripts)
        assert [result.value for result in again] == list(range(len(scripts)))
        now, before = vars(spending(again, free)).values()
        assert (now.replies, now.prompt_tokens, now.cost) == (0, 0, None)
        assert (before.replies, before.prompt_tokens, before.completion_tokens) == (
            len(lines(cache)),
            prompt,
            completion,
        )


def test_waits_as_long_as_retry_after_says(tmp_path):
    # Of itself the client would come again after half a second at most.
    def respond(text, before):
        return Body("", 429, {"Retry-After": "1.5"}) if before == 0 else good(text, before)

    with ChatServer(respond) as server:
        Judge(config(server), tmp_path / "c.jsonl").ask_all(ask(1), parse)
    (_, first), (_, second) = server.times
    assert 1.45 < second - first < 4


def test_failed_requests_are_told_once_all_others_are_kept(tmp_path):
    healed = []
    broken = {"q0": Body('{"error": {"message": "slow\\ndown"}}', 429), "q1": Hang(3), "q2": Reset(in_body=True)}
    broken |= {"q3": Body("<html>", kind="text/html"), "q4": Body('{"error": {"message": "flagged"}}', 403)}

    def respond(text, before):
        return good(text, before) if healed or text not in broken else broken[text]

    cache = tmp_path / "c.jsonl"
    with ChatServer(respond) as server:
        judge = Judge(config(server, timeout=0.5, max_retries=1, concurrency=2), cache)
        with pytest.raises(InputError) as caught:
            judge.ask_all(ask(20), parse, desc="mmhal")
        message = str(caught.value)
        assert message.startswith("mmhal: 5 of 20 requests to m at http://127.0.0.1:")
        assert "\n" not in message
        assert f"15 are kept in {cache}, run again" in message
        assert sorted(line["question_id"] for line in lines(cache)) == sorted(map(str, range(5, 20)))
        assert server.counts["q0"] == server.counts["q1"] == server.counts["q2"] == 2  # one retry
        assert server.counts["q3"] == judge.config.max_attempts
        assert server.counts["q4"] == 1  # the client knows that it is no use

        healed.append(True)
        before = server.counts.copy()
        assert [result.value for result in judge.ask_all(ask(20), parse)] == list(range(20))
        assert server.counts - before == {f"q{i}": 1 for i in range(5)}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Body('{"error": {"message": "slow down"}}', 429), "status 429, .*slow down"),
        (Hang(2), "no reply within 0.5 s"),
        (Reset(in_body=True), "no connection"),
        (Body("<html>", kind="text/html"), "status 200, but no chat completion: '<html>'"),
        (Body('{"choices": [{"message": {"content": [1]}}]}'), "status 200, but a message that is no text"),
    ],
)
def test_the_reason_of_a_failure_is_told(tmp_path, answer, reason):
    with ChatServer(lambda text, before: answer) as server, pytest.raises(InputError, match=f"1 × {reason}"):
        Judge(config(server, timeout=0.5, max_retries=0), tmp_path / "c.jsonl").ask_all(ask(1), parse)


def test_malformed_replies_are_asked_for_again_then_kept_and_shown(tmp_path):
    def respond(text, before):
        return Say(f"bad {before}") if text == "q1" else good(text, before)

    cache = tmp_path / "c.jsonl"
    with ChatServer(respond) as server:
        for _ in range(2):  # the second time nothing is asked
            results = Judge(config(server, max_attempts=3), cache).ask_all(ask(3), parse)
            assert [result.value for result in results] == [0, None, 2]
            assert [reply.text for reply in results[1].replies] == ["bad 0", "bad 1", "bad 2"]
            assert server.counts == {"q0": 1, "q1": 3, "q2": 1}
        # With more patience, only what that adds; and a better parser reads what is there.
        Judge(config(server, max_attempts=4), cache).ask_all(ask(3), parse)
        assert server.counts == {"q0": 1, "q1": 4, "q2": 1}
        texts = Judge(config(server, max_attempts=1), cache).ask_all(ask(3), str)
        assert [result.value for result in texts] == ["good 0", "bad 0", "good 2"]
        assert server.counts.total() == 6


def test_a_defect_of_the_parser_is_not_taken_for_a_malformed_reply(tmp_path):
    with ChatServer(good) as server, pytest.raises(ValueError, match="invalid literal"):
        Judge(config(server), tmp_path / "c.jsonl").ask_all(ask(1), int)


def test_continues_after_a_kill_without_asking_again(tmp_path):
    num, cache = 60, tmp_path / "c.jsonl"
    with ChatServer(lambda text, before: Say(f"reply to {text}", delay=0.04)) as server:
        command = [sys.executable, "-m", "tests.evaluation.judge.run_judge", server.url, str(cache), str(num)]
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ.copy(), stderr=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 60
            while not (cache.exists() and cache.read_bytes().count(b"\n") >= 15):
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        kept = [line["prompt"] for line in lines(cache)]
        assert 15 <= len(kept) < num - 8

        results = make_judge(server.url, cache).ask_all(requests(num), str)
        assert [result.value for result in results] == [f"reply to question {i}" for i in range(num)]
        assert all(server.counts[prompt] == 1 for prompt in kept)
        assert server.counts.total() <= num + 4  # what was under way
        assert sorted(line["prompt"] for line in lines(cache)) == sorted(f"question {i}" for i in range(num))
        spent = spending(results, make_judge(server.url, cache).config)
        assert spent.cached.replies == len(kept)
        assert spent.asked.replies == num - len(kept)


def test_not_more_under_way_than_allowed(tmp_path):
    with ChatServer(lambda text, before: Say("good 1", delay=0.03)) as server:
        Judge(config(server, concurrency=3), tmp_path / "c.jsonl").ask_all(ask(12), parse)
    assert server.most_at_once == 3


def test_what_is_sent(tmp_path):
    image = tmp_path / "x.PNG"
    image.write_bytes(b"\x89PNG of a kind")
    asked = [JudgeRequest("b", "1", "look \ud800 here", images=(image,)), JudgeRequest("b", "2", "read Ünïcode")]
    with ChatServer(lambda text, before: Say("good 1", usage=None)) as server:
        extra = {"seed": 5}
        results = Judge(config(server, extra_body=extra, max_tokens=9), tmp_path / "c").ask_all(asked, parse)
        Judge(config(server, temperature=None, max_tokens=None), tmp_path / "c").ask_all(asked[1:], parse)
    by_kind = {type(body["messages"][0]["content"]): body for body in server.bodies[:2]}
    text, picture = by_kind[list]["messages"][0]["content"]
    assert text == {"type": "text", "text": "look ? here"}
    head, data = picture["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == image.read_bytes()
    body = by_kind[str]
    assert body["messages"] == [{"role": "user", "content": "read Ünïcode"}]
    assert body["path"] == "/v1/chat/completions"
    assert body["authorization"] == "Bearer key-of-the-test"
    assert (body["model"], body["temperature"], body["max_tokens"], body["seed"]) == ("m", 0, 9, 5)
    assert not {"temperature", "max_tokens", "seed"} & server.bodies[2].keys()
    assert [reply.served_model for result in results for reply in result.replies] == ["m-0613"] * 2
    assert spending(results, config(server)).asked.unreported == 2


def test_what_makes_another_question(tmp_path):
    image, other = tmp_path / "a.jpg", tmp_path / "b.jpg"
    image.write_bytes(b"1")
    other.write_bytes(b"2")
    base = {"benchmark": "b", "question_id": "1", "prompt": "p", "systems": ("x", "y"), "images": (image,)}
    judge = {"base_url": None, "model": "m"}
    changed = [{"benchmark": "c"}, {"question_id": "2"}, {"prompt": "q"}, {"systems": ("y", "x")}, {"images": (other,)}]
    keys = {JudgeRequest(**base | change).key(JudgeConfig(**judge)) for change in [{}, *changed]}
    changed = [{"model": "n"}, {"temperature": 1}, {"max_tokens": 5}, {"extra_body": {"seed": 1}}]
    keys |= {JudgeRequest(**base).key(JudgeConfig(**judge | change)) for change in changed}
    assert len(keys) == 10
    same = [{"temperature": 0}, {"timeout": 1}, {"max_retries": 0}, {"concurrency": 1}, {"base_url": "http://x"}]
    assert {JudgeRequest(**base).key(JudgeConfig(**judge | change)) for change in same} < keys


def test_a_wrong_key_ends_early(tmp_path):
    with ChatServer(lambda text, before: Body('{"error": {"message": "bad key"}}', 401)) as server:
        with pytest.raises(InputError, match=r"50 of 50 .*status 401, .*bad key.*4\d not tried"):
            Judge(config(server, concurrency=4), tmp_path / "c.jsonl").ask_all(ask(50), parse)
        assert server.counts.total() <= 8


def test_an_endpoint_that_is_not_there_ends_early(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    judge = Judge(JudgeConfig(url, "m", max_retries=0, concurrency=2), tmp_path / "c.jsonl")
    with pytest.raises(InputError, match=r"30 of 30 .*no connection.*2[78] not tried"):
        judge.ask_all(ask(30), parse)


def test_an_endpoint_that_drips_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(judge_client, "_LONGEST_WAIT", 0.3)
    start = time.monotonic()
    with ChatServer(lambda text, before: Hang(20, drip=0.1)) as server, pytest.raises(InputError, match="no reply"):
        Judge(config(server, timeout=0.5, max_retries=0), tmp_path / "c.jsonl").ask_all(ask(1), parse)
    assert time.monotonic() - start < 5


def test_package_and_key_are_wanted_only_to_ask(tmp_path, monkeypatch):
    cache = tmp_path / "c.jsonl"
    with ChatServer(good) as server:
        Judge(config(server), cache).ask_all(ask(2), parse)
        monkeypatch.delenv("OPENAI_API_KEY")
        with pytest.raises(InputError, match=r"environment variable OPENAI_API_KEY, found none; set it"):
            Judge(config(server), cache).ask_all(ask(3), parse)
        monkeypatch.setenv("MY_KEY", "schlüssel")
        with pytest.raises(InputError, match=r"MY_KEY, found characters that no key has"):
            Judge(config(server, api_key_env="MY_KEY"), cache).ask_all(ask(3), parse)
        monkeypatch.setitem(sys.modules, "openai", None)
        with pytest.raises(InputError, match=r"openai cannot be imported .*; pip install vigor-jax\[judge\]"):
            Judge(config(server), cache).ask_all(ask(3), parse)
        assert [result.value for result in Judge(config(server), cache).ask_all(ask(2), parse)] == [0, 1]
        assert server.counts.total() == 2


def test_openai_is_not_imported_before_it_is_used():
    code = "import sys, vigor_jax.evaluation.benchmarks.preference, vigor_jax.evaluation.benchmarks.mmhal as m; "
    code += "sys.exit(bool({'openai', 'jax', 'torch'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url"),
        ({"model": ""}, "model"),
        ({"concurrency": 0}, "concurrency of 1 or more, got 0"),
        ({"max_retries": -1}, "max_retries of 0"),
        ({"max_attempts": 0}, "max_attempts of 1"),
        ({"timeout": 0}, "timeout above 0"),
    ],
)
def test_values_out_of_range(change, message):
    with pytest.raises(InputError, match=message):
        JudgeConfig(**{"base_url": None, "model": "m", **change})


def test_other_bad_input(tmp_path):
    judge = Judge(JudgeConfig(None, "m"), tmp_path / "c.jsonl")
    with pytest.raises(InputError, match="1 of them twice"):
        judge.ask_all([*ask(2), *ask(1)], parse)
    for name, message in (("x.bmp", "JPEG, PNG"), ("absent.png", "No such file")):
        with pytest.raises(InputError, match=f"{name}: .*{message}"):
            judge.ask_all([JudgeRequest("b", "1", "p", images=(tmp_path / name,))], parse)
    assert judge.ask_all([], parse) == []


KEY = ReplyKey("b", "1", ("x", "y"), "00", "m")


def fill(path, texts):
    with ReplyCache(path) as cache:
        for text in texts:
            cache.append(KEY, Reply(text, 1, 2, "stop", "m-1"), "the prompt")


def replies(path):
    with ReplyCache(path) as cache:
        return [reply.text for reply in cache.replies[KEY]]


def test_a_line_cut_short_anywhere_costs_that_line_only(tmp_path):
    path = tmp_path / "c.jsonl"
    fill(path, ["one", "two"])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        kept = (["one"] if size >= first - 1 else []) + (["two"] if size >= len(whole) - 1 else [])
        fill(path, ["three"])
        assert replies(path) == [*kept, "three"]


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(st.characters()) | st.sampled_from(["\ud800", "a\nb", "\u2028", "\x00", '{"', ""])))
def test_replies_come_back_as_they_were(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "c.jsonl"
    fill(path, texts)
    assert replies(path) == texts


@pytest.mark.parametrize(
    "content", ['[{"a": 1}]', "text", '{"image": "x", "answer": "y"}', '{"benchmark": 1}\n', "\n\n"]
)
def test_other_files_are_left_as_they_are(tmp_path, content):
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"mine\.json"):
        ReplyCache(path)
    assert path.read_text() == content


def test_what_is_no_file_is_refused(tmp_path):
    for path in (Path("/dev/zero"), tmp_path, tmp_path / "file" / "c.jsonl"):
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match=str(path)):
            ReplyCache(path)


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "c.jsonl"
    fill(path, ["one", "two"])
    content = path.read_text()
    path.write_text(content.replace('"reply": "one"', '"reply": "one'))
    with pytest.raises(InputError, match=r"c\.jsonl:1: malformed JSON"):
        ReplyCache(path)


def test_two_at_a_time_are_refused(tmp_path):
    with ReplyCache(tmp_path / "c.jsonl"), pytest.raises(InputError, match="another process"):
        ReplyCache(tmp_path / "c.jsonl")
    ReplyCache(tmp_path / "c.jsonl")


def test_a_full_disk_is_told_and_costs_no_other_reply(tmp_path):
    path = tmp_path / "c.jsonl"
    fill(path, ["one"])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(InputError, match=r"c\.jsonl: cannot keep the judge's replies"):
            fill(path, ["two"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    fill(path, ["three"])
    assert replies(path) == ["one", "three"]
