"""What a TPU's compiler says of time: of a module written by hand, and of programs that it compiles."""

import dataclasses

import pytest

from vigor_jax.plan.cycles import compiler_seconds
from vigor_jax.plan.hardware import TPUS, Chip

CHIP = Chip("TPU v5 lite", 2**34, 819e9, 200e9, clock=1.5e9)

MODULE = """
HloModule jit_step, is_scheduled=true

%inside (p: bf16[8,16]) -> bf16[8,16] {
  %p = bf16[8,16]{1,0} parameter(0)
  ROOT %twice = bf16[8,16]{1,0} add(%p, %p)
}

%body (state: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %state = (s32[], bf16[8,16]{1,0}) parameter(0)
  %x = bf16[8,16]{1,0} get-tuple-element(%state), index=1
  %fused = bf16[8,16]{1,0} fusion(%x), kind=kLoop, calls=%inside, backend_config={"estimated_cycles":"300"}
  ROOT %next = (s32[], bf16[8,16]{1,0}) tuple(%state, %fused)
}

%condition (state.1: (s32[], bf16[8,16])) -> pred[] {
  %state.1 = (s32[], bf16[8,16]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (x.1: bf16[8,16], q: bf16[4,256,128], k: bf16[4,512,128]) -> bf16[8,16] {
  %x.1 = bf16[8,16]{1,0} parameter(0)
  %q = bf16[4,256,128]{2,1,0} parameter(1)
  %k = bf16[4,512,128]{2,1,0} parameter(2)
  %blocks = s8[4,2,1]{2,1,0} constant({...})
  %copy = bf16[8,16]{1,0} copy(%x.1), backend_config={"flag_configs":[],"estimated_cycles":"50"}
  %@NAME@.1 = bf16[4,256,128]{2,1,0} custom-call(%blocks, %q, %k, %k), custom_call_target="tpu_custom_call"
  %first = (s32[], bf16[8,16]{1,0}) tuple(%copy)
  %loop = (s32[], bf16[8,16]{1,0}) while(%first), condition=%condition, body=%body@TRIPS@
  ROOT %result = bf16[8,16]{1,0} get-tuple-element(%loop), index=1
}
"""
KNOWN = ', backend_config={"known_trip_count":{"n":"5"}}'
FLOPS = 2 * 4 * 256 * 512 * 128  # of one product of all queries and keys


@pytest.mark.parametrize(("kernel", "products"), [("splash_mha_fwd_no_residuals", 2), ("splash_mha_dq", 3),
                                                  ("splash_mha_dkv_no_residuals", 4)])  # fmt: skip
def test_cycles_and_kernels_are_added_up(kernel, products):
    module = MODULE.replace("@NAME@", kernel)
    attention = products * FLOPS / CHIP.flops
    known = compiler_seconds(module.replace("@TRIPS@", KNOWN), CHIP)
    assert known == pytest.approx((50 + 5 * 300) / 1.5e9 + attention, rel=1e-12)
    unknown = compiler_seconds(module.replace("@TRIPS@", ""), CHIP, default_trips=16)
    assert unknown == pytest.approx((50 + 16 * 300) / 1.5e9 + attention, rel=1e-12)


def test_a_kernel_that_is_not_known_is_named(caplog):
    found = compiler_seconds(MODULE.replace("@NAME@", "another").replace("@TRIPS@", KNOWN), CHIP)
    assert found == pytest.approx((50 + 5 * 300) / 1.5e9, rel=1e-12)
    assert "another.1: the compiler says nothing about this kernel" in caplog.text


def test_where_the_compiler_says_nothing_there_is_no_time():
    module = MODULE.replace("@NAME@", "splash_mha_fwd").replace("@TRIPS@", KNOWN)
    assert compiler_seconds(module.replace("estimated_cycles", "something"), CHIP) is None
    assert compiler_seconds(module, dataclasses.replace(CHIP, clock=0.0)) is None
    assert [name for name, chip in TPUS.items() if not chip.clock] == ["v4"]
