"""The compiled step's cache: what another user, a crash or a version may have left there is not run."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bayesprune.samplers import native, native_cache
from bayesprune.samplers.native_cache import Unusable, compiler, trusted_library

pytestmark = pytest.mark.skipif(compiler() is None or os.environ.get("BAYESPRUNE_NATIVE") == "0", reason="no compiler")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A cache with a library that was built and tested."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BAYESPRUNE_CACHE", str(folder))
        return trusted_library()


@pytest.fixture
def cache(built, tmp_path, monkeypatch):
    """A copy of it, as this process's cache."""
    monkeypatch.setenv("BAYESPRUNE_CACHE", str(tmp_path))
    folder = tmp_path / "bayesprune"
    folder.mkdir(mode=0o700)
    for path in built.parent.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
        (folder / path.name).chmod(0o600)
    return folder / built.name


def test_property_folder_and_files_are_the_users_alone(built):
    assert stat.S_IMODE(built.parent.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in built.parent.iterdir())
    assert sorted(path.suffix for path in built.parent.iterdir()) == [".json", ".so"]


def test_property_numpy_is_found_where_this_process_has_it(built, monkeypatch):
    base = getattr(sys, "_base_executable", sys.executable)  # of a virtual environment: without its packages
    monkeypatch.setattr(sys, "executable", base)
    native_cache._test(built)


def test_property_a_recorded_library_is_taken_without_building(cache, monkeypatch):
    before = cache.stat().st_mtime_ns
    assert trusted_library() == cache
    assert cache.stat().st_mtime_ns == before


@pytest.mark.parametrize("change", ["truncated", "corrupted", "another library", "no record", "damaged record"])
def test_property_what_is_not_the_tested_library_is_built_anew(cache, built, change):
    record = cache.with_suffix(".json")
    if change == "truncated":
        cache.write_bytes(built.read_bytes()[:4096])
    elif change == "corrupted":
        content = bytearray(built.read_bytes())
        content[len(content) // 3 : len(content) // 3 + 400] = bytes(400)
        cache.write_bytes(content)
    elif change == "another library":
        cache.write_bytes(b"\x7fELF" + bytes(5000))
    elif change == "no record":
        record.unlink()
    else:
        record.write_text("{")
    assert trusted_library() == cache
    assert json.loads(record.read_text())["sha256"]
    subprocess.run([sys.executable, "-I", native_test(), str(cache)], check=True)


def native_test() -> str:
    return str(Path(native.__file__).with_name("native_library.py"))


def test_error_a_folder_that_others_can_write(cache):
    cache.parent.chmod(0o777)
    with pytest.raises(Unusable, match=r"mode 0777: others may have written.*BAYESPRUNE_CACHE"):
        trusted_library()


def test_error_a_library_of_mode_or_owner_of_others(cache, monkeypatch):
    cache.chmod(0o722)
    with pytest.raises(Unusable, match="0722"):
        trusted_library()
    cache.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(Unusable, match=f"belongs to user {os.getuid()}"):
        trusted_library()


def test_error_a_link_is_not_followed(cache, tmp_path):
    real = tmp_path / "real.so"
    cache.rename(real)
    cache.symlink_to(real)
    with pytest.raises(Unusable, match="a link"):
        trusted_library()


CRASHES = "void bayesprune_step(void) { *(volatile int *)0 = 1; }\n"
MISSING = "long bayesprune_block(void) { return 1024; }\n"


@pytest.mark.parametrize(("source", "told"), [(CRASHES, "it lacks a function"), (MISSING, "it lacks a function")])
def test_error_a_build_that_fails_its_test_is_named(tmp_path, monkeypatch, source, told):
    """A compiler that makes something else: the test, in a process of its own, says so, and nothing is kept."""
    (tmp_path / "other.c").write_text(source)
    fake = tmp_path / "cc"
    fake.write_text(
        f'#!/bin/sh\nwhile [ "$1" != "-o" ]; do shift; done\n{compiler()} -shared -fPIC -o "$2" {tmp_path}/other.c\n'
    )
    fake.chmod(0o700)
    monkeypatch.setenv("CC", str(fake))
    monkeypatch.setenv("BAYESPRUNE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(Unusable, match=told):
        trusted_library()
    assert not list((tmp_path / "cache" / "bayesprune").iterdir())


def test_error_a_library_that_kills_its_process_is_survived(tmp_path, monkeypatch):
    """All functions are there, and the step is a segmentation fault."""
    source = (
        "long bayesprune_job_size(void) { return 176; }\nlong bayesprune_block(void) { return 1024; }\n"
        "void bayesprune_step(void) { *(volatile int *)0 = 1; }\nvoid bayesprune_kinetic(void) {}\n"
        "void bayesprune_normal(void) {}\n"
    ).replace("176", str(native.JOB.itemsize))
    (tmp_path / "other.c").write_text(source)
    fake = tmp_path / "cc"
    fake.write_text(
        f'#!/bin/sh\nwhile [ "$1" != "-o" ]; do shift; done\n{compiler()} -shared -fPIC -o "$2" {tmp_path}/other.c\n'
    )
    fake.chmod(0o700)
    monkeypatch.setenv("CC", str(fake))
    monkeypatch.setenv("BAYESPRUNE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(Unusable, match="signal"):
        trusted_library()


def test_property_the_sampler_falls_back_and_the_reason_is_told(cache):
    """In a fresh process, as a process keeps the library that it has."""
    cache.parent.chmod(0o777)
    program = (
        "import torch, bayesprune as bp\nfrom bayesprune.samplers import native\n"
        "w = torch.nn.Parameter(torch.ones(9)); w.grad = torch.ones(9)\n"
        "bp.CVAdam([w], lr=0.1, num_data=1, seed=0).step()\nprint(native.available(), native.reason)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.startswith("False ") and "mode 0777" in told
