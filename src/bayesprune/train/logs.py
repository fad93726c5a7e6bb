"""What a person sees of a run: a progress bar, or a line an epoch; TensorBoard where asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bayesprune.train import folder as names


class Progress:
    """A bar with the time left on a terminal, a line an epoch elsewhere."""

    def __init__(self, total: int, quiet: bool) -> None:
        self.quiet, self.total = quiet, total
        self._bar: Any = None
        if not quiet and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, unit="step", dynamic_ncols=True)

    def update(self, step: int, history: list[dict[str, Any]]) -> None:
        """Move the bar to `step`."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            if history:
                self._bar.set_postfix_str(_describe(history[-1]), refresh=False)

    def epoch(self, row: dict[str, Any]) -> None:
        """Show a finished epoch."""
        if not self.quiet and self._bar is None:
            print(
                f"epoch {row['epoch']:>4}  step {row['step']:>7}/{self.total}  {_describe(row)}  {row['seconds']:.0f} s",
                flush=True,
            )

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()


def _describe(row: dict[str, Any]) -> str:
    parts = [f"loss {row['train_loss']:.3f}"]
    for name in ("accuracy", "mse"):
        for where, key in (("train", f"train_{name}"), (row["split"], name)):
            if (value := row.get(key)) is not None:
                parts.append(f"{where} {100 * value:.2f} %" if name == "accuracy" else f"{where} {name} {value:.4g}")
    if row["hard_sparsity"] is not None:
        parts.append(f"sparsity {100 * row['hard_sparsity']:.1f} %")
    return "  ".join(parts)


class TensorBoard:
    """TensorBoard scalars of each epoch, or nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError('tensorboard=true needs TensorBoard: pip install "bayesprune[train]"') from error
        self._writer = SummaryWriter(str(folder / names.BOARD))

    def write(self, row: dict[str, Any]) -> None:
        """Write the numbers of one epoch."""
        if self._writer is None:
            return
        for key, value in row.items():
            if isinstance(value, (int, float)) and key not in ("step", "epoch"):
                self._writer.add_scalar(key, value, row["step"])

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()
