"""Forward freezing: what is frozen stays and is shared, the rest trains; the rows and their table."""

from __future__ import annotations

import torch
from benchmarks import freezing
from benchmarks.gpu.data import tiny

from bayesprune import vision
from bayesprune.train.evaluation import load_trained

TINY = ["batch_size=16", "width=4"]


def test_property_frozen_groups_stay_and_the_others_move():
    state = vision.build("whitened94", num_classes=10, width=4).state_dict()
    model = freezing.network(4, state, frozen=1).train()
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    for _ in range(2):
        model(torch.randn(8, 3, 32, 32)).logsumexp(1).mean().backward()
        optimizer.step()
    after = model.state_dict()
    still = {name for name, value in state.items() if torch.equal(value, after[freezing_name(name, after)])}
    assert {name for name in state if name.startswith(("whiten", "groups.0"))} <= still
    assert not any(name.startswith("groups.2.convolutions") for name in still)


def freezing_name(name, after):
    """The name of a tensor of the plain network in one with a frozen group, which stands one level deeper."""
    return name if name in after else name.replace("groups.0.", "groups.0.0.")


def test_property_members_share_what_is_frozen(tmp_path, monkeypatch):
    monkeypatch.setattr(freezing, "FIRST", 3)
    monkeypatch.setattr(freezing, "SECOND", 4)
    monkeypatch.setattr(freezing, "MEMBERS", 2)
    monkeypatch.setattr(freezing, "FROZEN", {"nothing": 0, "two groups": 2})
    monkeypatch.setattr(freezing, "times", lambda model, members: {"faster": 1.0})
    data = str(tiny("cifar10", tmp_path / "data"))
    rows = freezing.rows_of(0, TINY, tmp_path / "work", data)
    assert [row["what"] for row in rows] == ["first cycle", *["one cycle", "a cycle a member"] * 2]
    assert min(rows[0]["moved"].values()) > 0 and {"groups.0", "groups.1", "groups.2"} < set(rows[0]["moved"])
    kept, _, _, _ = load_trained(tmp_path / "work" / "first-0", data)
    wanted = {name: value for name, value in kept.state_dict().items() if name.startswith("groups.1")}
    for cycle in range(2):
        out = tmp_path / "work" / f"a-cycle-a-member-two-groups-0-{cycle}"
        network = freezing.network(4, kept.state_dict(), frozen=2)
        _, members, _, _ = load_trained(out, data, model=network, data=vision.load_cifar("cifar10", tmp_path / "data"))
        (member,) = list(members)
        for name, value in wanted.items():
            assert torch.equal(member[name.replace("groups.1.", "groups.1.0.")], value)
        assert not torch.equal(member["groups.2.convolutions.0.weight"], kept.groups[2].convolutions[0].weight)
    shares = freezing.step_shares(0, TINY, tmp_path / "work", data, rounds=3)
    assert shares["nothing"] == 1 and set(shares) == set(freezing.FROZEN) and min(shares.values()) > 0
    text = freezing.table({"rows": rows, "steps": shares})
    assert "| one cycle | two groups | 1 |" in text and "100%" in text and "groups.0 " in text
