"""All benchmarks of a LLaVA-1.5 7B with random weights on one big GPU, ours and transformers, in ten minutes.

    python benchmarks/7b.py --out results.json                 an H200; an H100 does not hold the fine-tuning
    python benchmarks/7b.py --out results.json --size tiny     a trial on any CPU: its figures mean nothing

Fine-tuning of projector and language model in batches of 32 (float32 weights and AdamW moments, bfloat16 compute), 5
candidates for each of 25 images, all sentences of an image judged in one pass, iterations of PPO with LoRA of rank 128,
GroundingDINO behind gRPC; and what the recipes of ViGoR and FiSAO would take at these speeds. Each side of each part
runs in a separate process (`benchmarks/one_gpu.py`), ours first. What fails or gets no time stands in the results next
to what was measured; they are written again after each process. Exit code 0: all was measured; 1: something is missing.
"""

# ruff: noqa: N999
import argparse
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parents[1]
Json: TypeAlias = dict[str, Any]

UNITS = {
    "sft": "tokens/s, padding excluded",
    "caption": "new tokens/s",
    "reward": "sentences/s",
    "ppo": "images/s",
    "detector": "images/s",
}
# What runs, in this order, and its share of the time.
WORKERS = (
    ("sft", "ours", 6), ("caption", "ours", 3), ("reward", "ours", 3), ("ppo", "ours", 5),
    ("detector", "ours", 2),
    ("sft", "peer", 5), ("caption", "peer", 4),
)  # fmt: skip
LEAST_SECONDS = 2.0  # no process is started for less
LOG_LINES = 20
PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers", "vigor-jax")

# The paper's recipe (ViGoR, section 4): ADE20K images, responses each, passes; and what it took, 8 A100 for 7 hours.
IMAGES, CANDIDATES, SENTENCES, EPOCHS = 25_574, 5, 6, 2
PAPER_HOURS = 56
# FiSAO's (its appendix, and configs/fisao_7b.yaml): conversations, each once; and what it took, 4 A100 for 6 hours.
FISAO_IMAGES, FISAO_HOURS = 8_000, 24
TARGETS = {
    "sft_mfu": 0.5,
    "sft_ratio": 1.3,
    "caption_tokens_per_second": 20_000,
    "caption_ratio": 4.0,
    "reward_sentences_per_second": 300,
    "recipe_gpu_hours": 3.0,  # at most; the others at least
}


def environment(part: str, side: str) -> dict[str, str]:
    """One GPU, and its memory for the framework that is measured."""
    env = dict(os.environ)
    visible = env.get("CUDA_VISIBLE_DEVICES", "0")
    env |= {"CUDA_VISIBLE_DEVICES": visible.split(",")[0], "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    if side == "ours" and part != "detector":
        env.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    else:
        env["JAX_PLATFORMS"] = "cpu"
        env.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    return env


def run_worker(part: str, side: str, options: argparse.Namespace, seconds: float) -> Json:
    """What a side of a part measured within this many seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        result, log = Path(scratch) / "side.json", Path(scratch) / "log.txt"
        command = [sys.executable, "-m", "benchmarks.one_gpu", part, side, "--size", options.size]
        command += ["--repeats", str(options.repeats), "--until", str(time.monotonic() + seconds)]
        command += ["--result", str(result)]
        command += ["--pack", *map(str, options.pack)] if options.pack else []
        with log.open("w") as out:
            worker = subprocess.Popen(
                command, cwd=ROOT, env=environment(part, side), stdout=out, stderr=out, start_new_session=True
            )
            ended = ""
            try:
                code = worker.wait(seconds)
                ended = f"ended with code {code}" if code else ""
            except subprocess.TimeoutExpired:
                ended = f"ended after its {seconds:.0f} s"
            finally:
                if worker.poll() is None:
                    os.killpg(worker.pid, signal.SIGKILL)
                    worker.wait()
        found = json.loads(result.read_text()) if result.is_file() else {"about": {}, "tried": {}}
        return summary(found, options.repeats, ended, log.read_text(errors="replace").splitlines()[-LOG_LINES:])


def summary(found: Json, repeats: int, ended: str, log: list[str]) -> Json:
    """The fastest setting of those with all repeats, or with the most, and why there is none."""
    tried = found["tried"]
    for each in tried.values():
        if runs := each.get("runs"):
            each |= {"median": statistics.median(runs), "min": min(runs), "max": max(runs)}
    most = max((len(each.get("runs", ())) for each in tried.values()), default=0)
    whole = {name: each for name, each in tried.items() if most and len(each.get("runs", ())) == most}
    best = max(whole, key=lambda name: whole[name]["median"], default=None)
    side: Json = {"best": best}
    if best is not None:
        side |= {name: whole[best][name] for name in ("median", "min", "max", "runs")}
    problems = [] if most >= repeats else [f"{most} of {repeats} repeats"]
    problems += [ended] if ended and problems else []
    if problems:
        problems += [
            f"{name}: {each.get('error') or each.get('skipped')}" for name, each in tried.items() if name != best
        ]
        side |= {"error": "; ".join(problems), "log": log}
    elif ended:
        side["note"] = ended
    return side | {"tried": tried, "about": found["about"]}


def machine() -> Json:
    asked = "name,driver_version,memory.total"
    gpus = _output("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader")
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "gpus": [dict(zip(asked.split(","), gpu.split(", "), strict=False)) for gpu in gpus.splitlines()],
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": versions,
    }


def _output(*command: str) -> str:
    """What a command prints; nothing where it is missing or fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def ours_of(parts: Json, part: str) -> Json:
    return parts.get(part, {}).get("ours") or {}


def recipe(parts: Json) -> Json:
    """Seconds of each stage at the measured speeds; no total where one is missing."""
    caption = ours_of(parts, "caption").get("about", {}).get("mean_caption_tokens")
    example = ours_of(parts, "sft").get("about", {}).get("tokens_per_example")
    factors = {
        "sample": ("caption", (IMAGES, "images"), (CANDIDATES, "candidates"), (caption, "tokens a caption, real ones")),
        "score with the detector": ("detector", (IMAGES, "images, with the phrases of 5 captions each")),
        "score with the reward model": (
            "reward",
            (IMAGES, "images"),
            (CANDIDATES, "candidates"),
            (SENTENCES, "sentences"),
        ),
        "fine-tune": ("sft", (IMAGES, "examples"), (EPOCHS, "epochs"), (example, "tokens an example")),
    }
    stages, missing = [], []
    for stage, (part, *counts) in factors.items():
        speed = ours_of(parts, part).get("median")
        if speed is None or any(count is None for count, _ in counts):
            missing.append(stage)
            continue
        work = 1.0
        for count, _ in counts:
            work *= count
        words = " × ".join(
            f"{count:,.6g} {what}" if isinstance(count, float) else f"{count:,} {what}" for count, what in counts
        )
        seconds = work / speed
        formula = f"{words} / {speed:,.6g} {UNITS[part]} = {seconds:,.1f} s"
        stages.append({"stage": stage, "work": work, "per_second": speed, "seconds": seconds, "formula": formula})
    total = None if missing else sum(stage["seconds"] for stage in stages) / 3600
    return {
        "stages": stages,
        "missing": missing,
        "total_gpu_hours": total,
        "paper_a100_hours": PAPER_HOURS,
        "left_out": "start-up, compilation, checkpoints, selection (needs no GPU), the reward model's own training",
    }


def fisao(parts: Json) -> Json:
    """GPU-hours of FiSAO's PPO at the measured speed; none where it was not measured."""
    ours = ours_of(parts, "ppo")
    speed, about = ours.get("median"), ours.get("about", {})
    found: Json = {"gpu_hours": None, "formula": None, "paper_a100_hours": FISAO_HOURS}
    if speed is not None:
        hours = FISAO_IMAGES / speed / 3600
        words = f"{about['candidates']} responses of {about['mean_response_tokens']:.0f} tokens each, 4 PPO epochs"
        formula = f"{FISAO_IMAGES:,} images ({words}) / {speed:,.6g} images/s = {hours:,.3g} GPU-hours"
        found |= {"gpu_hours": hours, "formula": formula}
    return found | {"left_out": "start-up, compilation, checkpoints, the verifier's scores"}


def finish(results: Json) -> None:
    """Ratios, targets and the recipes, of what there is so far."""
    parts, at_7b = results["parts"], results["size"] == "7b"
    for part in parts.values():
        ours, peer = ((part[side] or {}).get("median") for side in ("ours", "peer"))
        part["ratio"] = ours / peer if ours and peer else None
    sft = ours_of(parts, "sft")
    if sft.get("median"):
        peak = sft["about"]["peak_flops"]
        sft["mfu"] = sft["median"] * sft["about"]["flops_per_token"] / peak if peak else None
    results["recipe"], results["fisao"] = recipe(parts), fisao(parts)
    got = {
        "sft_mfu": sft.get("mfu"),
        "sft_ratio": parts.get("sft", {}).get("ratio"),
        "caption_tokens_per_second": ours_of(parts, "caption").get("median"),
        "caption_ratio": parts.get("caption", {}).get("ratio"),
        "reward_sentences_per_second": ours_of(parts, "reward").get("median"),
        "recipe_gpu_hours": results["recipe"]["total_gpu_hours"],
    }
    results["targets"] = {}
    for name, wanted in TARGETS.items():
        value = got[name]
        met = None
        if at_7b and value is not None:
            met = value <= wanted if name == "recipe_gpu_hours" else value >= wanted
        results["targets"][name] = {"wanted": wanted, "got": value, "met": met}


def print_results(results: Json) -> None:
    names = ", ".join(gpu["name"] for gpu in results["machine"]["gpus"]) or results["machine"]["processor"]
    print(f"\n{names}; {results['size']}; {results['machine']['versions']}; {results['seconds']:.0f} s in all")
    print("\n| part | side | median | min | max | unit | setting |\n| --- | --- | --- | --- | --- | --- | --- |")
    for part, both in results["parts"].items():
        for side in ("ours", "peer"):
            if found := both.get(side):
                figures = " | ".join(
                    f"{found[name]:.5g}" if name in found else "-" for name in ("median", "min", "max")
                )
                print(f"| {part} | {side} | {figures} | {UNITS[part]} | {found.get('error') or found['best']} |")
        if both["ratio"]:
            print(f"| {part} | ours / peer | {both['ratio']:.2f} | | | | |")
    print("\nViGoR's recipe at these speeds:")
    for stage in results["recipe"]["stages"]:
        print(f"  {stage['stage']}: {stage['formula']}")
    for stage in results["recipe"]["missing"]:
        print(f"  {stage}: not measured")
    if (total := results["recipe"]["total_gpu_hours"]) is not None:
        print(f"  together {total:.3g} GPU-hours, in the paper {PAPER_HOURS} A100-hours")
    print(f"  without {results['recipe']['left_out']}")
    found = results["fisao"]
    print("\nFiSAO's PPO (configs/fisao_7b.yaml) at this speed:")
    print(f"  {found['formula'] or 'not measured'}; in the paper {FISAO_HOURS} A100-hours; without {found['left_out']}")
    print("\n| target | wanted | got | met |\n| --- | --- | --- | --- |")
    for name, target in results["targets"].items():
        got = "-" if target["got"] is None else f"{target['got']:.4g}"
        bound = "at most" if name == "recipe_gpu_hours" else "at least"
        print(f"| {name} | {bound} {target['wanted']:g} | {got} | {'-' if target['met'] is None else target['met']} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--size", choices=("tiny", "100m", "7b"), default="7b")
    parser.add_argument("--parts", nargs="+", choices=tuple(UNITS), default=list(UNITS))
    parser.add_argument("--skip-peer", action="store_true", help="only ours")
    parser.add_argument("--pack", type=int, nargs="+", help="examples a row of ours, the fastest counts; default 2 1")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=9.5, help="for everything")
    options = parser.parse_args()
    if options.repeats < 1 or options.minutes <= 0:
        parser.error("--repeats and --minutes must be positive")
    options.out.parent.mkdir(parents=True, exist_ok=True)

    results: Json = {
        "machine": machine(),
        "commit": _output("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or None,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "size": options.size,
        "settings": {name: getattr(options, name) for name in ("parts", "pack", "repeats", "minutes", "skip_peer")},
        "parts": {part: {"unit": UNITS[part], "ours": None, "peer": None, "ratio": None} for part in options.parts},
    }
    waiting = [
        (part, side, share)
        for part, side, share in WORKERS
        if part in options.parts and not (options.skip_peer and side == "peer")
    ]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the worker, too
    began, complete = time.monotonic(), True
    while waiting:
        part, side, share = waiting[0]
        left = began + 60 * options.minutes - time.monotonic()
        seconds = left * share / sum(share for *_, share in waiting)  # what one leaves over goes to the others
        waiting.pop(0)
        if seconds < LEAST_SECONDS:
            found: Json = {"error": f"skipped: {max(left, 0):.0f} s were left of {options.minutes:g} minutes"}
        else:
            print(f"{part}, {side}: up to {seconds:.0f} s", flush=True)
            found = run_worker(part, side, options, seconds)
        for name in found.get("tried", {}):
            each = found["tried"][name]
            print(f"  {name}: {each.get('median') or each.get('error') or each.get('skipped')}", flush=True)
        results["parts"][part][side] = found
        complete &= "error" not in found
        results["seconds"] = round(time.monotonic() - began, 1)
        finish(results)
        scratch = options.out.with_suffix(".tmp")
        scratch.write_text(json.dumps(results, indent=1) + "\n")
        scratch.replace(options.out)
    print_results(results)
    sys.exit(0 if complete else 1)


if __name__ == "__main__":
    main()
