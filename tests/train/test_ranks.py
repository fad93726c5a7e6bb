"""What the processes of a run do about one of them that dies or hangs; chains of their own; the scripts that show it, small."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from benchmarks import ranks as layouts
from torch import distributed

from bayesprune.posterior import SampleStore, rank_rhat
from bayesprune.train import evaluate, recipe, train_chains
from bayesprune.train.parallel import Ranks


@pytest.fixture
def group(monkeypatch, tmp_path):
    """A process group of one process that takes itself for the second of two."""
    store = distributed.TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    found = Ranks(torch.device("cpu"), 4, timeout=1.0)
    found.rank, found.processes = 1, 2
    yield found
    distributed.destroy_process_group()


def test_error_a_main_process_without_life_is_not_awaited(group):
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match=r"process 0 has shown no life for 1 s .*--resume"):
        group.in_main(int)
    assert 1 <= time.monotonic() - begun < 10


def test_property_a_main_process_that_lives_is_awaited_beyond_the_timeout(group):
    main = Ranks(torch.device("cpu"), 4, timeout=1.0)
    main.rank, main.processes = 0, 2
    for seconds in (2.5, 0.0):  # the second time another key is waited for
        thread = threading.Thread(target=lambda wait=seconds: main.in_main(lambda: time.sleep(wait)))
        begun = time.monotonic()
        thread.start()
        assert group.in_main(lambda: 1 / 0) is None
        assert seconds - 0.1 < time.monotonic() - begun
        thread.join()


def test_property_the_first_step_sets_the_groups_timeout(group):
    group.hurry_()
    backend = distributed.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
    assert backend.options._timeout.total_seconds() == 1.0


@pytest.mark.slow
def test_parity_two_processes_prune_as_one_does_under_ddp_and_fsdp(tmp_path):
    for row in layouts.layouts(30, (2,)):
        assert row["from_one_process"] <= 1e-6 and row["same_masks"], row
        assert row["between_ranks"] == 0 and row["ranks_same_masks"], row
        assert row["sparsity"] > 0.3


TINY = ["train_size=96", "epochs=2", "batch_size=16", "width=4", "cycles=1", "samples_per_cycle=4", "sample_every=0.25"]


def started_by_torchrun(monkeypatch, rank: int) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "test"), ("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))


def test_parity_chains_on_two_processes_are_the_chains_of_one(tmp_path, monkeypatch):
    config = recipe("digits-cvadam", [*TINY, "device=cpu", "threads=1"])
    one = train_chains(config, tmp_path / "one", 2, quiet=True)
    for rank in (1, 0):  # the second first: it waits for nobody
        started_by_torchrun(monkeypatch, rank)
        found = train_chains(config, tmp_path / "two", 2, quiet=True)
    assert found == one
    assert found["num_samples"] == 8 and found["draws"] == [4, 4] and len(set(found["seeds"])) == 2
    assert found["rhat"].keys() == found["ess"].keys() == {"log likelihood", "accuracy"}
    first, second = SampleStore(tmp_path / "one" / "samples"), SampleStore(tmp_path / "two" / "samples")
    assert [info["chain"] for info in first.infos] == [0] * 4 + [1] * 4
    for mine, theirs in zip(first, second):
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    name = next(iter(first[3]))
    assert not torch.equal(first[3][name], first[7][name])
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert evaluate(tmp_path / "two")["num_samples"] == 8
    assert train_chains(config, tmp_path / "two", 2, resume=True, quiet=True) == one


def test_error_fewer_chains_than_processes(tmp_path, monkeypatch):
    started_by_torchrun(monkeypatch, 0)
    with pytest.raises(ValueError, match="chains=1 leaves some of the 2 processes"):
        train_chains(recipe("digits-cvadam", TINY), tmp_path, 1)


def test_target_chains_of_a_gaussian_agree_and_have_its_covariance():
    """Ranks with seeds of their own, here in one process: R-hat below 1.01, the merged covariance within 3 %."""
    found = torch.stack([layouts.gaussian(rank, 300) for rank in range(4)])
    assert float(rank_rhat(found.flatten(2)).median()) < 1.01
    flat = found.reshape(-1, 3).double()
    torch.testing.assert_close(flat.T.cov(), layouts.covariance().double(), rtol=0.03, atol=0.03)


@pytest.mark.slow
def test_roundtrip_a_killed_or_stopped_rank_ends_the_job_and_it_resumes_equal(tmp_path):
    for row in layouts.faults(tmp_path):
        assert row["resumed_equal"] and not row["was_done"] and row["ended_after_seconds"] <= 60, row
