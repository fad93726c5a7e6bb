"""The Triton kernel in Triton's interpreter, on the CPU: it must be chosen before Triton is imported, so a process does it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from functools import partial

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from bayesprune.samplers import triton
from bayesprune.samplers.guard import Pending
from bayesprune.samplers.step import sampler_step
from tensor_steps import DECAYS, assert_steps_close, stepped, tensor_step

SIZES = (0, 1, 33, 1025)


def plain(items):
    return stepped(items, lambda parts: sampler_step(parts, foreach=False, fused=False))


def check_parity() -> None:
    for kind, exact, adapt in itertools.product(("paper", "rms", "none"), (False, True), (False, True)):
        items = [
            tensor_step(n, kind, seed=n, exact=exact, adapt=adapt, decay=decay, previous=previous, offset=offset)
            for n, (decay, previous, offset) in zip(
                SIZES, itertools.cycle(itertools.product(DECAYS, (False, True), (0, 7)))
            )
        ]
        items += [tensor_step(n, kind, seed=n, exact=exact, adapt=adapt, offset=(1 << 32) + 1) for n in (5, 1500)]
        assert_steps_close(stepped(items, triton.sampler_step), plain(items), rtol=2e-5, atol=4e-6)


def check_bfloat16() -> None:
    for kind in ("paper", "rms", "none"):
        items = [tensor_step(n, kind, seed=n, state=torch.bfloat16, offset=5) for n in SIZES]
        assert_steps_close(stepped(items, triton.sampler_step), plain(items), rtol=2e-5, atol=4e-6)


def check_no_number() -> None:
    for state in (torch.float32, torch.bfloat16):
        item = tensor_step(100, "rms", state=state)
        item.gradient[17] = float("nan")
        (after,) = stepped([item], triton.sampler_step)
        assert after.weight[17].isnan() and after.momentum[17].isnan() and after.weight.isfinite().sum() == 99


def check_guard() -> None:
    """A guarded weight whose gradient is no number stays, its tensor is told, and the others move as without the guard."""
    for kind in ("paper", "rms", "none"):
        items = [tensor_step(n, kind, seed=n, guard=True, stream=n) for n in (40, 1500, 70)]
        before = items[1].weight[1200].item()
        good = stepped(items, triton.sampler_step)
        items[1].gradient[1200] = float("inf")
        pending = Pending()
        after = stepped(items, partial(triton.sampler_step, pending=pending))
        assert pending.found() == [1500] and pending.found() == []
        assert after[1].weight[1200].item() == before and after[1].weight.isfinite().all()
        keep = torch.arange(1500) != 1200
        assert torch.equal(after[1].weight[keep], good[1].weight[keep]) and torch.equal(after[0].weight, good[0].weight)


def check_settings() -> None:
    changes = [dict(noise_std=0.0), dict(blend=0.0), dict(alpha=0.0), dict(dual_lr=0.0), dict(lr=0.3), dict(blend=0.9)]
    for kind in ("paper", "rms", "none"):
        items = [tensor_step(40, kind, seed=place, **change) for place, change in enumerate(changes)]
        assert_steps_close(stepped(items, triton.sampler_step), plain(items), rtol=2e-5, atol=4e-6)


def apart(checks: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Call functions of this file in a process of their own."""
    code = f"import sys; sys.path[:0] = {sys.path!r}\nfrom samplers import test_triton\n" + "\n".join(
        f"test_triton.{check}()" for check in checks
    )
    held = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run([sys.executable, "-c", code], env=held, capture_output=True, text=True, timeout=600)


def test_parity_the_kernel_is_the_plain_loop():
    checks = ["check_parity", "check_bfloat16", "check_no_number", "check_guard", "check_settings"]
    done = apart(checks, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr


def compile_for_a_gpu() -> None:
    """Compile the kernel as `_launch` asks for it, for a GPU that need not be there."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    kernel, compiled = triton._kernel(), []
    names = [parameter.name for parameter in kernel.params]
    types = {"table": "*i64", "blocks": "*i32", "flags": "*i32"}
    kinds = itertools.product(("paper", "rms", "none"), (torch.float32, torch.bfloat16), (False, True))
    others = itertools.cycle(
        itertools.product(DECAYS, (False, True), (0.0, 0.25))
    )  # decay, previous noise or not, blend
    for (kind, state, adapt), (decay, past, blend) in zip(kinds, others):
        item = tensor_step(
            8, kind, state=state, adapt=adapt, decay=decay, previous=past, exact=past, blend=blend, guard=adapt
        )
        values = dict(zip(names[len(types) :], (*triton._signature(item), triton._COLUMNS, triton.BLOCK), strict=True))
        constants = {(names.index(name),): value for name, value in values.items()}
        signature = {name: types.get(name, "constexpr") for name in names}
        compiled.append(compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32)))
    assert all(len(each.asm["cubin"]) > 1000 for each in compiled)


def test_property_the_kernel_compiles_for_a_gpu():
    done = apart(["compile_for_a_gpu"], TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stdout + done.stderr


def test_property_what_fits():
    assert triton.fits(tensor_step(3, "rms")) and triton.fits(tensor_step(3, "rms", state=torch.bfloat16))
    assert not triton.fits(tensor_step(3, "rms", dtype=torch.float64))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16])
def test_parity_on_a_gpu(state):
    for kind, decay in itertools.product(("paper", "rms", "none"), DECAYS):
        items = [tensor_step(n, kind, seed=n, decay=decay, state=state, device="cuda") for n in (*SIZES, 1_000_003)]
        fused = stepped(items, lambda parts: sampler_step(parts, foreach=None, fused=True))
        assert_steps_close(fused, plain(items), rtol=5e-5, atol=1e-5)
        several = stepped(items, lambda parts: sampler_step(parts, foreach=True, fused=None))
        assert_steps_close(several, plain(items), rtol=5e-5, atol=1e-5)
