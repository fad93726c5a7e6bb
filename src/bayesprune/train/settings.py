"""Setting a run's configuration by key, and writing and reading it as JSON."""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from bayesprune.common.artefact import reading
from bayesprune.train.config import SECTIONS, RunConfig
from bayesprune.train.registry import method
from bayesprune.train.values import convert, nearest

VERSION = 2
"""Of the JSON. Version 1, which names none, wrote 0 for what was not set."""
_ZERO_WAS_UNSET = (
    "train_size", "width", "stem_stride", "hard_threshold", "every", "drop_fraction", "threads", "trace_every",
    "evaluate_every",
)  # fmt: skip


_hints = functools.cache(typing.get_type_hints)


def keys(method_name: str | None = None) -> dict[str, str]:
    """Return every settable key and the section that holds it ("" for `seed`), with a method's own ones where one is named."""
    found = {"seed": ""}
    for section, kind in section_types(method_name).items():
        for item in fields(kind):
            found[item.name] = section
    return found


def section_types(method_name: str | None = None) -> dict[str, Any]:
    """Return the dataclass of each section, with that of a method's own keys ("options") where it has some."""
    hints = _hints(RunConfig)
    found = {section: hints[section] for section in SECTIONS}
    options = None if method_name is None else method(method_name).options
    return found if options is None else {"options": options, **found}


def get(config: RunConfig, key: str) -> Any:
    """Return the value of a key, `lr` or `sampler.lr`."""
    section, name = locate(key, config.sampler.method)
    return getattr(getattr(config, section) if section else config, name)


def override(config: RunConfig, settings: Iterable[str] | Mapping[str, Any]) -> RunConfig:
    """Return `config` with keys set.

    Args:
        config: A run's configuration.
        settings: "key=value" strings, or a mapping; a key may carry its section ("sampler.lr"). "key=none" is None, not
            set, for the keys that may be so.

    Returns:
        A new configuration, checked.

    Raises:
        ValueError: An unknown key or a bad value; the message names the nearest valid one.

    Example:
        >>> override(RunConfig(), ["lr=0.5", "schedule.epochs=3"]).sampler.lr
        0.5
    """
    settings = as_settings(settings)
    chosen = [settings[key] for key in ("sampler.method", "method") if key in settings]
    name_of_method = str(chosen[0]) if chosen else config.sampler.method
    kinds = section_types(name_of_method)
    changes: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, name = locate(key, name_of_method)
        holder = kinds[section] if section else RunConfig
        changes.setdefault(section, {})[name] = convert(name, value, _hints(holder)[name])
    top, own = changes.pop("", {}), changes.pop("options", None)
    sections = {section: replace(getattr(config, section), **values) for section, values in changes.items()}
    if own is not None:
        kind = kinds["options"]
        top["options"] = replace(config.options if isinstance(config.options, kind) else kind(), **own)
    return replace(config, **top, **sections)


def as_settings(settings: Iterable[str] | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return "key=value" strings as a mapping; one as it is."""
    if isinstance(settings, Mapping):
        return settings
    pairs = []
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise ValueError(f"--set {setting!r} has no '='; write key=value, for example lr=0.5.")
        pairs.append({key.strip(): value.strip()})
    return merged(*pairs)


def merged(*settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in one mapping, of each key the last, however it is spelled ("lr" or "sampler.lr")."""
    found: dict[str, Any] = {}
    for each in settings:
        for key, value in each.items():
            for same in [known for known in found if known.rpartition(".")[2] == key.rpartition(".")[2]]:
                del found[same]
            found[key] = value
    return found


def as_dict(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as nested dicts, ready for JSON."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    plain["pruning"]["keep_ends"] = bool(config.pruning.keep_ends)  # where it is not set, the ends of named networks go
    if plain["options"] is None:
        del plain["options"]
    return {"version": VERSION, "method": config.sampler.method, **plain}


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that `as_dict` wrote, in this version or in the first, whose 0 for "not set" becomes None."""
    version = values.get("version", 1)
    if version not in (1, VERSION):
        raise ValueError(f"version={version!r} of the configuration is not known; read it with a newer bayesprune.")
    unknown = sorted(set(values) - {"version", "recipe", "method", "seed", "options", "trial", *SECTIONS})
    if unknown:
        raise ValueError(f"unknown section {unknown[0]!r}: {nearest(unknown[0], SECTIONS)}")
    config = RunConfig(recipe=str(values.get("recipe", "custom")))
    flat: dict[str, Any] = {"seed": values.get("seed", 0)}
    own = values.get("network", {}).get("network") == "own"
    for section in (*SECTIONS, "options"):
        for name, value in values.get(section, {}).items():
            unset = version == 1 and name in _ZERO_WAS_UNSET and value == 0
            unset |= name == "keep_ends" and value is False and not own  # the same there
            flat[f"{section}.{name}"] = None if unset else value
    return override(config, flat)


def read_config(run: Path) -> RunConfig:
    """Return the configuration in a run folder."""
    from bayesprune.train.folder import CONFIG, read_json  # needs torch, which recipes are listed without

    path = run / CONFIG
    values = read_json(path)
    with reading(path, "a run's configuration", "restore it from a copy, or train again"):
        return from_dict(values)


def locate(key: str, method_name: str | None = None) -> tuple[str, str]:
    """Return (section, name) of a key, a method's own ones among them where one is named."""
    known = keys(method_name)
    section, _, name = key.rpartition(".")
    if name in known and section in ("", known[name]):
        return known[name], name
    spelled = [f"{known[n]}.{n}" for n in known] if section else list(known)
    raise ValueError(f"unknown key {key!r}: {nearest(key, spelled)}")
