"""bayesprune shards: pack image folders into tar shards."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_shards(commands: Any) -> None:
    """Add `bayesprune shards`."""
    shards = commands.add_parser("shards", help="pack folders of images into tar shards")
    shards.add_argument("folder", metavar="DIR", help="folder that holds train/CLASS/*.jpg and val/CLASS/*.jpg")
    shards.add_argument("--out", required=True, help="folder to write: train/shard-000000.tar, …, val/…, classes.json")
    shards.add_argument("--size", type=int, default=5000, help="images in a shard (default: 5000)")
    shards.set_defaults(handler=shards_command)


def shards_command(arguments: argparse.Namespace) -> int:
    """Write the shards and print what was written."""
    from bayesprune.common.files import write_text
    from bayesprune.vision import open_images, write_shards
    from bayesprune.vision.shards import CLASSES

    data, out = open_images(arguments.folder), Path(arguments.out)
    for index in filter(None, (data.train, data.validation, data.test)):
        paths = write_shards(index, out / index.root.name, arguments.size)
        print(f"{out / index.root.name}: {len(index)} images in {len(paths)} shards")
    write_text(out / CLASSES, json.dumps(list(data.classes), ensure_ascii=False) + "\n")
    return 0
