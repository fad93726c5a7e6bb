from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from bayesprune.vision import load_image_folder


def write(root, split, label, name, pixels):
    folder = root / split / label
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


def picture(seed, height=6, width=6, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


@pytest.fixture
def root(tmp_path):
    for i in range(3):
        write(tmp_path, "train", "dog", f"{i}.png", picture(i))
        write(tmp_path, "train", "cat", f"{i}.png", picture(10 + i))
    (tmp_path / "train" / "dog" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".hidden").mkdir()
    write(tmp_path, "val", "dog", "a.PNG", picture(20))
    return tmp_path


def test_roundtrip_pixels_and_labels(root):
    data = load_image_folder(root, size=6)
    assert data.classes == ("cat", "dog")
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1] and data.test_labels.tolist() == [1]
    wanted = torch.from_numpy(np.stack([picture(i) for i in (10, 11, 12, 0, 1, 2)])).permute(0, 3, 1, 2)
    assert torch.equal(data.train_images, wanted)
    assert torch.equal(data.test_images[0], torch.from_numpy(picture(20)).permute(2, 0, 1))
    assert data.mean == pytest.approx((wanted.double() / 255).mean((0, 2, 3)).tolist())
    assert data.validation_images is None
    images, labels = next(iter(data.loader("train", batch_size=4)))
    assert images.shape == (4, 3, 6, 6) and labels.dtype == torch.int64


def test_roundtrip_test_and_validation_folders(root):
    write(root, "test", "cat", "b.png", picture(30))
    data = load_image_folder(root, size=6)
    assert data.test_labels.tolist() == [0] and data.validation_labels.tolist() == [1]
    assert torch.equal(data.validation_images[0], torch.from_numpy(picture(20)).permute(2, 0, 1))


def test_equation_middle_square_is_kept_and_scaled(root):
    # Height 4, width 8: the middle 4 x 4 square, each 2 x 2 of one colour, scaled to 2 x 2.
    pixels = np.full((4, 8, 3), 255, dtype=np.uint8)
    pixels[:, 2:6] = np.array([[10, 20], [30, 40]], dtype=np.uint8).repeat(2, 0).repeat(2, 1)[..., None]
    write(root, "train", "ant", "wide.png", pixels)
    image = load_image_folder(root, size=2).train_images[0, 0]
    # The bilinear filter for 4 -> 2 pixels weighs three of them by (3, 3, 1) / 7: 6 / 7 and 1 / 7 of the blocks.
    mix = torch.tensor([[6.0, 1.0], [1.0, 6.0]]) / 7
    wanted = mix @ torch.tensor([[10.0, 20.0], [30.0, 40.0]]) @ mix.T
    assert (image.float() - wanted).abs().max() <= 1


def test_roundtrip_grey_and_jpeg_and_transparent_images(root):
    write(root, "train", "ant", "0.jpg", np.full((6, 6, 3), 100, dtype=np.uint8))
    write(root, "train", "ant", "1.png", picture(40, channels=1))
    write(root, "train", "ant", "2.png", picture(41, channels=4))
    data = load_image_folder(root, size=6)
    assert (data.train_images[0].int() - 100).abs().max() <= 1
    grey = torch.from_numpy(picture(40, channels=1))
    assert torch.equal(data.train_images[1], grey.expand(3, 6, 6))
    assert torch.equal(data.train_images[2], torch.from_numpy(picture(41, channels=4)).permute(2, 0, 1)[:3])
    one = load_image_folder(root, size=6, grayscale=True)
    assert one.in_channels == 1 and len(one.mean) == 1
    assert torch.equal(one.train_images[1, 0], grey)


def test_parity_sixteen_bits_are_the_picture_of_eight(root):
    write(root, "train", "ant", "0.png", picture(42, channels=1))
    write(root, "train", "ant", "1.png", picture(42, channels=1).astype(np.uint16) * 257)
    write(root, "train", "ant", "2.tif", picture(42, channels=1).astype(np.int32) * 257)
    images = load_image_folder(root, size=6).train_images
    assert torch.equal(images[1], images[0]) and torch.equal(images[2], images[0])
    write(root, "train", "ant", "3.tif", picture(42, channels=1).astype(np.float32) / 255)
    with pytest.raises(ValueError, match=r"3\.tif cannot be read .*save it with 8 or 16 bits"):
        load_image_folder(root, size=6)


@pytest.mark.parametrize(
    "orientation, turned", [(1, lambda x: x), (3, lambda x: np.rot90(x, 2)), (6, lambda x: np.rot90(x, -1))]
)
def test_equation_photographs_are_turned_as_their_camera_was(root, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation  # 6: its first row is the right side of the scene
    (root / "train" / "ant").mkdir()
    Image.fromarray(picture(43)).save(root / "train" / "ant" / "0.png", exif=exif)
    wanted = torch.from_numpy(turned(picture(43)).copy()).permute(2, 0, 1)
    assert torch.equal(load_image_folder(root, size=6).train_images[0], wanted)


def test_error_what_is_left_out_is_said(root):
    write(root, "train/dog", "puppies", "0.png", picture(44))
    write(root, "train", "", "loose.png", picture(45))
    (root / "train" / "cat" / "0.heic").write_bytes(b"of a telephone")
    (root / "train" / "cat" / "._0.png").write_bytes(b"of a Mac")
    with pytest.warns(
        UserWarning,
        match=r"train: not read: cat/0\.heic, dog/notes\.txt, dog/puppies, loose\.png; images lie in CLASS/",
    ):
        assert load_image_folder(root, size=6).count("train") == 6


def test_error_messages(root, tmp_path):
    with pytest.raises(ValueError, match="size=0"):
        load_image_folder(root, size=0)
    with pytest.raises(
        FileNotFoundError,
        match=r"expected a folder 'train' with one folder a class \(CLASS/\*\.jpg\); found \.hidden, cat, dog",
    ):
        load_image_folder(root / "train", size=6)
    write(root, "val", "cow", "a.png", picture(1))
    with pytest.raises(ValueError, match="classes that train has not: cow"):
        load_image_folder(root, size=6)
    (root / "val").rename(root / "other")
    with pytest.raises(FileNotFoundError, match=r"expected a folder 'test' or 'val' .*found other, train"):
        load_image_folder(root, size=6)
    (root / "test" / "dog").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"test: expected images \(\.jpg"):
        load_image_folder(root, size=6)
    (root / "test" / "dog" / "broken.png").write_bytes(b"not a png")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as an image"):
        load_image_folder(root, size=6)
