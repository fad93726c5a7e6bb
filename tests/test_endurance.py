"""The scripts that kill and that wait, for a moment each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks import kills, ranks, soak


def test_property_the_committed_results_hold():
    """Kills: no end but the uninterrupted one. Ranks: every layout within 1e-6 at T = 0. An hour's memory; mutations."""
    results = Path(kills.__file__).parent / "results"
    found = json.loads((results / "kills.json").read_text())
    assert found["kills"] >= 200 and not found["failed"] and all(found["by_work"].values())
    rows = json.loads((results / "ranks.json").read_text())
    assert all(row["from_one_process"] <= 1e-6 for row in rows["layouts"] if row["temperature"] == 0)
    assert all(row["between_ranks"] == 0 and row["same_masks"] for row in rows["layouts"] if "between_ranks" in row)
    assert all(row["ended_after_seconds"] <= 60 and row["resumed_equal"] for row in rows["faults"])
    hour = json.loads((results / "soak.json").read_text())
    assert hour["minutes"] >= 60 and hour["slope_mb_per_hour"]["held_mb"] <= hour["limit_mb_per_hour"]
    assert len(hour["files"]) == len(hour["threads"]) == 1
    fuzzed = json.loads((results / "fuzz_readers.json").read_text())["summary"]
    assert fuzzed["mutations"] >= 100_000
    assert not any(fuzzed[fault] for fault in ("silent", "outside_family", "outside_folder", "too_long"))


def test_property_a_state_that_a_kill_left_is_judged(tmp_path):
    assert kills.halfway("collect", tmp_path) == kills.halfway("save", tmp_path) == ""
    kills.collect.__globals__["SAMPLES"], before = 2, kills.SAMPLES
    try:
        kills.collect(tmp_path)
    finally:
        kills.collect.__globals__["SAMPLES"] = before
    assert kills.halfway("collect", tmp_path) == ""
    first, second = (tmp_path / "samples" / f"sample-000{number}.safetensors" for number in (0, 1))
    assert first.exists() and second.exists()
    assert set(kills.content(tmp_path)) >= {"samples/sample-0000.safetensors", "samples/store.json"}


@pytest.mark.slow
def test_roundtrip_a_few_kills_change_no_end():
    rows = []
    kills.run(3, 5.0, ["collect"], 1, rows, lambda: None)
    found = kills.summary(rows)
    assert found["kills"] >= 1 and not found["failed"] and found["by_work"]["collect"] == found["kills"]


@pytest.mark.slow
def test_property_a_minute_of_everything_keeps_files_and_threads():
    found = soak.soak(0.5, 0.4)
    assert found["rounds"] >= 4 and len(found["files"]) == len(found["threads"]) == 1


def test_property_a_reading_is_in_megabytes():
    before = soak.reading()["held_mb"]
    held = torch.ones(8 << 20)
    assert 20 < soak.reading()["held_mb"] - before < 60
    assert held.sum() and ranks.network() is not None
