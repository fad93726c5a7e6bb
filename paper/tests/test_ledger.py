"""The ledger: lines that survive kills at any byte, many writers at once, retries and merges."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from bayesprune import ArtefactError
from paper.ledger import Ledger
from paper.tests.rows import row


def test_roundtrip_a_row_is_what_was_written(tmp_path):
    ledger = Ledger(tmp_path / "new" / "t.jsonl")
    assert ledger.rows() == {} and ledger.commands() == []
    odd = {"name": "β\n", "status": "done", "score": 0.1 + 0.2, "selected": list(range(300)), "tiny": 5e-324}
    ledger.append(odd, {"command": {"cpu": "x"}})
    ledger.append(row("a") | {"nll": float("nan"), "ece": [float("inf")]})
    assert ledger.rows()["β\n"] == odd and ledger.commands() == [{"cpu": "x"}]
    assert len(ledger.path.read_text(encoding="utf-8").splitlines()) == 3  # one line a record
    assert ledger.rows()["a.seed0"]["nll"] is None and ledger.rows()["a.seed0"]["ece"] == [None]


def test_property_a_line_torn_at_any_byte_is_not_read_and_is_repaired(tmp_path):
    ledger = Ledger(tmp_path / "t.jsonl")
    ledger.append(row("a"), row("b"))
    content = ledger.path.read_bytes()
    first = content.index(b"\n") + 1
    for length in range(first, len(content) + 1):
        ledger.path.write_bytes(content[:length])
        whole = length >= len(content) - 1  # all but the line's end is enough
        assert set(ledger.rows()) == ({"a.seed0", "b.seed0"} if whole else {"a.seed0"})
        ledger.append(row("c"))
        assert set(ledger.rows()) == ({"a.seed0", "b.seed0", "c.seed0"} if whole else {"a.seed0", "c.seed0"})
        assert all(json.loads(line) for line in ledger.path.read_text().splitlines())


WRITER = """
import sys
from pathlib import Path
from bayesprune import ArtefactError
from paper.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    ledger.append({"name": f"{sys.argv[2]}-{number}", "status": "done", "filler": "x" * 20_000})
    print(number, flush=True)
"""


def writer(path, name, count):
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, str(count)], stdout=subprocess.PIPE)


def test_property_many_processes_share_a_ledger(tmp_path):
    path = tmp_path / "t.jsonl"
    writers = [writer(path, name, 25) for name in "abc"]
    assert [each.wait() for each in writers] == [0, 0, 0]
    rows = Ledger(path).rows()
    assert set(rows) == {f"{name}-{number}" for name in "abc" for number in range(25)}
    assert all(len(each["filler"]) == 20_000 for each in rows.values())


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills as on Linux")
def test_property_a_killed_writer_leaves_what_it_had_written(tmp_path):
    path = tmp_path / "t.jsonl"
    for attempt in range(3):
        process = writer(path, f"{attempt}", 10**6)
        lines = [process.stdout.readline() for _ in range(5 + attempt)]
        time.sleep(0.003 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        ledger = Ledger(path)
        ledger.append(row(f"after{attempt}"))
        told = {f"{attempt}-{int(line)}" for line in lines}
        assert told <= set(ledger.rows()) and f"after{attempt}.seed0" in ledger.rows()


def test_property_the_last_row_counts_but_done_is_done(tmp_path):
    ledger = Ledger(tmp_path / "t.jsonl")
    ledger.append(row("a", status="failed"), row("b", accuracy=0.5), row("c", status="failed"))
    ledger.append(row("b", status="failed"), row("a", accuracy=0.8), row("c") | {"status": "withdrawn"})
    ledger.append(row("b", accuracy=0.6))
    rows = ledger.rows()
    assert rows["a.seed0"]["accuracy_single"] == 0.8 and rows["b.seed0"]["accuracy_single"] == 0.6
    assert "c.seed0" not in rows


def test_property_rows_of_other_machines_are_taken_in_once(tmp_path):
    mine, other, third = (Ledger(tmp_path / f"{name}.jsonl") for name in ("mine", "other", "third"))
    mine.append(row("a", status="failed"), row("b", accuracy=0.5))
    other.append(row("a"), row("b", accuracy=0.7), row("c"))
    third.append(row("d", status="failed"), row("c", accuracy=0.1), {"command": {}})
    assert mine.merge(other.path, third.path) == 3 and mine.merge(other.path, third.path) == 0
    rows = mine.rows()
    assert rows["a.seed0"]["status"] == "done" and rows["b.seed0"]["accuracy_single"] == 0.5
    assert rows["c.seed0"]["accuracy_single"] == 0.9 and set(rows) == {f"{name}.seed0" for name in "abcd"}


def test_error_names_the_file_the_line_and_the_mend(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.jsonl"):
        Ledger(tmp_path / "table.json")
    ledger = Ledger(tmp_path / "t.jsonl")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ledger.merge(tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match="neither a row with a status"):
        ledger.append({"name": "a"})
    ledger.append(row("a"))
    for wrong in (b"<<<<<<< mine\n", b'{"name": "x"}\n', b"[1]\n", b"\xff\n"):
        ledger.path.write_bytes(wrong + ledger.path.read_bytes())
        with pytest.raises(ValueError, match=r"t\.jsonl: line 1 is no row"):
            ledger.rows()
        ledger.path.write_bytes(ledger.path.read_bytes()[len(wrong) :])
    ledger.append({"status": "done"})
    with pytest.raises(ArtefactError, match="expected rows with a name"):
        ledger.rows()


def test_property_a_full_disk_leaves_no_part_of_a_line(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "t.jsonl")
    ledger.append(row("a"))
    before = ledger.path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("paper.ledger.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        ledger.append(row("b"))
    assert ledger.path.read_bytes() == before
