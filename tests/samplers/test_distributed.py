"""Two gloo processes: FSDP2 is DDP is one process, noise included; checkpoints and ZeRO too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.ranks import trained as pruned

from distributed_child import STEPS, TEMPERATURES, decay, train, whole
from optimizer_table import build, network
from scenarios import SAMPLERS

TESTS = Path(__file__).parents[1]
cases = pytest.mark.parametrize("temperature", TEMPERATURES)
names = pytest.mark.parametrize("name", SAMPLERS)
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run two processes to their end and return what each found, by scenario."""
    folder = tmp_path_factory.mktemp("processes")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]),
    }
    children = [
        subprocess.Popen(
            [sys.executable, str(TESTS / "distributed_child.py"), str(rank), str(folder)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [child.communicate(timeout=120)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    assert all(child.returncode == 0 for child in children), "\n".join(outputs)[-6000:]
    found = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return lambda scenario: [each[scenario] for each in found]


def alone(name, temperature):
    """Return model and optimizer of the same run in one process, on the whole batch."""
    model = network()
    optimizer = build(name, model.parameters(), temperature=temperature)
    optimizer.set_weight_decay(model[0].weight, decay())
    train(model, optimizer, STEPS)
    return model, optimizer


@cases
@names
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_parity_two_processes_are_one(runs, way, name, temperature):
    """Weights and midpoints to 1e-6, and equal on both ranks; the noise bit for bit, a shard's the whole's rows."""
    model, optimizer = alone(name, temperature)
    first, second = (each[f"{name} {temperature}"] for each in runs(way))
    with optimizer.midpoint():
        middle = whole(model)
    for key, expected in (("weights", whole(model)), ("midpoint", middle)):
        for one, other, theirs in zip(first[key], second[key], expected):
            assert torch.equal(one, other)
            torch.testing.assert_close(one, theirs, rtol=1e-6, atol=1e-6)
    for one, other, param in zip(first["noise"], second["noise"], model.parameters()):
        together = one if way == "ddp" else torch.cat([one, other])
        assert torch.equal(together, optimizer.last_noise(param))
        assert bool(together.any()) == bool(temperature)


@names
def test_equation_kinetic_temperature_of_shards_averages_to_the_wholes(runs, name):
    _, optimizer = alone(name, 1.0)
    whole_one = optimizer.kinetic_temperature()[0]["mean"]
    ddp, fsdp = ([each[f"{name} 1.0"]["kinetic"] for each in runs(way)] for way in ("ddp", "fsdp"))
    assert ddp == pytest.approx([whole_one] * 2, rel=1e-4)
    sizes = [sum(noise.numel() for noise in each[f"{name} 1.0"]["noise"]) for each in runs("fsdp")]
    assert sum(s * k for s, k in zip(sizes, fsdp)) / sum(sizes) == pytest.approx(whole_one, rel=1e-4)


@names
def test_roundtrip_checkpoint_of_shards_goes_on_bit_for_bit(runs, name):
    for found in runs("checkpoint"):
        for straight, resumed in zip(found[name]["straight"], found[name]["resumed"]):
            assert torch.equal(straight, resumed)


@names
def test_parity_zero_redundancy_is_one_process_without_noise(runs, name):
    model = network()
    optimizer = build(name, model.parameters(), temperature=0.0)
    train(model, optimizer, STEPS)
    for found in runs("zero"):
        for ours, theirs in zip(found[f"{name} 0.0"]["weights"], whole(model)):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@names
def test_property_zero_redundancy_ranks_with_seeds_of_their_own_share_no_noise(runs, name):
    first, second = (found[f"{name} 1.0"] for found in runs("zero"))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first["weights"], second["weights"]))
    ours, theirs = torch.cat(first["noise"]), torch.cat(second["noise"])
    assert ours.numel() and theirs.numel() and not torch.isin(ours, theirs).any()


def test_error_several_processes_need_a_seed(runs):
    for found in runs("zero"):
        assert "give the same seed to all that share parameters" in found["message"]
        assert "seed=rank" in found["message"]


@cases
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_parity_two_processes_prune_as_one_does(runs, way, temperature):
    """The same masks and, to 1e-6, the same weights and momenta as one process; the same bits on both ranks."""
    one = pruned("one", temperature, 25, 0, 1)
    first, second = (each[f"{way} {temperature:g}"] for each in runs("pruned"))
    assert first["sparsity"] > 0.3
    for name, mask in one["masks"].items():
        assert torch.equal(mask, first["masks"][name]) and torch.equal(mask, second["masks"][name])
    for key in ("weights", "momenta"):
        for expected, mine, theirs in zip(one[key], first[key], second[key]):
            assert torch.equal(mine, theirs)
            torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-6)
