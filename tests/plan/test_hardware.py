"""Names of pods, and what is known of their chips."""

import importlib.util

import pytest

from vigor_jax.errors import InputError
from vigor_jax.plan.hardware import GIB, GPUS, TPUS, parse_topology


@pytest.mark.parametrize(
    ("name", "chips", "kind"),
    [
        ("v5e:4x4", 16, "TPU v5 lite"),
        ("v5p:2x2x2", 8, "TPU v5"),
        ("v6e:16x16", 256, "TPU v6 lite"),
        ("a100-40g:8", 8, "NVIDIA A100-SXM4-40GB"),
        ("h200:1", 1, "NVIDIA H200"),
    ],
)
def test_topologies(name, chips, kind):
    found = parse_topology(name)
    assert (found.name, found.num_chips, found.chip.kind) == (name, chips, kind)
    assert found.is_gpu == kind.startswith("NVIDIA")


@pytest.mark.parametrize(
    ("name", "larger"),
    [
        ("v5e:2x2", ["v5e:2x4", "v5e:4x4", "v5e:4x8", "v5e:8x8", "v5e:8x16", "v5e:16x16"]),
        ("v5p:2x2x4", ["v5p:2x4x4", "v5p:4x4x4", "v5p:4x4x8", "v5p:4x8x8"]),
        ("h100:64", ["h100:128", "h100:256"]),
        ("v6e:16x16", []),
    ],
)
def test_larger_pods(name, larger):
    found = list(parse_topology(name).larger())
    assert [each.name for each in found] == larger
    assert [parse_topology(each.name) for each in found] == found


@pytest.mark.parametrize("name", ["", "v5e", "v5e:16", "v7:4x4", "a100-40g:2x2", "h100:", "a100:8", "v5e:4x4x4x4"])
def test_others_are_refused(name):
    with pytest.raises(InputError, match=r"--topology: expected v4, v5e.* with a shape such as v5e:4x4, .*got"):
        parse_topology(name)


def test_chips_are_as_their_data_sheets_say():
    """Of all, arithmetic is known, and a GPU's programs get less than all of its memory."""
    assert {name: chip.flops / 1e12 for name, chip in (TPUS | GPUS).items()} == {
        "v4": 275, "v5e": 197, "v5p": 459, "v6e": 918, "a100-40g": 312, "a100-80g": 312, "h100": 989, "h200": 989,
    }  # fmt: skip
    assert {name: [chip.link_among(count) / 1e9 for count in (8, 16)] for name, chip in (TPUS | GPUS).items()} == {
        "v4": [300, 300], "v5e": [200, 200], "v5p": [600, 600], "v6e": [448, 448],
        "a100-40g": [300, 200], "a100-80g": [300, 200], "h100": [450, 400], "h200": [450, 400],
    }  # fmt: skip
    assert 36 * GIB < GPUS["a100-40g"].memory < 40 * GIB
    assert 15 * GIB < TPUS["v5e"].memory < 16 * GIB


@pytest.mark.parametrize(
    ("name", "module", "extra"), [("v5e:4x4", "libtpu", "plan-tpu"), ("h200:1", "jax_cuda13_plugin", "plan-cuda")]
)
def test_says_what_to_install(name, module, extra):
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed")
    with pytest.raises(InputError, match=rf"--topology {name}: JAX cannot compile for it here .*\[{extra}\]"):
        parse_topology(name).devices()
