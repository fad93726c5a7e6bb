"""The zoo's logic on toy networks: what is measured, merged, counted and explained. It needs none of the zoo's libraries."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from benchmarks import zoo, zoo_models, zoo_row
from benchmarks.zoo_models import Network, UNet, call, randomise_
from torch import nn

from bayesprune.sparsity import Exclusion


class Opaque(nn.Module):
    """A network whose path depends on its input's values: nothing can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.out = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x).mean((2, 3))
        return self.out(y if y.sum() > 0 else -y)


@pytest.fixture(autouse=True)
def one_thread():
    """As a row's own process has it: sums depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _network(make: type[nn.Module]) -> Network:
    return Network(make, zoo_models.images(16), 5)


def test_property_nothing_is_left_at_its_initial_constant_and_outputs_are_of_every_channel():
    model = randomise_(UNet(8), torch.randn(4, 3, 16, 16), 0)
    flat = [name for name, value in [*model.named_parameters(), *model.named_buffers()]
            if value.dim() and value.numel() > 1 and bool((value == value.flatten()[0]).all())]  # fmt: skip
    assert flat == [] and not model.training
    assert [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)] == [0.1] * 10


def test_property_a_network_is_halved_exactly_and_every_promise_has_its_cell():
    found = zoo_row.row(_network(lambda: UNet(16)), 0)
    assert (
        found["left"] <= zoo.PROMISE and found["groups"] == "channel" and found["zeros"] == pytest.approx(0.5, abs=0.05)
    )
    assert zoo.largest(found) <= zoo.EXACT and 0 < found["madds_left"] < 0.6
    assert found["saved"] == {"ok": True}
    assert set(found["seconds"]) == {"prune", "compact", "save", "onnx", "torch_pruning"}
    assert json.loads(json.dumps(found)) == found
    counts = zoo.verdicts({"U-Net": found})
    assert counts["at most 55% left"] == counts["saved and loaded bit for bit"] == counts["networks"] == 1


def test_property_a_network_that_cannot_be_traced_has_a_row_with_the_reason():
    found = zoo_row.row(_network(Opaque), 0)
    assert found["groups"] == "kernel" and found.get("left", 1.0) > zoo.PROMISE
    assert "no whole channels can be pruned" in found["warnings"][0]
    assert "no whole channels" in zoo.why(found)
    assert zoo.verdicts({"opaque": found})["more left or refused, with a reason"] == 1
    assert "no whole channels" in zoo.table({"opaque": found})


def test_equation_the_difference_is_relative_to_the_largest_output_and_sees_either_mode():
    one = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, affine=False), nn.Dropout(0.5)).eval()
    x = torch.randn(8, 3)
    two = copy.deepcopy(one)
    two[1].running_mean += 0.25  # shifts the evaluation alone
    wanted = 0.25 / (1 + 1e-5) ** 0.5 / float(one(x).detach().abs().max())
    assert zoo_row.difference(one, two, x, train=False) == pytest.approx(wanted, rel=1e-4)
    assert zoo_row.difference(one, two, x, train=True) == 0.0
    with torch.no_grad():
        two[0].weight[0].neg_()
    assert zoo_row.difference(one, two, x, train=True) > 0.1
    assert zoo_row.difference(one, nn.Linear(3, 4).eval(), x, train=False) == "outputs of other shapes"


def test_equation_what_stays_dense_is_summed_by_reason_with_the_weights_of_the_writers():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 6))
    found = zoo_row.kept_dense(
        model,
        [Exclusion("channels of 0, 2", 0, "pinned"), Exclusion("1.weight", 20, "no"), Exclusion("x", 0, "pinned")],
    )
    assert found == [
        {"reason": "pinned", "weights": 12 + 30, "layers": 2, "names": ["channels of 0, 2", "x"]},
        {"reason": "no", "weights": 20, "layers": 1, "names": ["1.weight"]},
    ]


def test_property_a_run_goes_on_where_it_stopped_and_a_row_done_again_keeps_its_place():
    rows = {"a": {"left": 0.5}, "b": {"failed": "x"}}
    assert zoo.outstanding(["a", "b", "c"], rows, []) == ["c"]
    assert zoo.outstanding(["a", "b", "c"], rows, ["b"]) == ["b", "c"]
    assert zoo.outstanding(["a", "b", "c"], rows, ["all"]) == ["a", "b", "c"]
    again = zoo.merged({"rows": rows, "settings": 1}, "a", {"left": 0.4})
    assert again == {"rows": {"a": {"left": 0.4}, "b": {"failed": "x"}}, "settings": 1} and list(again["rows"]) == [
        "a",
        "b",
    ]


def test_property_what_failed_counts_for_nothing_and_never_in_silence():
    rows = {"a": {"failed": "took longer than 8 minutes"}, "b": {"parameters": 10, "left": 0.9}}
    counts = zoo.verdicts(rows)
    assert counts["more left or refused, with a reason"] == counts["more left or refused, without a reason"] == 1
    assert all(
        counts[key] == 0 for key in ("at most 55% left", "ONNX", "Torch-Pruning runs", "differences within 1e-05")
    )


def test_error_a_process_that_dies_or_dawdles_leaves_a_row():
    assert "KeyError" in zoo.measure("no such network", 1.0, 0)["failed"]
    assert zoo.measure("U-Net", 1e-4, 0)["failed"] == "took longer than 0.0001 minutes"


def test_property_a_process_that_dies_half_way_leaves_what_it_had_found(monkeypatch):
    script = 'print(\'{"left": 0.5, "seconds": {"save": 1}}\'); raise MemoryError(\'full\')'
    run = subprocess.run
    monkeypatch.setattr(zoo.subprocess, "run", lambda command, **more: run([sys.executable, "-c", script], **more))
    found = zoo.measure("any", 1.0, 0)
    assert found["left"] == 0.5 and found["failed"] == "MemoryError: full, after save"
    assert zoo.verdicts({"any": found})["at most 55% left"] == 1


def test_property_the_zoo_names_what_was_promised_and_heavy_networks_come_last():
    found = zoo_models.zoo()
    assert len(found) >= 30
    heavy = [each.heavy for each in found.values()]
    assert heavy == sorted(heavy)
    for name in ("U-Net", "LSTM classifier", "nn.TransformerEncoder"):
        model = found[name].make().eval()
        assert call(model, found[name].example(2))[0].shape[:2] == (2, found[name].outputs)
