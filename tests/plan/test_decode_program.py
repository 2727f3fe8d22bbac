"""How long a call of the decoder takes and what it needs, by the compiler of a TPU: so that a slow-down is seen.

Needs `.[plan-tpu]`; a compilation takes about 20 CPU seconds.
"""

import importlib.util
import re

import jax
import pytest

from vigor_jax import cli
from vigor_jax.config import TrainConfig
from vigor_jax.inference.kv_cache import PAGE
from vigor_jax.models.llava import LlavaConfig
from vigor_jax.plan.hardware import parse_topology
from vigor_jax.plan.planning import programs
from vigor_jax.stages.programs import Sizes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed"),
]
RECIPE = ("--config", "configs/vigor_all_7b.yaml", "--run.stages", "sample")
V5E = ("--config", "configs/pods/v5e.yaml")
# Tokens a slot, on the average, that there are pages for with real captions; see tests/inference/test_usage.py.
CAPTIONS = 96


@pytest.fixture(autouse=True)
def compiled_as_users_compile():
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def decode(topology, *options):
    """The compiled program."""
    config = cli.parse(TrainConfig, [*RECIPE, *options], description="")
    sizes = Sizes(prompt=640, response=CAPTIONS, branch_row=2048, sentences=40, example=1024)
    devices = parse_topology(topology).devices()
    (program,) = (each for each in programs(config, LlavaConfig(), devices, sizes) if each.name == "decode")
    return program.lower().compile()


def cycles(module, trips):
    """By the compiler's own estimates: of the entry, and of loops in it and in them, which run `trips` times."""
    own, inner, entry, current = {}, {}, "", ""
    for line in module.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            current = head[2]
            own[current], inner[current] = 0, []
            entry = current if head[1] else entry
        own[current] = own.get(current, 0) + sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', line)))
        inner.setdefault(current, []).extend(re.findall(r" while\(.*body=%?([\w.-]+)", line))

    def total(name, depth):
        return own[name] + sum(trips[depth] * total(body, depth + 1) for body in inner[name])

    return total(entry, 0)


@pytest.mark.parametrize(
    ("topology", "options", "most"),
    [
        # Without pages, at 512 tokens a candidate: 773 and 736 million; weights alone, read once a step, 160 and 260.
        pytest.param("v5e:4x4", V5E, 375e6, marks=pytest.mark.main),
        ("v6e:4x4", (), 425e6),
    ],
    ids=["v5e", "v6e"],
)
def test_a_call_copies_nothing_and_reads_little_more_than_the_weights(topology, options, most):
    compiled = decode(topology, *options)
    found = cycles(compiled.as_text(), (PAGE, LlavaConfig().text.num_layers, 1, 1))
    assert 0.7 * most < found < most
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 0.2e9
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 1e6  # pages are written where they are
