from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from bayesprune.vision import Augmentation, BatchLoader
from bayesprune.vision.augment import draw, pad_images


def make(n=23, batch_size=5, channels=3, shuffle=True, augmentation=Augmentation(2), **kwargs):  # noqa: B008
    generator = torch.Generator().manual_seed(9)
    images = torch.randint(0, 256, (n, channels, 8, 8), dtype=torch.uint8, generator=generator)
    return BatchLoader(
        images, torch.arange(n), batch_size=batch_size, shuffle=shuffle, augmentation=augmentation, **kwargs
    )


def take(loader, count):
    """The next `count` batches, over the epochs' ends."""
    batches = []
    while len(batches) < count:
        for batch in loader:
            batches.append(batch)
            if len(batches) == count:
                break
    return batches


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(left, right)
    )


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mode", ["reflect", "zero"])
def test_parity_epoch_equals_a_loop_over_images(channels_last, mode):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    generator = torch.Generator().manual_seed(9)
    images = torch.randint(0, 256, (23, 3, 8, 8), dtype=torch.uint8, generator=generator)
    augmentation = Augmentation(2, mode)
    loader = BatchLoader(
        images,
        torch.arange(23),
        batch_size=5,
        mean=mean,
        std=std,
        shuffle=True,
        augmentation=augmentation,
        seed=4,
        channels_last=channels_last,
    )
    # The same draws, in the loader's order: the permutation of an epoch, then its crops and mirrors.
    random = torch.Generator().manual_seed(4)
    padded = pad_images(images, augmentation)
    for _epoch in range(2):
        order = torch.randperm(23, generator=random)
        draws = draw(augmentation, 23, random)
        place = 0
        for batch, labels in loader:
            for pixels, label in zip(batch, labels):
                top, left, mirrored = draws[:, place].tolist()
                assert label == order[place]
                image = padded[label, :, top : top + 8, left : left + 8].double() / 255
                image = image.flip(-1) if mirrored else image
                wanted = (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
                torch.testing.assert_close(pixels, wanted.float(), rtol=1e-5, atol=2e-6)
                place += 1
            layout = torch.channels_last if channels_last else torch.contiguous_format
            assert batch.is_contiguous(memory_format=layout) and batch.dtype == torch.float32
        assert place == 23


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 30),
    batch_size=st.integers(1, 12),
    before=st.integers(0, 15),
    shuffle=st.booleans(),
    augment=st.booleans(),
    drop_last=st.booleans(),
)
def test_roundtrip_resume_at_any_batch(n, batch_size, before, shuffle, augment, drop_last):
    settings_ = {
        "n": n,
        "batch_size": min(batch_size, n),
        "shuffle": shuffle,
        "augmentation": Augmentation(2) if augment else None,
        "drop_last": drop_last,
    }
    first = make(seed=3, **settings_)
    before = before if shuffle else before % len(first)
    # One loop that runs on, as in training; breaking off and looping again must not matter to a shuffling loader.
    batches = []
    state = first.state_dict()
    while len(batches) < before + 6:
        for batch in first:
            batches.append(batch)
            if len(batches) == before:
                state = first.state_dict()
    second = make(seed=77, **settings_)
    take(second, 2)
    second.load_state_dict(state)
    assert second.epoch * len(second) + second.batch == before
    resumed = []
    while len(resumed) < 6:
        resumed.extend(second)
    assert same(resumed[:6], batches[before : before + 6])


def test_roundtrip_state_survives_safetensors_and_json():
    loader = make()
    take(loader, 7)
    state = loader.state_dict()
    tensors = load(save({"generator": state.pop("generator")}))
    numbers = json.loads(json.dumps(state))
    wanted = take(loader, 5)
    other = make(seed=1)
    other.load_state_dict({**numbers, **tensors})
    assert same(take(other, 5), wanted)


def test_property_saved_state_does_not_move_with_the_loader():
    loader = make()
    state = loader.state_dict()
    copy = state["generator"].clone()
    take(loader, 12)
    assert torch.equal(state["generator"], copy) and state["epoch"] == 0


@pytest.mark.parametrize(("drop_last", "seen"), [(False, 23), (True, 20)])
def test_property_an_epoch_holds_every_image_once(drop_last, seen):
    loader = make(drop_last=drop_last)
    orders = [torch.cat([labels for _, labels in loader]) for _ in range(3)]
    assert len(loader) == -(-seen // 5)
    for order in orders:
        assert len(order) == seen and len(order.unique()) == seen
    assert not torch.equal(orders[0], orders[1])
    assert loader.epoch == 3 and loader.batch == 0


def test_property_loader_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(make(), 8)
    assert torch.equal(torch.get_rng_state(), before)


def test_property_seed_decides_the_batches():
    assert same(take(make(seed=2), 6), take(make(seed=2), 6))
    assert not same(take(make(seed=2), 6), take(make(seed=3), 6))


def test_property_broken_loop_goes_on_when_shuffling_and_starts_anew_when_not():
    shuffled = make()
    first = next(iter(shuffled))[1]
    rest = torch.cat([labels for _, labels in shuffled])
    assert len(rest) == 18 and not set(first.tolist()) & set(rest.tolist())
    plain = make(shuffle=False, augmentation=None)
    for _ in range(2):
        assert next(iter(plain))[1].tolist() == [0, 1, 2, 3, 4]
    assert torch.cat([labels for _, labels in plain]).tolist() == list(range(23))


def test_property_changing_a_batch_does_not_change_the_images():
    loader = make(shuffle=False, augmentation=None, n=4, batch_size=4, scale=1.0)
    images = next(iter(loader))[0]
    copy = images.clone()
    images.zero_()
    assert torch.equal(next(iter(loader))[0], copy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_limit_float_images_without_constants_come_back_as_they_are(dtype):
    images = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    (batch, labels), *rest = BatchLoader(images, torch.rand(6), batch_size=6, dtype=dtype)
    assert not rest and batch.dtype == dtype and labels.dtype == torch.float32
    assert torch.equal(batch, images)


def test_limit_one_mean_serves_all_channels():
    one, three = (make(mean=(0.5,) * k, std=(0.2,) * k) for k in (1, 3))
    assert same(take(one, 3), take(three, 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("channels_last", [False, True])
def test_parity_device_batches_equal_the_cpus(channels_last):
    cpu, gpu = make(channels_last=channels_last), make(channels_last=channels_last, device="cuda")
    for (a, b), (c, d) in zip(take(cpu, 7), take(gpu, 7)):
        assert c.is_cuda and d.is_cuda
        torch.testing.assert_close(c.cpu(), a, rtol=1e-6, atol=1e-6)
        assert torch.equal(b, d.cpu())


def test_error_messages():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"labels of shape \(3,\)"):
        BatchLoader(images, torch.zeros(3), batch_size=2)
    with pytest.raises(ValueError, match="n at least 1"):
        BatchLoader(images[:0], torch.zeros(0), batch_size=2)
    with pytest.raises(ValueError, match="batch_size=0: use 1 to 4"):
        BatchLoader(images, torch.zeros(4), batch_size=0)
    with pytest.raises(ValueError, match="batch_size=5: use 1 to 4"):
        BatchLoader(images, torch.zeros(4), batch_size=5, drop_last=True)
    with pytest.raises(ValueError, match="mean has 2 values for 3 channels"):
        BatchLoader(images, torch.zeros(4), batch_size=2, mean=(0.1, 0.2))
    with pytest.raises(ValueError, match=r"std=\(0\.0,\)"):
        BatchLoader(images, torch.zeros(4), batch_size=2, std=(0.0,))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"batch_size": 4}, "batch_size=5, this one 4: resume with the settings"),
        ({"n": 24}, "num_images=23, this one 24"),
        ({"drop_last": True}, "stands at batch 4, but an epoch has 4"),
    ],
)
def test_error_state_of_another_loader(other, message):
    loader = make()
    take(loader, 4)
    with pytest.raises(ValueError, match=message):
        make(**other).load_state_dict(loader.state_dict())
