"""2,000 mutations of every kind of file that is read: none passes in silence, leaves the errors' family or its folder."""

from __future__ import annotations

import random
import shutil

import pytest
from benchmarks.fuzz_artefacts import READERS
from benchmarks.fuzz_mutations import forge, mutate
from benchmarks.fuzz_readers import fuzz, scratch

PEAK_MB = 256


@pytest.fixture
def place():
    folder = scratch()
    yield folder / "fuzz"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name.replace(" ", "-"))
@pytest.mark.parametrize("mutations", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_property_mutated_files_are_refused_or_read_as_they_were(reader, mutations, place) -> None:
    if reader.name.startswith("tabular"):
        pytest.importorskip("sklearn")
    if reader.name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    tally = fuzz(reader, place, mutations, seed=mutations)
    assert tally.faults == 0, "\n".join(tally.examples)
    assert tally.refused > mutations / 5 and tally.peak_mb < PEAK_MB


def test_property_the_engine_finds_what_it_looks_for(place) -> None:
    """A reader without checks is caught in all four ways."""
    from benchmarks.fuzz_artefacts import Reader

    from bayesprune.common.files import write_text

    def read(folder):
        text = (folder / "a").read_text()
        if "../" in text or "/etc" in text:
            open("/etc/passwd").close()
        return text

    tally = fuzz(Reader("careless", lambda folder: write_text(folder / "a", "x" * 500 + "12345"), read), place, 500, 0)
    assert tally.silent and tally.outside_family and tally.outside_folder
    assert len(tally.examples) == 5


def test_property_mutations_are_seeded_and_change_something() -> None:
    content = bytes(range(256)) * 4
    one, other = ([mutate(content, random.Random(seed), [b"other"]) for seed in range(200)] for _ in range(2))
    assert one == other and sum(each != content for each in one) > 150
    assert forge(b'{"a": [1, 2], "sha256": "x"}', random.Random(0)) != b'{"a": [1, 2], "sha256": "x"}'
