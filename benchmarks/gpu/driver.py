"""Cells of Tables 1 and 2 on a machine with one GPU: several small runs at once on the card, for a given time.

    python -m benchmarks.gpu.driver table1 --data DATA --store WORK --out OUT --minutes 9 [--jobs 3] [--only PATTERN …] [--seeds 1]

Unpacks the data into WORK once (the official files, their archive, or packed mosaics, which may come in parts: --gather),
trains until the time is up, and leaves the rows in OUT/table1.jsonl. The same command again goes on from the
checkpoints in WORK/runs. `python -m paper table1 --merge OUT/table1.jsonl` takes the rows in elsewhere.

`python -m benchmarks.gpu.driver step [--out OUT]` times the optimizers' steps instead: OUT/optimizer_step_cuda.json.

--tiny tries a command anywhere in seconds: random images, a narrow ResNet-20 in place of the network, 2 epochs; it writes
rows that stand apart from the table's.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks import optimizer_step
from benchmarks.gpu.data import tiny, unpacked
from paper.cells import run_cells
from paper.image_tables import paper_table_markdown
from paper.published import table_cells

DATASETS = {"table1": "cifar10", "table2": "cifar100"}
FAST = ("precision=bf16-mixed", "compile=true", "channels_last=true", "evaluate_every=10", "checkpoint_minutes=2")
TINY = (
    "network=resnet20", "width=8", "epochs=2", "batch_size=16", "cycles=1", "samples_per_cycle=2", "sample_every=0.2",
    "warmup_epochs=0", "threads=1",
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=[*sorted(DATASETS), "step"])
    parser.add_argument("--data", type=Path, help="folder with the data set, packed or not")
    parser.add_argument(
        "--store", type=Path, default=Path(tempfile.gettempdir()) / "bayesprune-gpu", help="work folder"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--jobs", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--gather", action="store_true", help="only take in what data there is")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args(argv)
    if arguments.table == "step":
        kind = arguments.device.partition(":")[0]
        result = str(arguments.out / f"optimizer_step_{kind}.json")
        rounds = ["--rounds", "2" if arguments.tiny else "100"]
        return optimizer_step.main(["--device", arguments.device, "--json", result, *rounds])
    dataset = DATASETS[arguments.table]
    if arguments.tiny:
        data = tiny(dataset, arguments.store / "tiny")
        settings = [*TINY, *arguments.set]
    else:
        if arguments.data is None:
            parser.error("--data is needed: the folder with the data set")
        try:
            data = unpacked(dataset, arguments.data, arguments.store / "data")
        except FileNotFoundError as error:
            if not arguments.gather:
                raise
            print(error)
            return 0
        settings = [*FAST, *arguments.set]
    if arguments.gather:
        print(f"the data lies in {data}")
        return 0
    cells = table_cells(arguments.table, arguments.seeds, [*settings, f"device={arguments.device}"], arguments.only)
    result = run_cells(
        cells, arguments.out / f"{arguments.table}.jsonl", runs=arguments.store / "runs", data_dir=data,
        budget_minutes=arguments.minutes, jobs=arguments.jobs,
    )  # fmt: skip
    print(paper_table_markdown(arguments.table, result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
