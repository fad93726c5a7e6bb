"""What a saved model holds of a forward that looks at shapes, at its mode, or at arguments by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bayesprune.deploy import Ensemble, export_program, load, profile, save


class Auxiliary(nn.Module):
    """Another output in training, a check of the shape, arguments that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.aux, self.last = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, scale: float | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if x.dim() != 2 or x.shape[1] != 3:
            raise ValueError("x: expected (n, 3)")
        hidden = self.first(x).relu()
        if mask is not None:
            hidden = hidden * mask
        return (self.last(hidden), self.aux(hidden)) if self.training else self.last(hidden)


class Recurrent(nn.Module):
    def __init__(self, cell: nn.RNNBase) -> None:
        super().__init__()
        self.cell = cell
        self.out = nn.Linear(cell.hidden_size * (1 + cell.bidirectional), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x)[0][:, -1])


def test_roundtrip_of_evaluation_where_training_goes_another_way(tmp_path):
    model, x = Auxiliary(), torch.randn(2, 3)
    with pytest.warns(UserWarning, match="saved for evaluation only: forward takes another path in training"):
        again = load(save(model, tmp_path / "model", example_input=x))
    assert model.training and not again.training
    assert torch.equal(again(x), model.eval()(x))
    with pytest.raises(AssertionError, match="saved for evaluation only"):
        again.train()(x)
    with pytest.warns(UserWarning, match="saved for evaluation only"):  # and once more
        third = load(save(again.eval(), tmp_path / "third", example_input=x))
    assert torch.equal(third(x), again(x))


def test_roundtrip_of_arguments_by_name(tmp_path):
    torch.manual_seed(0)  # units that are not all off, which no mask would change
    model = Auxiliary().eval()
    example = {"mask": torch.tensor([[0.0, 1, 2, 3]]).repeat(2, 1), "x": torch.randn(2, 3)}
    with pytest.warns(UserWarning, match="saved for evaluation only"):
        again = load(save(model, tmp_path / "model", example_input=example))
    assert torch.equal(again(**example), model(**example))
    assert torch.equal(again(example["x"], example["mask"]), model(**example))
    assert not torch.equal(model(**example), model(example["x"]))
    assert export_program(model, tmp_path / "model.pt2", example_input=example) <= 1e-6
    assert profile(tmp_path / "model", seconds=0.01, batch_sizes=(1,)).compact.madds == 3 * 4 + 4 * 2


@pytest.mark.parametrize(
    "cell",
    [
        lambda: nn.LSTM(3, 4, batch_first=True),
        lambda: nn.GRU(3, 4, num_layers=2, bidirectional=True, batch_first=True),
        lambda: nn.RNN(3, 4, nonlinearity="relu", bias=False, batch_first=True),
        lambda: nn.LSTM(3, 4, num_layers=2, dropout=0.5, batch_first=True),
    ],
    ids=["lstm", "gru", "rnn", "dropout"],
)
def test_roundtrip_of_recurrent_layers(tmp_path, cell):
    model, x = Recurrent(cell()), torch.randn(2, 5, 3)
    again = load(save(model, tmp_path / "model", example_input=x))
    assert torch.equal(again.eval()(x), model.eval()(x))
    assert again.cell.bias == model.cell.bias and again.cell.dropout == model.cell.dropout
    again(x).sum().backward()
    assert again.cell.weight_hh_l0.grad is not None


def test_property_a_condition_on_a_shape_leaves_the_batch_free(tmp_path):
    class Padded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] % 4:
                x = nn.functional.pad(x, (0, 4 - x.shape[-1] % 4))
            return x.reshape(x.shape[0], -1, 4).sum(-1)

    model = Padded()
    again = load(save(model, tmp_path / "model", example_input=torch.randn(2, 6)))
    x = torch.randn(7, 6)
    assert torch.equal(again(x), model(x))


def test_roundtrip_of_tensors_made_from_sizes_types_and_devices(tmp_path):
    class Makes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            ones = torch.ones(x.shape[0], 1, dtype=x.dtype, device=x.device)
            place = torch.arange(x.shape[1], device=x.device) + torch.as_tensor(1.0, device=x.device)
            scale = torch.tensor([x.shape[0], x.shape[1]]).prod() * torch.scalar_tensor(2.0, device=x.device)
            return (x * ones + place) * scale

    again = load(save(Makes(), tmp_path / "model", example_input=torch.randn(2, 6)))
    x = torch.randn(5, 6)
    assert torch.equal(again(x), (x + torch.arange(1.0, 7.0)) * 60)


def test_roundtrip_of_what_forward_makes_and_assigns(tmp_path):
    class Assigns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleDict({"block1-0": nn.Linear(3, 4)})

        def forward(self, x: Tensor) -> Tensor:
            hidden = nn.ReLU()(self.blocks["block1-0"](x))
            shifted = torch.zeros_like(hidden)
            shifted[:, 1:] = hidden[:, :-1]
            return hidden + shifted

    model, x = Assigns(), torch.randn(5, 3)
    again = load(save(model, tmp_path / "model", example_input=x[:2]))
    assert torch.equal(again(x), model(x)) and bool((again(x) != 0).any())


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_roundtrip_of_a_recurrent_layer_that_is_the_whole_model(tmp_path, cell):
    nets, x = [cell(3, 4, num_layers=2, batch_first=True).eval() for _ in range(2)], torch.randn(2, 5, 3)
    again = load(save(nets[0], tmp_path / "model", example_input=x))
    assert torch.equal(again(x)[0], nets[0](x)[0])
    for strategy in ("auto", "loop"):
        ensemble = Ensemble(nets[0], [net.state_dict() for net in nets], strategy=strategy)
        loaded = load(save(ensemble, tmp_path / strategy, example_input=x))
        for made in (ensemble, loaded):
            assert torch.allclose(made(x)[0], torch.stack([net(x)[0] for net in nets]), atol=1e-6)


def test_roundtrip_of_an_attention_layer_that_is_the_whole_model(tmp_path):
    model, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(2, 5, 8)
    again = load(save(model, tmp_path / "model", example_input=(x, x, x)))
    assert torch.equal(again(x, x, x)[0], model(x, x, x)[0])
