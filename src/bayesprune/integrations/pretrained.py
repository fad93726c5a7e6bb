"""A compact transformers model in a folder that ``from_pretrained`` reads."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesprune.common.files import replacing_folder
from bayesprune.common.lazy import missing
from bayesprune.compaction import Compaction
from bayesprune.compaction.verify import flat
from bayesprune.graph.inputs import Inputs

TOLERANCE = 1e-5  # of float32 outputs, relative to the largest output where that exceeds 1
_HEADS = re.compile(r"(^|_)heads?$")
_NO_SIZE = re.compile(r"_token_id$|layers?$|vocab|position")


@dataclass(frozen=True)
class PretrainedFolder:
    """What `save_pretrained` wrote.

    Attributes:
        folder: the folder.
        changed: the settings of ``config.json`` that changed, with their values before and now.
        parameters: their number in the original, in the compact model, and in the folder.
        filled: names of the tensors that were filled up with zeros, since the configuration cannot express their sizes.

    Example:
        >>> PretrainedFolder(Path("small"), {"intermediate_size": (64, 32)}, (9000, 6000, 6100), ["pooler.weight"]).changed
        {'intermediate_size': (64, 32)}
    """

    folder: Path
    changed: dict[str, tuple[Any, int]]
    parameters: tuple[int, int, int]
    filled: list[str]

    def __str__(self) -> str:
        """The sizes in a few lines."""
        before, compact, now = self.parameters
        settings = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in self.changed.items())
        lines = [f"{self.folder}: {before:,} parameters -> {now:,} ({settings})"]
        if self.filled:
            lines.append(
                f"{now - compact:,} of them zeros in {len(self.filled)} tensors whose sizes the configuration cannot express: "
                + ", ".join(self.filled[:4])
                + (", ..." if len(self.filled) > 4 else "")
            )
        return "\n".join(lines)


def save_pretrained(
    small: Compaction, folder: str | Path, *, like: Any, example_input: Any, state: Mapping[str, Tensor] | None = None
) -> PretrainedFolder:
    """Write a compact model as a folder that ``AutoModel.from_pretrained`` reads, in its own class and without this library.

    ``config.json`` has one number for all layers: a width (``intermediate_size``) becomes the widest layer's, heads are fewer
    where the class reads ``head_dim`` (ViT, Llama and others; BERT does not). What the configuration cannot express is filled
    up with zeros, which change no output. The folder is read back and its outputs are compared before it takes its place.

    Args:
        small: what `compact` returned for the model.
        folder: a new folder; one that exists is replaced.
        like: the model before its compaction: its class and configuration are taken.
        example_input: an input of the model, as `compact` takes it.
        state: weights to write in place of the compact model's, such as ``small.convert(sample)``.

    Returns:
        What changed, and what had to be filled up.

    Raises:
        ImportError: transformers is missing.
        TypeError: ``like`` is no transformers model.
        ValueError: the configuration can express nothing of what was removed, or the outputs would differ.

    Example:
        >>> small = bp.compact(model, pruner, example_input=batch)  # doctest: +SKIP
        >>> print(save_pretrained(small, "small", like=model, example_input=batch))  # doctest: +SKIP
        small: 23,586 parameters -> 16,980 (intermediate_size 64 -> 46, num_attention_heads 4 -> 2)
        >>> transformers.AutoModelForImageClassification.from_pretrained("small")  # doctest: +SKIP
    """
    try:
        from transformers import PreTrainedModel
    except ModuleNotFoundError as error:
        raise missing(error, "save_pretrained") from error
    if not isinstance(like, PreTrainedModel):
        raise TypeError(f"like={type(like).__name__} is no transformers model; give the model that was compacted")
    own = small.model.state_dict()
    if state is not None:
        own = {name: state[name] for name in own}
    config, changed = _config(like, own)
    written = _built(type(like), config)
    if written is None or not changed:
        told = next((f"{n} {tuple(t.shape)} -> {tuple(own[n].shape)}" for n, t in like.state_dict().items() if n in own
                     and t.shape != own[n].shape), "nothing was removed")  # fmt: skip
        raise ValueError(
            f"like={type(like).__name__}: its configuration can express none of the smaller sizes ({told}); use bp.save, whose folder "
            "holds any compact model"
        )
    filled = {name: _filled(name, own, tensor) for name, tensor in written.state_dict().items()}
    example = Inputs.of(like, example_input)
    with replacing_folder(folder) as work:
        with torch.random.fork_rng(devices=[]):  # the class draws weights that are not used
            type(like)(config).save_pretrained(work, state_dict=dict(filled))
        again = type(like).from_pretrained(work)
        _check_outputs(small.model, own, again, example, type(like).__name__)
    sizes = [sum(p.numel() for p in net.parameters()) for net in (like, small.model, written)]
    return PretrainedFolder(
        Path(folder), changed, (sizes[0], sizes[1], sizes[2]),
        [name for name, tensor in filled.items() if tensor.shape != own[name].shape],
    )  # fmt: skip


def _config(like: Any, own: Mapping[str, Tensor]) -> tuple[Any, dict[str, tuple[Any, int]]]:
    """The configuration with every size that can be lowered, each found by what one unit more of it changes."""
    config, changed = copy.deepcopy(like.config), {}
    if getattr(config, "n_inner", 0) is None:
        config.n_inner = 4 * config.hidden_size  # what GPT-2 takes it for
    for name, value in list(config.to_dict().items()):
        if not isinstance(value, int) or isinstance(value, bool) or value < 2 or _NO_SIZE.search(name):
            continue
        base = copy.deepcopy(config)
        hidden, heads = getattr(base, "hidden_size", None), getattr(base, "num_attention_heads", value)
        if _HEADS.search(name) and hidden and not hidden % heads and getattr(base, "head_dim", None) is None:
            base.head_dim = hidden // heads
        needed = _needed(type(like), base, name, value, own)
        if needed is not None and needed < value:
            lowered = copy.deepcopy(base)
            setattr(lowered, name, needed)
            if _fits(_built(type(like), lowered), own):
                config, changed[name] = lowered, (value, needed)
    return config, changed


def _needed(kind: type, base: Any, name: str, value: int, own: Mapping[str, Tensor]) -> int | None:
    """The smallest value of a setting under which every tensor that depends on it is at least as large as ours."""
    more = copy.deepcopy(base)
    try:
        setattr(more, name, value + 1)
    except (AttributeError, TypeError, ValueError):
        return None
    now, grown = _built(kind, base), _built(kind, more)
    if now is None or grown is None:
        return None
    needed = 0
    for tensor, (here, there) in _paired(now.state_dict(), grown.state_dict()).items():
        for axis, (old, new) in enumerate(zip(here, there)):
            if old != new and tensor in own:
                unit = new - old
                if unit < 1 or unit * value != old:
                    return None  # not in proportion
                needed = max(needed, -(-own[tensor].shape[axis] // unit))
    return needed or None


def _paired(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.Size]]:
    return {n: (t.shape, other[n].shape) for n, t in one.items() if n in other and t.dim() == other[n].dim()}


def _built(kind: type, config: Any) -> nn.Module | None:
    """The class under a configuration, shapes alone; None where it refuses."""
    try:
        with torch.device("meta"):
            return kind(copy.deepcopy(config))
    except Exception:  # whatever a class says of a size that it does not take
        return None


def _fits(model: nn.Module | None, own: Mapping[str, Tensor]) -> bool:
    """Whether all our tensors fit into a model's."""
    state = {} if model is None else model.state_dict()
    return state.keys() == own.keys() and all(
        tensor.dim() == own[name].dim() and all(a >= b for a, b in zip(tensor.shape, own[name].shape))
        for name, tensor in state.items()
    )


def _filled(name: str, own: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """Our tensor with zeros behind it, up to a shape."""
    tensor = own[name]
    ends = [end for new, old in zip(reversed(like.shape), reversed(tensor.shape)) for end in (0, new - old)]
    return F.pad(tensor, ends).contiguous() if any(ends) else tensor.contiguous()


@torch.no_grad()
def _check_outputs(compact: nn.Module, own: Mapping[str, Tensor], again: nn.Module, example: Inputs, kind: str) -> None:
    """Compare the folder's model with the compact one, on the CPU."""
    one = copy.deepcopy(compact).cpu().eval()
    one.load_state_dict(dict(own))
    cpu = example.map(lambda tensor: tensor.cpu())
    for wanted, got in zip(flat(cpu.run(one)), flat(cpu.run(again.cpu().eval()))):
        apart = (
            float((wanted - got).abs().max() / wanted.abs().max().clamp(min=1))
            if wanted.shape == got.shape
            else float("inf")
        )
        if not apart <= TOLERANCE:
            raise ValueError(
                f"like={kind}: the model that the configuration describes differs by {apart:.1e} of the largest output; nothing was "
                "written. Use bp.save, whose folder holds any compact model"
            )
