"""The CPU twins: a recipe for every method of Table 1, the order of their cells, the table."""

from __future__ import annotations

import pytest
from benchmarks import cpu_twins

from bayesprune.train import recipe
from bayesprune.train.build import build_data, build_network, build_optimizer, build_pruner
from bayesprune.train.recipes import names
from paper.tests.rows import row


def test_property_every_twin_is_the_same_network_data_and_epochs():
    twins = [recipe(name) for name in cpu_twins.names()]
    assert len(twins) == len({twin.recipe for twin in twins}) == 27
    assert len({(twin.data, twin.network, twin.schedule.epochs) for twin in twins}) == 1
    assert {name.removeprefix("twin-") for name in names() if name.startswith("twin-")} >= {
        *cpu_twins.DENSE, *cpu_twins.WEIGHTS, *cpu_twins.CHANNELS,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["channel-gmp-70", "dfp-channel-70", "dpf-channel-70", "dfp-kernel-90", "dpf-90"])
def test_property_pruned_twins_reach_their_target(name):
    config = recipe(
        f"twin-{name}", ["dataset=digits", "network=digits_resnet", "stem_stride=none", "train_size=64", "every=1"]
    )
    data = build_data(config)
    model = build_network(config, data)
    optimizer = build_optimizer(config, model, 64)
    images = data.test_images[:8].float() / 16
    pruner = build_pruner(config, model, optimizer, 20, images[:1])
    for _ in range(20):
        optimizer.zero_grad()
        model(images).logsumexp(1).mean().backward()
        optimizer.step()
    pruner.finish_()
    wanted = config.pruning.target_sparsity
    assert pruner.hard_sparsity == pytest.approx(wanted, abs=0.04 if "channel" in name else 0.01)


def test_property_the_table_shows_cells_of_the_full_size_only():
    rows = [row("twin-rigl-90", seed, accuracy=0.6) for seed in range(2)]
    rows += [row("twin-sgd", changes=["epochs=1"])]
    lines = cpu_twins.table(
        {"rows": [each | {"environment": {"cpu": "x", "torch": "1", "commit": "c"}} for each in rows]}
    )
    assert [line for line in lines.splitlines() if line.startswith("| RigL")] == [
        "| RigL | – | – | – | – | – | – | – | – | 0 |",
        "| RigL | 60.00 ± 0.00 | 61.00 ± 0.00 | 0.300 ± 0.000 | 0.010 ± 0.000 | 80.0 % | 30.0 % | 6 | 9 | 2 |",
    ]
    assert "| SGD (Nesterov) | – |" in lines
