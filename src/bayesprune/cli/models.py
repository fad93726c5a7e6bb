"""compact and profile: a run made physically small, and what that gains."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bayesprune.cli.parsing import add, add_own, own_parts


def add_commands(commands: Any) -> None:
    """Add the commands to a parser's subcommands."""
    compact = add(
        commands, "compact", "make a pruned run physically small, in a folder that loads anywhere", _compact,
        "bayesprune compact runs/a --out small --onnx",
        "bayesprune compact runs/a --out small --members none --round-to 8",
    )  # fmt: skip
    compact.add_argument("run", help="run folder of a finished run")
    compact.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    compact.add_argument("--onnx", action="store_true", help="also write model.onnx, checked in onnxruntime")
    compact.add_argument("--torch-export", action="store_true", help="also write model.pt2 (torch.export)")
    compact.add_argument("--round-to", type=int, default=1, metavar="N", help="keep a multiple of N channels")
    compact.add_argument(
        "--members", default="all", choices=("all", "final", "none"),
        help="which samples: all; final, those inside the final mask; none, the last iterate alone (default: all)",
    )  # fmt: skip
    compact.add_argument(
        "--coupling", default="intersection", choices=("group", "intersection", "indexed"),
        help="how residual streams are cut (default: intersection)",
    )  # fmt: skip
    compact.add_argument("--data-dir", help="folder of the data set, where the run does not tell what it needs")
    add_own(compact)
    compact.add_argument("--json", action="store_true", help="print JSON instead of a table")

    profile = add(
        commands, "profile", "size and speed of a compact model, dense beside compact", _profile,
        "bayesprune profile small",
        "bayesprune profile small --batch 1 8 --json",
        "bayesprune profile small --run runs/a && bayesprune report runs/a",
    )  # fmt: skip
    profile.add_argument("folder", metavar="DIR", help="folder that `bayesprune compact` wrote")
    profile.add_argument("--batch", nargs="+", type=int, default=[1, 64], help="batch sizes (default: 1 64)")
    profile.add_argument("--seconds", type=float, default=4.0, help="time for each batch size (default: 4)")
    profile.add_argument("--unstructured", action="store_true", help="also time layers with scattered zeros")
    profile.add_argument("--run", metavar="RUN", help="also write profile.json into this run, for `bayesprune report`")
    profile.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _compact(arguments: argparse.Namespace) -> int:
    from bayesprune.compact_run import compact_run

    result = compact_run(
        arguments.run, arguments.out, members=arguments.members, coupling=arguments.coupling,
        round_to=arguments.round_to, onnx=arguments.onnx, torch_export=arguments.torch_export,
        data_dir=arguments.data_dir, **own_parts(arguments.recipe),
    )  # fmt: skip
    if arguments.json:
        values = {"folder": str(result.folder), "members": result.members, "left_out": result.left_out}
        values |= {"parameters": result.parameters, "difference": result.difference, "exported": result.exported}
        print(json.dumps(values, indent=1))
    else:
        print(result)
    return 0


def _profile(arguments: argparse.Namespace) -> int:
    if min(arguments.batch) < 1:
        raise ValueError(f"--batch {min(arguments.batch)}: must be at least 1")
    if arguments.seconds <= 0:
        raise ValueError(f"--seconds {arguments.seconds}: must be above 0")
    from bayesprune.deploy import profile, unstructured_report

    result = profile(arguments.folder, batch_sizes=arguments.batch, seconds=arguments.seconds)
    zeros = unstructured_report(seconds=arguments.seconds) if arguments.unstructured else None
    if arguments.run:
        from bayesprune.common.files import write_json
        from bayesprune.train.folder import PROFILE

        write_json(Path(arguments.run) / PROFILE, result.as_dict())
    if arguments.json:
        print(json.dumps(result.as_dict() | ({"unstructured": zeros.as_dict()} if zeros else {}), indent=1))
    else:
        print(result)
        if zeros:
            print(zeros)
    return 0
