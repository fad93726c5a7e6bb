"""What a file must hold, by its SHA-256: seals of JSON, and the list of a folder's files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bayesprune.common.artefact import REWRITE, ArtefactError, MissingArtefactError, reading
from bayesprune.common.bounded import read_json
from bayesprune.common.files import plain_name, write_text

SEAL, MANIFEST = "sha256", "manifest.json"
_FORMAT = "bayesprune-manifest"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with the SHA-256 of its canonical JSON under "sha256", which `unsealed` checks."""
    return {**content, SEAL: _digest_of(content)}


def unsealed(path: str | os.PathLike[str], content: Mapping[str, Any], *, needed: bool = True) -> dict[str, Any]:
    """The content of a sealed object without its seal."""
    rest = {key: value for key, value in content.items() if key != SEAL}
    with reading(path, mend=REWRITE):  # what JSON's standard cannot hold has no digest
        if needed != (SEAL in content) or (needed and _digest_of(rest) != content[SEAL]):
            raise ArtefactError(path, "its content is not what was written (the SHA-256 differs)", mend=REWRITE)
    return rest


def _digest_of(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: Path, names: Iterable[str]) -> None:
    """List files of a folder, those of the names that are there, with their sizes and SHA-256 in manifest.json."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, SEAL: file_digest(folder / name)}
        for name in names
        if (folder / name).is_file()
    }
    content = sealed({"format": _FORMAT, "version": 1, "files": files})
    write_text(folder / MANIFEST, json.dumps(content, indent=1) + "\n")


def check_manifest(folder: Path, names: Iterable[str] | None = None) -> None:
    """Refuse files that are not those which manifest.json lists; a folder without one is not checked."""
    path = folder / MANIFEST
    if not path.exists():
        return
    content = unsealed(path, read_json(path))
    files = content.get("files")
    if content.get("format") != _FORMAT or content.get("version") != 1 or not isinstance(files, dict):
        raise ArtefactError(path, f"is {content.get('format')!r}, version {content.get('version')!r}", _FORMAT + " 1")
    wanted = files if names is None else [name for name in names if name in files]
    for name in wanted:
        listed = files[name]
        if not plain_name(name) or not isinstance(listed, dict) or {"bytes", SEAL} - listed.keys():
            raise ArtefactError(path, f"lists {name!r}: {listed!r:.80}", "names in its own folder, sizes and digests")
        file = folder / name
        if not file.is_file():
            raise MissingArtefactError(file, f"is missing: {MANIFEST} lists it", mend="restore it from a copy")
        if file.stat().st_size != listed["bytes"] or file_digest(file) != listed[SEAL]:
            raise ArtefactError(file, f"is not the file that {MANIFEST} lists (the SHA-256 differs)", mend=REWRITE)
