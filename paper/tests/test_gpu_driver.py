"""What waits for a GPU, tried at tiny size: the driver, its data, the throughput, and every entry of the queue."""

from __future__ import annotations

import json
import re
import shlex
import tarfile
from pathlib import Path

import pytest
from benchmarks.gpu import data, driver, throughput

from bayesprune.vision import load_cifar
from paper.cells import standing
from paper.published import table_cells

QUEUE = (Path(driver.__file__).parent / "QUEUE.md").read_text(encoding="utf-8")


def test_property_the_driver_runs_two_at_once_and_goes_on(tmp_path, capsys):
    command = ["table1", "--device", "cpu", "--tiny", "--store", str(tmp_path / "w"), "--out", str(tmp_path / "o")]
    only = ["cifar10-resnet18", "cifar10-resnet18-dfp-90"]
    assert driver.main([*command, "--only", *only, "--jobs", "2"]) == 0
    ledger = tmp_path / "o" / "table1.jsonl"
    rows = {row["recipe"]: row for row in standing(ledger)["rows"]}
    assert sorted(rows) == only and all(row["changes"] for row in rows.values())
    assert rows["cifar10-resnet18-dfp-90"]["sparsity_prunable"] == pytest.approx(0.9, abs=0.01)
    assert "(batch_size=16, " in capsys.readouterr().out
    before = ledger.read_text()
    assert driver.main([*command, "--only", *only]) == 0
    assert ledger.read_text() == before  # nothing was missing


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_roundtrip_data_comes_as_folder_or_archive(tmp_path, name):
    folder, archive, _ = data.LAYOUTS[name]
    source = data.tiny(name, tmp_path / "plain")
    assert data.unpacked(name, source, tmp_path / "store") == source
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed" / archive, "w:gz") as file:
        file.add(source / folder, folder)
    store = data.unpacked(name, tmp_path / "packed", tmp_path / "store")
    assert store == tmp_path / "store" and len(load_cifar(name, store).test_images) == (
        40 if name == "cifar10" else 100
    )
    assert data.unpacked(name, tmp_path / "packed", store) == store
    with pytest.raises(FileNotFoundError, match=archive):
        data.unpacked(name, tmp_path, tmp_path / "other")


def test_property_the_throughput_of_all_three_loops_is_measured(tmp_path, monkeypatch):
    names = {label: "cifar10-resnet20-sgd" if "SGD" in label else "cifar10-resnet20" for label in throughput.RECIPES}
    monkeypatch.setattr(throughput, "RECIPES", names)
    assert throughput.main(["--device", "cpu", "--tiny", "--json", str(tmp_path / "t.json")]) == 0
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert [row["loop"] for row in rows] == ["bare SGD", *throughput.RECIPES] and "over_our_sgd" in rows[2]


def test_property_every_driver_entry_of_the_queue_names_cells():
    entries = re.findall(r"`python -m benchmarks\.gpu\.driver (.*?)`", QUEUE)
    assert len(entries) > 8
    for entry in entries:
        words = shlex.split(entry)
        if words == ["step"]:  # the optimizers' step: no cells
            continue
        only = words[words.index("--only") + 1 :] if "--only" in words else []
        only = only[: next((i for i, word in enumerate(only) if word.startswith("--")), len(only))]
        assert table_cells(words[0], 1, only=only)
