from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from bayesprune.vision import ImageLoader, RandomResizedCrop, open_images
from pictures import write_pictures

SIZE = 28


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), train=9, val=4)


def copy(root, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    return tmp_path / "copy"


def loader(root, workers=0, split="train", **settings):
    settings = {"batch_size": 4, "augmentation": RandomResizedCrop(), "seed": 3, "workers": workers, **settings}
    return open_images(root, SIZE).loader(split, **settings)


def same(first, second):
    assert len(first) == len(second) > 0
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, second))


@pytest.mark.parametrize("workers", [1, 2])
def test_property_batches_do_not_depend_on_the_workers(root, workers):
    alone, many = loader(root), loader(root, workers)
    epochs = [[list(one) for _ in range(2)] for one in (alone, many)]
    many.close()
    assert all(same(*pair) for pair in zip(*epochs))
    assert not same(epochs[0][0], epochs[0][1])  # another epoch, another order and other crops
    assert not same(epochs[0][0], list(loader(root, seed=4)))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_roundtrip_a_loader_taken_up_in_the_middle(root, workers, stop):
    whole = loader(root, drop_last=True)
    batches = [batch for _ in range(3) for batch in whole]
    first = loader(root, workers, drop_last=True)
    seen = []
    while len(seen) < stop:
        for batch in first:
            seen.append(batch)
            if len(seen) == stop:
                state = first.state_dict()
                break
    first.close()
    second = loader(root, drop_last=True)
    second.load_state_dict(json.loads(json.dumps(state)))
    rest = []
    while second.epoch < 3:
        rest += list(second)
    assert same(seen + rest, batches)


def test_property_every_image_once_an_epoch_and_the_crop_belongs_to_the_image(root):
    data = open_images(root, SIZE)
    labels = torch.cat([labels for _, labels in loader(root)])
    assert torch.bincount(labels).tolist() == [9, 9]
    # the same images in another batch size get the same crops: a sorted list of pixel sums says so
    sums = [sorted(float(x.double().sum()) for images, _ in loader(root, batch_size=n) for x in images) for n in (4, 6)]
    assert sums[0] == pytest.approx(sums[1], abs=1e-9)
    assert len(set(sums[0])) == data.count("train") == 18


def test_property_shares_of_a_batch_make_the_batch(root):
    whole = list(loader(root, batch_size=5))
    parts = [list(loader(root, batch_size=5, share=(rank, 3))) for rank in range(3)]
    for i, (images, labels) in enumerate(whole):
        assert torch.equal(torch.cat([part[i][0] for part in parts]), images)
        assert torch.equal(torch.cat([part[i][1] for part in parts]), labels)


def test_equation_evaluation_batches_are_normalised_middles(root):
    data = open_images(root, SIZE)
    assert data.resize == 32 and open_images(root).resize == 256
    batches = data.loader("test", batch_size=3, channels_last=True)
    images, labels = next(iter(batches))
    assert images.is_contiguous(memory_format=torch.channels_last) and labels.tolist() == [0, 0, 0]
    with Image.open(root / "val" / "china" / "001.jpg") as file:
        short = min(file.size)
        image = file.resize(
            tuple(32 if side == short else int(32 * side / short) for side in file.size), Image.BILINEAR
        )
    left, top = round((image.width - 28) / 2), round((image.height - 28) / 2)
    pixels = torch.from_numpy(np.asarray(image)[top : top + 28, left : left + 28].copy()).permute(2, 0, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    wanted = (pixels / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert torch.allclose(images[1], wanted, atol=1e-5)
    assert torch.equal(batches.first(1)[0], images[:1])
    assert same(list(batches), list(data.loader("test", batch_size=3)))  # a loop that was broken off begins anew


def test_property_held_out_images_are_others(root):
    data = open_images(root, SIZE)
    held = data.hold_out(4)
    names = [{files.path(i) for i in range(len(files))} for files in (held.train, held.split("validation"))]
    assert not names[0] & names[1] and [len(part) for part in names] == [14, 4]
    assert held.split("validation").labels.tolist() == [0, 0, 1, 1]
    assert held.subset(6).train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.count("validation") == 0
    copied = pickle.loads(pickle.dumps(held.train))  # how files reach a worker that is not forked
    assert copied.path(3) == held.train.path(3) and copied.path(3).exists()
    for call, message in ((lambda: data.hold_out(18), "hold out 1 to 17"), (lambda: data.subset(0), "at least 1")):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("workers", [0, 2])
def test_error_corrupt_image_is_named(root, tmp_path, workers):
    broken = copy(root, tmp_path)
    path = broken / "train" / "flower" / "004.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(
        ValueError, match=r"flower/004\.jpg cannot be read as an image \(.+\): remove or replace it"
    ) as info:
        list(loader(broken, workers))
    assert "Traceback" not in str(info.value)


def test_error_half_a_folder(root, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"expected a folder 'train' with one folder a class \(CLASS/\*\.jpg\); found china, fl"
    ):
        open_images(root / "train")
    half = copy(root, tmp_path)
    (half / "val" / "flower").rename(half / "flower")
    with pytest.raises(FileNotFoundError, match=r"val has 1 of 2 classes: expected also flower"):
        open_images(half)
    (half / "val" / "rose").mkdir()
    with pytest.raises(ValueError, match=r"val has 1 classes that train has not: rose; is train complete"):
        open_images(half)
    shutil.rmtree(half / "val")
    with pytest.raises(FileNotFoundError, match=r"expected a folder 'test' or 'val' .*found flower, train"):
        open_images(half)
    shutil.copytree(root / "val" / "china", half / "val")
    with pytest.raises(FileNotFoundError, match=r"val: expected one folder a class \(china, flower\); found 4 images"):
        open_images(half)
    for path in (half / "train" / "china").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train/china: expected images \(\.jpg.*found an empty folder"):
        open_images(half)


def test_error_a_batch_larger_than_the_data(root):
    with pytest.raises(ValueError, match="batch_size=30: use 1 to 18"):
        ImageLoader(open_images(root).train, batch_size=30, size=8, resize=9, mean=(0,), std=(1,), drop_last=True)
