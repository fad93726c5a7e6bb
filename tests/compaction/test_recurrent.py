"""Hidden units of recurrent layers, and the columns of embeddings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bayesprune.compaction import compact
from bayesprune.deploy import load, save
from bayesprune.graph.layers import gates

DEAD = torch.tensor([1, 4, 5])
CELLS = {
    "lstm": (nn.LSTM, {}),
    "stacked lstm": (nn.LSTM, {"num_layers": 2}),
    "both ways": (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    "gru without bias": (nn.GRU, {"bias": False}),
    "rnn": (nn.RNN, {"nonlinearity": "relu"}),
}


class Tagger(nn.Module):
    """Words in, classes out: from all steps, or from the last state."""

    def __init__(self, kind: type[nn.RNNBase], last: bool, **arguments: object) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 6)
        self.cell = kind(6, 8, batch_first=True, **arguments)
        self.last = last
        self.out = nn.Linear(8 if last else 8 * (1 + self.cell.bidirectional), 3)

    def forward(self, x: Tensor) -> Tensor:
        steps, state = self.cell(self.words(x))
        state = state[0] if isinstance(state, tuple) else state
        return self.out(state[-1] if self.last else steps)


def tagger(name: str, last: bool) -> Tagger:
    kind, arguments = CELLS[name]
    torch.manual_seed(0)
    return Tagger(kind, last, **arguments)


@torch.no_grad()
def silence_(cell: nn.RNNBase, only_candidate: bool = False) -> None:
    """Set the rows of the dead units to zero: in all gates, or in that of the candidate alone."""
    for param in cell.parameters():
        rows = param.view(gates(cell), 8, -1)
        place = 2 if gates(cell) > 1 else 0
        (rows[place : place + 1] if only_candidate else rows)[:, DEAD] = 0


@pytest.mark.parametrize("last", [False, True], ids=["all steps", "last state"])
@pytest.mark.parametrize("name", list(CELLS))
def test_property_silent_units_go_and_the_outputs_stay(name, last, tmp_path):
    model, x = tagger(name, last), torch.randint(0, 10, (3, 5))
    silence_(model.cell, only_candidate=True)
    small = compact(model, example_input=x)
    assert (small.kind, small.model.cell.hidden_size, small.model.out.in_features) == (
        "modules",
        5,
        model.out.in_features * 5 // 8,
    )
    other = torch.randint(0, 10, (4, 9))  # another length
    assert torch.allclose(small.model(other), model(other), atol=1e-6)
    again = load(save(small.model, tmp_path / "model", example_input=x))
    assert torch.equal(again(x), small.model(x))


def test_property_units_that_nobody_reads_go_with_what_feeds_on_them():
    model, x = tagger("lstm", False), torch.randint(0, 10, (3, 5))
    with torch.no_grad():
        model.out.weight[:, DEAD] = 0
        live = [unit for unit in range(8) if unit not in DEAD.tolist()]
        for gate in range(4):  # the others do not look at them; they look at each other
            model.cell.weight_hh_l0.view(4, 8, 8)[gate][live][:, DEAD] = 0
            for unit in live:
                model.cell.weight_hh_l0[gate * 8 + unit, DEAD] = 0
    small = compact(model, example_input=x)
    assert small.model.cell.hidden_size == 5
    assert torch.allclose(small.model(x), model(x), atol=1e-6)


def test_property_a_unit_with_a_bias_stays():
    model, x = tagger("lstm", False), torch.randint(0, 10, (3, 5))
    silence_(model.cell)
    with torch.no_grad():
        model.cell.bias_ih_l0[2 * 8 + int(DEAD[0])] = 0.1
    assert compact(model, example_input=x).model.cell.hidden_size == 6


def test_property_a_given_state_keeps_all_units_with_a_reason():
    class Given(Tagger):
        def forward(self, x: Tensor) -> Tensor:
            start = torch.ones(1, x.shape[0], 8)
            return self.out(self.cell(self.words(x), (start, start))[0])

    model, x = Given(nn.LSTM, False), torch.randint(0, 10, (3, 5))
    silence_(model.cell)
    with pytest.warns(UserWarning, match="recurrent layer cell .a hidden state is given."):
        small = compact(model, example_input=x)
    assert small.model.cell.hidden_size == 8


def test_property_columns_of_an_embedding_go_with_their_readers():
    model = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 2))
    with torch.no_grad():
        model[1].weight[:, 2] = 0
        model[0].weight[:, 3] = 0
    x = torch.randint(0, 10, (3, 4))
    small = compact(model, example_input=x)
    assert (small.model[0].embedding_dim, small.model[0].weight.shape, small.model[1].in_features) == (4, (10, 4), 4)
    assert torch.allclose(small.model(x), model(x), atol=1e-6)
