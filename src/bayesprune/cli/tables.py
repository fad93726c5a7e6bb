"""select and predict: the inputs that matter for a column of a table, and predictions from them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bayesprune.cli.parsing import add, add_settings


def add_commands(commands: Any) -> None:
    """Add the commands to a parser's subcommands."""
    select = add(
        commands, "select", "find the inputs that matter for a column of a table", _select,
        "bayesprune select houses.csv --target price --out found",
        "bayesprune select houses.csv --target price --out found --text postcode --drop id --fdr 0.1 --force",
    )  # fmt: skip
    select.add_argument("data", metavar="DATA", help="a .csv, .tsv, .parquet or .npz file")
    select.add_argument("--target", required=True, metavar="COLUMN", help="the column to predict (of .npz: y)")
    select.add_argument(
        "--task", default="auto", choices=("auto", "regression", "classification"),
        help="what the target is (default: auto, told from its values)",
    )  # fmt: skip
    select.add_argument(
        "--fdr", type=float, default=0.05, metavar="RATE", help="false-discovery rate of the selection (default: 0.05)"
    )
    select.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    select.add_argument("--force", action="store_true", help="replace the selection that the folder holds")
    select.add_argument(
        "--held-out", type=float, default=0.2, metavar="SHARE", help="share of the rows to judge by (default: 0.2)"
    )
    select.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the split and of the chains (default: 0)"
    )
    columns: dict[str, Any] = {"nargs": "+", "action": "extend", "default": [], "metavar": "COLUMN"}
    select.add_argument("--drop", **columns, help="columns to leave out")
    select.add_argument("--text", **columns, help="columns of codes: numbers that are names")
    select.add_argument("--keep", **columns, help="columns that are numbers although they look like identifiers")
    add_settings(select, "keywords of the estimator (SparseBNNRegressor, SparseBNNClassifier)")
    select.add_argument("--quiet", action="store_true", help="print nothing")

    predict = add(
        commands, "predict", "predict the rows of a table, or a folder of images", _predict,
        "bayesprune predict found new.csv --out predictions.csv",
        "bayesprune predict small photos --out predictions.csv",
    )  # fmt: skip
    predict.add_argument(
        "model", metavar="MODEL", help="folder that `bayesprune select` wrote, of images `bayesprune compact`"
    )
    predict.add_argument(
        "data", metavar="DATA", help="a .csv, .tsv, .parquet or .npz file, an image or a folder of images"
    )
    predict.add_argument("--out", metavar="FILE", help="CSV file to write (default: standard output)")


def _select(arguments: argparse.Namespace) -> int:
    from bayesprune.select import run_select

    run_select(
        arguments.data,
        arguments.target,
        arguments.out,
        task=arguments.task,
        fdr=arguments.fdr,
        held_out=arguments.held_out,
        seed=arguments.seed,
        drop=arguments.drop,
        text=arguments.text,
        keep=arguments.keep,
        force=arguments.force,
        settings=arguments.set,
        quiet=arguments.quiet,
    )
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    from bayesprune.vision.folders import SUFFIXES

    if Path(arguments.data).is_dir() or arguments.data.lower().endswith(SUFFIXES):
        from bayesprune.predict_images import predict_images

        predict_images(arguments.model, arguments.data, arguments.out)
    else:
        from bayesprune.predict_rows import run_predict

        run_predict(arguments.model, arguments.data, arguments.out)
    return 0
