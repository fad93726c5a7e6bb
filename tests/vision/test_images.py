from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from bayesprune import ArtefactError, cli
from bayesprune.common.tensors import read_tensors, write_tensors
from bayesprune.vision import ImageLoader, RandomResizedCrop, open_images, write_shards
from pictures import write_pictures

SIZE = 28


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), train=9, val=4)


@pytest.fixture(scope="module")
def shards(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "out"
    assert cli.main(["shards", str(root), "--out", str(out), "--size", "4"]) == 0
    return out


def copy(root, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    return tmp_path / "copy"


def loader(root, workers=0, split="train", **settings):
    settings = {"batch_size": 4, "augmentation": RandomResizedCrop(), "seed": 3, "workers": workers, **settings}
    return open_images(root, SIZE).loader(split, **settings)


def same(first, second):
    assert len(first) == len(second) > 0
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, second))


def test_roundtrip_shards_hold_the_folder(root, shards):
    folder, packed = open_images(root, SIZE), open_images(shards, SIZE)
    assert packed.classes == folder.classes == ("china", "flower")
    assert [len(list((shards / split).glob("*.tar"))) for split in ("train", "val")] == [5, 2]
    for split in ("train", "test"):
        files, members = folder.split(split), packed.split(split)
        assert files.labels.tolist() == members.labels.tolist()
        assert [files.read(i) for i in range(len(files))] == [members.read(i) for i in range(len(members))]
    assert same(list(loader(root)), list(loader(shards)))
    # the webdataset layout: KEY.jpg and KEY.cls, readable by anything that reads tar
    with tarfile.open(shards / "train" / "shard-000002.tar") as tar:
        assert tar.getnames()[:2] == ["00000008-008.jpg", "00000008-008.cls"]
        assert tar.extractfile("00000009-000.cls").read() == b"1"


def test_parity_shards_without_an_index_are_read_alike(shards, tmp_path):
    bare = copy(shards, tmp_path)
    for path in (bare / "classes.json", bare / "train" / "index.safetensors", bare / "val" / "index.safetensors"):
        path.unlink()
    with_index, without = open_images(shards, SIZE), open_images(bare, SIZE)
    assert without.classes == ("0", "1")
    for split in ("train", "test"):
        one, other = with_index.split(split), without.split(split)
        assert np.array_equal(one.places, other.places) and np.array_equal(one.labels, other.labels)
        assert [one.name(i) for i in range(len(one))] == [other.name(i) for i in range(len(other))]
    again = write_shards(without.train, tmp_path / "again", 100)  # shards can be packed anew
    assert [path.name for path in again] == ["shard-000000.tar"]


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
    assert torch.equal(batches.first(1)[0], images[0])
    assert same(list(batches), list(data.loader("test", batch_size=3)))  # a loop that was broken off begins anew


def test_property_held_out_images_are_others(root):
    data = open_images(root, SIZE)
    held = data.hold_out(4)
    names = [{index.name(i) for i in range(len(index))} for index in (held.train, held.split("validation"))]
    assert not names[0] & names[1] and [len(part) for part in names] == [14, 4]
    assert held.split("validation").labels.tolist() == [0, 0, 1, 1]
    assert held.subset(6).train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.count("validation") == 0
    copied = pickle.loads(pickle.dumps(held.train))  # how an index reaches a worker that is not forked
    assert copied.name(3) == held.train.name(3) and copied.read(3) == held.train.read(3)
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
    out = tmp_path / "shards"
    assert cli.main(["shards", str(broken), "--out", str(out)]) == 0
    with pytest.raises(ValueError, match=r"shard-000000\.tar: 00000013-004\.jpg cannot be read as an image"):
        list(loader(out, workers))


def test_error_half_a_folder(root, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"expected a folder 'train' with CLASS/\*\.jpg or \*\.tar; found china, fl"
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
    with pytest.raises(FileNotFoundError, match=r"expected a folder 'val' or 'test' .*found flower, train"):
        open_images(half)
    shutil.copytree(root / "val" / "china", half / "val")
    with pytest.raises(FileNotFoundError, match=r"val: expected one folder a class \(china, flower\); found 4 images"):
        open_images(half)
    for path in (half / "train" / "china").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train/china: expected images \(\.jpg.*found an empty folder"):
        open_images(half)


def test_error_half_the_shards(shards, tmp_path):
    half = copy(shards, tmp_path)
    shard = half / "train" / "shard-000002.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:2000])
    with pytest.raises(
        ValueError, match=r"shard-000002\.tar: has 2000 bytes, index\.safetensors says \d+; copy it again"
    ):
        open_images(half)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-000002\.tar: is missing: .*index\.safetensors lists it"):
        open_images(half)
    (half / "train" / "index.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected shard-000002\.tar too, as there is shard-000004\.tar"):
        open_images(half)
    with tarfile.open(shards / "train" / "shard-000002.tar") as tar:
        begins = tar.getmembers()[2].offset
    for cut in (begins - 600, begins, begins + 100):  # in an image, between two, in a header
        shard.write_bytes(data[:cut])
        with pytest.raises(ValueError, match=r"shard-000002\.tar: (is cut off|cannot be read)"):
            open_images(half)
    shard.write_bytes(b"no tar" * 200)
    with pytest.raises(ValueError, match=r"shard-000002\.tar: cannot be read .*expected a tar file"):
        open_images(half)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.jpg": b"x"}, r"a\.jpg has no a\.cls beside it"),
        ({"a.jpg": b"x", "a.cls": b"cat"}, r"a\.cls holds b'cat'; expected the number of a class"),
        ({"a.txt": b"x"}, r"found no image"),
        ({"a.jpg": b"x", "a.cls": b"1"}, r"train: has class 1, but only 1 images"),
        ({"a.jpg": b"x", "a.cls": b"1", "b.jpg": b"x", "b.cls": b"1"}, r"train: has no image of 1 classes, such as 0"),
    ],
)
def test_error_shards_of_another_kind(tmp_path, members, message):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        with tarfile.open(tmp_path / split / "a.tar", "w") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_images(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": {"../outside.tar": 20480}}, r"lists the shard '\.\./outside\.tar', which is no name in its folder"),
        ({"shards": {"/etc/passwd": 20480}}, r"lists the shard '/etc/passwd'"),
        ({"places": (0, 1, 1 << 40)}, "outside its shards"),
        ({"places": (0, 1, -5)}, "outside its shards"),
        ({"places": (0, 0, 10**9)}, "outside its shards"),
        ({"labels": (1, -3)}, "outside its shards"),
        ({"ends": (0, 10**9)}, "outside its shards"),
        ({"labels": None}, "there is no 'labels'"),
    ],
)
def test_error_a_forged_index_that_points_outside(shards, tmp_path, change, message):
    half = copy(shards, tmp_path)
    path = half / "train" / "index.safetensors"
    found = read_tensors(path, ["bayesprune-shards-2"])
    metadata, (key, value) = dict(found.metadata), next(iter(change.items()))
    if key == "shards":
        metadata[key] = json.dumps(value)
    elif value is None:
        del found.tensors[key]
    else:
        *place, number = value
        found.tensors[key][tuple(place)] = number
    write_tensors(path, found.tensors, "bayesprune-shards-2", metadata)
    with pytest.raises(ArtefactError, match=message):
        open_images(half)


def test_error_classes_that_are_no_names(shards, tmp_path):
    half = copy(shards, tmp_path)
    for content in ("{}", "[1, 2]", '["a", "a"]', "[", "\xff"):
        (half / "classes.json").write_text(content, encoding="latin-1")
        with pytest.raises(ArtefactError, match=r"classes\.json"):
            open_images(half)


def test_error_shards_are_not_overwritten(root, shards, capsys):
    assert cli.main(["shards", str(root), "--out", str(shards)]) == 1
    assert "is not empty" in capsys.readouterr().err
    with pytest.raises(ValueError, match="size=0"):
        write_shards(open_images(root).train, shards / "new", 0)
    with pytest.raises(ValueError, match="batch_size=30: use 1 to 18"):
        ImageLoader(open_images(root).train, batch_size=30, size=8, resize=9, mean=(0,), std=(1,), drop_last=True)
