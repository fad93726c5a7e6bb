"""Every refusal has a name, and a test that meets it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesprune.compaction import REASONS, CompactionError, compact
from compact_families import network, pruned_at_random, train
from sparsity.plain import forward_pruning

IMAGE = torch.zeros(2, 3, 8, 8)
SEEN = set()


class refused:
    """A block that must be refused for a named reason, with a mend in the message."""

    def __init__(self, reason: str, match: str) -> None:
        self.reason, self.inner = reason, pytest.raises(CompactionError, match=match)

    def __enter__(self) -> None:
        self.info = self.inner.__enter__()

    def __exit__(self, *what) -> bool:
        done = self.inner.__exit__(*what)
        assert self.info.value.reason == self.reason and str(self.info.value).startswith(self.reason)
        SEEN.add(self.reason)
        return done


class _Net(nn.Module):
    """A stem, a block and a head; `between` is called on the block's channels."""

    def __init__(self, between=lambda self, x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)
        self.between = between

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = self.between(self, x + self.conv(x))
        return self.head(x.mean((2, 3)))


def _dead_branch(model: _Net) -> _Net:
    with torch.no_grad():
        model.conv.weight.zero_()
        model.conv.bias.zero_()
        model.head.weight[:, 0] = 0
    return model


def test_error_not_copyable():
    model = _Net()
    model.cache = (model.stem.weight * 2,)
    with refused("not-copyable", "deepcopy"):
        compact(model, example_input=IMAGE)


def test_error_not_traceable():
    with refused("not-traceable", "without control flow"):
        compact(_Net(lambda self, x: x if x.sum() > 0 else -x), example_input=IMAGE)


def test_error_example_input():
    with refused("example-input", "does not run"):
        compact(_Net(), example_input=torch.zeros(2, 5, 8, 8))


def test_error_uninitialised():
    with refused("uninitialised", "run the lazy model once"):
        compact(nn.Sequential(nn.LazyLinear(3)), example_input=torch.zeros(2, 4))


def test_error_compiled_part():
    model = _Net()
    model.conv = torch.compile(model.conv)
    with refused("compiled-part", "conv was wrapped by torch.compile inside"):
        compact(model, example_input=IMAGE)


def test_error_not_finite():
    model = _Net()
    nn.init.constant_(model.head.bias, float("nan"))
    with refused("not-finite", "are not finite"):
        compact(model, example_input=IMAGE)


def test_error_masks_disagree():
    model = _Net()
    with torch.no_grad():
        model.conv.weight[1], model.conv.bias[1] = 0, 0
    with refused("masks-disagree", "1 of 4 channels are zero in one term"):
        compact(model, example_input=IMAGE, coupling="group")
    with torch.no_grad():
        model.stem.weight[1], model.stem.bias[1] = 0, 0
    assert compact(model, example_input=IMAGE, coupling="group").model.stem.out_channels == 3


def test_error_training_dependent_graph():
    model = _dead_branch(_Net(lambda self, x: F.dropout(x, 0.5, training=self.training)))
    with refused("training-dependent-graph", "nn.Dropout modules"):
        compact(model, example_input=IMAGE)
    kept = compact(model, example_input=IMAGE, dead_branches="keep")
    assert kept.kind == "modules" and kept.model.stem.out_channels == 3

    def viewed(size):
        model = _Net(lambda self, x: F.dropout(x, 0.5, training=self.training).view(2, size, 8, 8))
        with torch.no_grad():
            model.head.weight[:, 0] = 0
            model.conv.weight[:, 0] = 0
        return model

    with refused("training-dependent-graph", "nn.Dropout .* or -1 or x.shape"):
        compact(viewed(4), example_input=IMAGE)
    assert compact(viewed(-1), example_input=IMAGE).model.stem.out_channels == 3


def test_error_optimizer_mismatch():
    with refused("optimizer-mismatch", "not the model's"):
        compact(_Net(), None, torch.optim.SGD(_Net().parameters(), lr=0.1), IMAGE)


def test_error_optimizer_state():
    model, example = network("vgg", 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = pruned_at_random(model, example, "channel", 0.5, optimizer)
    train(model, optimizer, example, 1)
    optimizer.state[model.features[0].weight]["sketch"] = torch.zeros(7)
    with refused("optimizer-state", r"features.0.weight: sketch has shape \(7,\)"):
        compact(model, pruner, optimizer, example)


def test_error_pruner_mismatch():
    model = _Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = forward_pruning(model, optimizer, groups="input")
    with refused("pruner-mismatch", "another model"):
        compact(_Net(), pruner, None, IMAGE)
    with refused("pruner-mismatch", "another optimizer"):
        compact(model, pruner, torch.optim.SGD(model.parameters(), lr=0.1), IMAGE)


def test_error_pruner_groups():
    model = _Net()
    pruner = forward_pruning(
        model, torch.optim.SGD(model.parameters(), lr=0.1), groups="channel", example_input=IMAGE, exclude=["head"]
    )
    pruner_free = compact(model, pruner, None, IMAGE, coupling="indexed")
    assert pruner_free.kind == "modules"
    # The branch alone loses a channel that the stream keeps: one mask cannot say so.
    with torch.no_grad():
        model.conv.weight[1], model.conv.bias[1] = 0, 0
    for param in (model.conv.weight, model.conv.bias):
        param.requires_grad_(False)
    with refused("pruner-groups", "cut differently in 'conv"):
        compact(model, pruner, None, IMAGE, coupling="indexed")


def test_error_outputs_differ():
    # A size in Python that the trace turned into a constant of the example, and that the compact model computes anew.
    class Scaled(_Net):
        def forward(self, x):
            x = F.relu(self.stem(x))
            return self.head(x.mean((2, 3)) * self.stem.out_channels)

    model = Scaled()
    with torch.no_grad():
        model.head.weight[:, 0] = 0
    with refused("outputs-differ", "the outputs differ by"):
        compact(model, example_input=IMAGE)


def test_error_outputs_differ_where_the_compact_model_fails():
    class Checks(_Net):
        def forward(self, x):
            x = F.relu(self.stem(x))
            if self.stem.out_channels != 4:
                raise RuntimeError("four channels, please")
            return self.head(x.mean((2, 3)))

    model = Checks()
    with torch.no_grad():
        model.head.weight[:, 0] = 0
    with refused("outputs-differ", "four channels, please"):
        compact(model, example_input=IMAGE)


def test_error_training_differs():
    class Mixed(_Net):
        """In training, another path, which torch.fx does not see in evaluation."""

        def forward(self, x):
            x = F.relu(self.stem(x))
            return self.head((x * (self.stem.out_channels if self.training else 1)).mean((2, 3)))

    model = Mixed()
    with torch.no_grad():
        model.head.weight[:, 0] = 0
    model.head.weight.requires_grad_(False)  # its zeros stay
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with refused("training-differs", "after one training step"):
        compact(model, None, optimizer, IMAGE)
    assert compact(model, example_input=IMAGE).report.training == "evaluation only"


def test_error_gradients_that_are_no_numbers():
    """The root of zeros has the outputs of zeros, and a gradient of 0 · ∞; a largest difference of NaN passes no comparison."""

    class Rooted(_Net):
        def forward(self, x):
            x = F.relu(self.stem(x))
            if self.training and self.stem.out_channels < 4:
                x = x + (0 * x).sqrt()
            return self.head(x.mean((2, 3)))

    model = Rooted()
    with torch.no_grad():
        model.head.weight[:, 0] = 0
    model.head.weight.requires_grad_(False)
    with refused("training-differs", "differ by nan"):
        compact(model, None, torch.optim.SGD(model.parameters(), lr=0.1), IMAGE)


def test_error_no_outputs():
    class Silent(_Net):
        def forward(self, x):
            super().forward(x)

    with refused("no-outputs", "the model returns no tensor that could be compared"):
        compact(Silent(), example_input=IMAGE)


def test_error_gradient_mode():
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mid, self.head = nn.Conv2d(3, 4, 1), nn.Linear(256, 5), nn.Linear(5, 2)

        def forward(self, x):
            with torch.no_grad():
                h = self.stem(x)
            return self.head(torch.relu(self.mid(h.view(-1, 256))))

    torch.manual_seed(0)
    model = Frozen()
    with torch.no_grad():
        model.mid.weight[:, 192:] = 0
    model.mid.weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with refused("gradient-mode", "Conv2d runs without gradients"):
        compact(model, None, optimizer, IMAGE)
    folded = compact(model, example_input=IMAGE)
    assert folded.kind == "graph" and folded.model.stem.out_channels == 3


def test_error_sample_differs():
    model = _Net()
    with torch.no_grad():
        model.head.weight[:, 0] = 0
        model.conv.weight[:, 0] = 0
    result = compact(model, example_input=IMAGE)
    assert result.model.stem.out_channels == 3
    other = _Net()
    with refused("sample-differs", r"conv reads 1 channels .*\(and 1 more\); a sample from before .* leave it out"):
        result.convert(other.state_dict())
    with refused("sample-differs", "missing, unknown or of another shape"):
        result.convert({**model.state_dict(), "more": torch.zeros(1)})
    dropped = compact(_dead_branch(_Net()), example_input=IMAGE)
    with torch.no_grad():
        other.head.weight[:, 0] = 0
    with refused("sample-differs", "is not zero or constant"):
        dropped.convert(other.state_dict())


def test_error_settings_are_named():
    for settings, match in [
        ({"coupling": "all"}, "coupling='all' is unknown"),
        ({"constants": "drop"}, "constants='drop' is unknown"),
        ({"dead_branches": True}, "dead_branches=True is unknown"),
        ({"round_to": 0}, "round_to=0 must be at least 1"),
        ({"tolerance": 0.0}, "tolerance=0.0 must be positive"),
    ]:
        with pytest.raises(ValueError, match=match):
            compact(_Net(), example_input=IMAGE, **settings)
    with pytest.raises(ValueError, match="example_input is needed"):
        compact(_Net())


def test_every_reason_is_tested():
    if len(SEEN) > 1:  # the whole file ran, not this test alone
        assert set(REASONS) == SEEN
