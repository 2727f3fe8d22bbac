"""Collectives in a module's text: of one written by hand, and of programs that XLA compiles for several devices."""

import json
import os
import subprocess
import sys

import pytest

from tests.stages.sft_world import ROOT
from vigor_jax.plan.collectives import collective_bytes
from vigor_jax.plan.modules import arrays

MODULE = """
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], bf16[8,16], bf16[64])) -> (s32[], bf16[8,16], bf16[64]) {
  %state = (s32[], bf16[8,16]{1,0}, bf16[64]{0}) parameter(0)
  %shard = bf16[8,16]{1,0} get-tuple-element(%state), index=1
  %gathered = bf16[32,16]{1,0} all-gather(%shard), channel_id=1, dimensions={0}
  %part = bf16[64]{0} get-tuple-element(%state), index=2
  %scattered = bf16[16]{0} reduce-scatter(%part), channel_id=2, dimensions={0}, to_apply=%add
  ROOT %next = (s32[], bf16[8,16]{1,0}, bf16[64]{0}) tuple(%state)
}

%condition (state: (s32[], bf16[8,16], bf16[64])) -> pred[] {
  %state.1 = (s32[], bf16[8,16]{1,0}, bf16[64]{0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (x: f32[128], y: bf16[8,16]) -> f32[128] {
  %x = f32[128]{0} parameter(0)
  %y = bf16[8,16]{1,0} parameter(1)
  %start = (f32[128]{0}, f32[128]{0}) all-reduce-start(%x), channel_id=3, to_apply=%add
  %done = f32[128]{0} all-reduce-done(%start)
  %first = (s32[], bf16[8,16]{1,0}, bf16[64]{0}) tuple(%x)
  %loop = (s32[], bf16[8,16]{1,0}, bf16[64]{0}) while(%first), condition=%condition, body=%body@TRIPS@
  ROOT %sent = f32[128]{0} collective-permute(%done), channel_id=4, source_target_pairs={{0,1}}
}
"""


def test_counts_loops_as_often_as_they_run():
    known = MODULE.replace("@TRIPS@", ', backend_config={"known_trip_count":{"n":"5"}}')
    once = {"all-reduce": 512, "collective-permute": 512}
    assert collective_bytes(known) == once | {"all-gather": 5 * 1024, "reduce-scatter": 5 * 128}
    unknown = MODULE.replace("@TRIPS@", "")
    assert collective_bytes(unknown) == once | {"all-gather": 1024, "reduce-scatter": 128}
    assert collective_bytes(unknown, default_trips=3) == once | {"all-gather": 3 * 1024, "reduce-scatter": 3 * 128}


TPU = """
HloModule jit_step, is_scheduled=true

%add (i: bf16[], j: bf16[]) -> bf16[] {
  %i = bf16[] parameter(0)
  %j = bf16[] parameter(1)
  ROOT %i_j = bf16[] add(%i, %j)
}

%all-reduce-scatter.1 (a: bf16[64,8]) -> bf16[16,8] {
  %a = bf16[64,8]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %sum = bf16[64,8]{1,0:T(8,128)(2,1)} all-reduce(%a), channel_id=7, to_apply=%add
  ROOT %slice = bf16[16,8]{1,0:T(8,128)(2,1)} dynamic-slice(%sum, %zero, %zero), dynamic_slice_sizes={16,8}
}

%start (b: bf16[8,16]) -> (bf16[32,16], u32[]) {
  %b = bf16[8,16]{1,0} parameter(0)
  %gather.1 = bf16[32,16]{1,0} all-gather(%b), channel_id=8, dimensions={0}
  ROOT %begun = (bf16[32,16]{1,0}, u32[]) custom-call(%gather.1)
}

%beside (c: bf16[8,16]) -> (bf16[32,16], u32[]) {
  %c = bf16[8,16]{1,0} parameter(0)
  %gather.2 = bf16[32,16]{1,0} all-gather(%c), channel_id=8, dimensions={0}
  ROOT %done.2 = (bf16[32,16]{1,0}, u32[]) custom-call(%gather.2)
}

%inner (at: (u32[], bf16[8,16])) -> (u32[], bf16[8,16]) {
  %at = (u32[]{:T(128)}, bf16[8,16]{1,0}) parameter(0)
  %count = u32[]{:T(128)} get-tuple-element(%at), index=0
  %two = u32[]{:T(128)} constant(2)
  %shard = bf16[8,16]{1,0} get-tuple-element(%at), index=1
  %piece = (bf16[32,16]{1,0}, u32[]) fusion(%shard), kind=kOutput, calls=%beside
  %next.1 = u32[]{:T(128)} add(%count, %two)
  ROOT %out = (u32[]{:T(128)}, bf16[8,16]{1,0}) tuple(%next.1, %shard)
}

%inner_condition (at.1: (u32[], bf16[8,16])) -> pred[] {
  %at.1 = (u32[]{:T(128)}, bf16[8,16]{1,0}) parameter(0)
  %end.1 = u32[]{:T(128)} constant(7)
  %count.1 = u32[]{:T(128)} get-tuple-element(%at.1), index=0
  ROOT %less.1 = pred[]{:T(512)} compare(%count.1, %end.1), direction=LT
}

%layer (state: (bf16[8,16], s32[], bf16[64,8])) -> (bf16[8,16], s32[], bf16[64,8]) {
  %state = (bf16[8,16]{1,0}, s32[]{:T(128)}, bf16[64,8]{1,0}) parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %number = s32[]{:T(128)} get-tuple-element(%state), index=1
  %copied = s32[]{:T(128)} copy(%number)
  %weight = bf16[8,16]{1,0} get-tuple-element(%state), index=0
  %gradient = bf16[64,8]{1,0} get-tuple-element(%state), index=2
  %begin = (bf16[32,16]{1,0}, u32[]) fusion(%weight), kind=kCustom, calls=%start
  %reduced = bf16[16,8]{1,0} fusion(%gradient), kind=kCustom, calls=%all-reduce-scatter.1
  %none = u32[]{:T(128)} constant(1)
  %zeroth = u32[]{:T(128)} copy(%none)
  %given = (u32[]{:T(128)}, bf16[8,16]{1,0}) tuple(%zeroth, %weight)
  %ring = (u32[]{:T(128)}, bf16[8,16]{1,0}) while(%given), condition=%inner_condition, body=%inner
  %next = s32[]{:T(128)} add(%copied, %one)
  ROOT %after = (bf16[8,16]{1,0}, s32[]{:T(128)}, bf16[64,8]{1,0}) tuple(%weight, %next, %gradient)
}

%layer_condition (state.1: (bf16[8,16], s32[], bf16[64,8])) -> pred[] {
  %end = s32[]{:T(128)} constant(@LAYERS@)
  %state.1 = (bf16[8,16]{1,0}, s32[]{:T(128)}, bf16[64,8]{1,0}) parameter(0)
  %number.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=1
  ROOT %less = pred[]{:T(512)} compare(%number.1, %end), direction=LT
}

ENTRY %main (w: bf16[8,16], g: bf16[64,8]) -> bf16[8,16] {
  %w = bf16[8,16]{1,0} parameter(0)
  %g = bf16[64,8]{1,0} parameter(1)
  %from = s32[]{:T(128)} constant(0)
  %first = (bf16[8,16]{1,0}, s32[]{:T(128)}, bf16[64,8]{1,0}) tuple(%w, %from, %g)
  %loop = (bf16[8,16]{1,0}, s32[]{:T(128)}, bf16[64,8]{1,0}) while(%first), condition=%layer_condition, body=%layer
  ROOT %result = bf16[8,16]{1,0} get-tuple-element(%loop), index=0
}
"""


def test_reads_the_trips_of_tpu_loops_from_their_counters():
    """Layers from 0 to 5 by 1; in each a ring from 1 to 7 by 2, during which that layer is gathered."""
    known = TPU.replace("@LAYERS@", "5")
    assert collective_bytes(known, default_trips=100) == {"all-gather": 5 * 1024, "reduce-scatter": 5 * 1024}
    ring = known.replace("channel_id=8, dimensions={0}\n  ROOT %done.2", "channel_id=9, dimensions={0}\n  ROOT %done.2")
    assert ring != known
    assert collective_bytes(ring) == {"all-gather": 5 * (1024 + 3 * 1024), "reduce-scatter": 5 * 1024}
    assert collective_bytes(known.replace("(%copied, %one)", "(%copied, %copied)"), default_trips=2) == {
        "all-gather": 2 * 1024,
        "reduce-scatter": 2 * 1024,
    }


@pytest.mark.parametrize(
    ("text", "size"), [("f32[8,128]{1,0}", 4096), ("(bf16[3], s32[])", 10), ("s4[3]", 2), ("token[]", 0)]
)
def test_sizes(text, size):
    assert sum(each.bytes for each in arrays(text)) == size


PROGRAM = """
import json, jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from vigor_jax.plan.collectives import collective_bytes
mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
split, whole = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())
weights = jax.ShapeDtypeStruct((6, 64, 32), jnp.float32, sharding=NamedSharding(mesh, P(None, "x")))
x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=split)

def layer(x, weight):
    weight = jax.lax.with_sharding_constraint(weight, whole)
    return jnp.tanh(x @ weight @ weight.T), None

def stack(x, weights):
    return jax.lax.with_sharding_constraint(jax.lax.scan(layer, x, weights)[0], split)

gather = jax.jit(stack, out_shardings=split).lower(x, weights).compile().as_text()
reduce = jax.jit(lambda x: x.sum(0), out_shardings=whole).lower(x).compile().as_text()
print(json.dumps([collective_bytes(gather), collective_bytes(reduce)]))
"""


def test_of_compiled_programs():
    """Six layers, each gathered once; a vector that is added up over all devices."""
    settings = {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=os.environ | settings, check=True, capture_output=True, text=True
    )
    gathered, reduced = json.loads(found.stdout)
    assert gathered == {"all-gather": 6 * 64 * 32 * 4}
    assert reduced == {"all-reduce": 64 * 4}
