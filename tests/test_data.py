"""Reading images: what is wrong with the input becomes one line with the place and the remedy."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from estimator_inputs import write_pictures
from PIL import Image
from small_inputs import small_arrays

from edgenes.core import EdgenesError, stream
from edgenes.data import Augment, Split, augment_images, batches
from edgenes.readers import load_data, read_part, read_pictures


@pytest.fixture
def arrays():
    """The content of a good .npz file: 40 and 10 small colour images of two classes."""
    return small_arrays(train=40, test=10)


@pytest.fixture
def tree(tmp_path, arrays):
    """The same images as PNG files in train/CLASS/ and test/CLASS/."""
    for part in ("train", "test"):
        labels = arrays["class_names"][arrays[f"{part}_labels"]]
        write_pictures(tmp_path / "tree" / part, arrays[f"{part}_images"], labels)
    return tmp_path / "tree"


def assert_refused(match, *args, **kwargs):
    """`load_data` raises an `EdgenesError` of one line that matches."""
    with pytest.raises(EdgenesError, match=match) as caught:
        load_data(*args, **kwargs)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- .npz files


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"train_images": np.zeros((40, 4, 4, 3), np.int64)}, "images are int64, not uint8"),
        ({"train_images": np.zeros((40, 4), np.uint8)}, "images have shape"),
        (
            {"train_images": np.zeros((0, 4, 4, 3), np.uint8), "train_labels": np.zeros(0, int)},
            "images have shape",
        ),
        (
            {"train_images": np.zeros((40, 3, 4, 4), np.uint8)},
            "3 x 4 pixels .N x H x W x C is read",
        ),
        ({"test_images": np.zeros((10, 4, 5, 3), np.uint8)}, "test of .*4 x 5 pixels"),
        (
            {"test_images": np.zeros((10, 4, 4), np.uint8)},
            "train and test differ in channels or size",
        ),
        ({"train_labels": np.arange(40) % 2 - 1}, "labels run from -1 to 0"),
        ({"train_labels": np.arange(40) / 40}, "labels are float64"),
        ({"train_labels": np.zeros((40, 1), int)}, "labels are int64 of shape"),
        ({"train_labels": np.zeros(40, int)}, "class .1. has no image"),
        ({"train_labels": np.array([1] + [0] * 39)}, "the smallest, class 1, has 1"),
        ({"class_names": np.array(["a", "a"])}, "one or more different strings"),
        ({"class_names": np.array(["a"])}, "labels run from 0 to 1, but 1 class names"),
        ({"class_names": np.array([1, 2])}, "one or more different strings"),
        ({"train_labels": np.array([{}] * 40, dtype=object)}, "not pickled objects"),
        ({"class_names": None, "test_images": None}, "lacks the arrays class_names, test_images"),
    ],
)
def test_npz_arrays(tmp_path, arrays, change, match):
    altered = arrays | change
    present = {name: array for name, array in altered.items() if array is not None}
    np.savez(tmp_path / "bad.npz", **present)
    assert_refused(match, tmp_path / "bad.npz")


def test_npz_file_that_is_damaged(tmp_path, arrays):
    path = tmp_path / "x.npz"
    np.savez(path, **arrays)
    good = path.read_bytes()
    cut_off = good[: len(good) // 2]
    overwritten = good[:300] + bytes(200) + good[500:]
    for content in (b"", b"no archive", cut_off, overwritten):
        path.write_bytes(content)
        assert_refused(r"cannot read .*x\.npz as an \.npz file", path)


def test_file_of_another_kind(tmp_path, arrays):
    np.save(tmp_path / "plain.npy", arrays["train_images"])
    (tmp_path / "plain.npy").rename(tmp_path / "x.npz")
    assert_refused(r"cannot read .*x\.npz", tmp_path / "x.npz")
    (tmp_path / "notes.txt").write_text("")
    assert_refused(r"is not an \.npz file", tmp_path / "notes.txt")


def test_grey_images_and_a_folder_that_holds_npz_files(tmp_path, arrays):
    grey = dict(arrays)
    for name in ("train_images", "test_images"):
        grey[name] = arrays[name][..., 0]
    np.savez(tmp_path / "grey.npz", **grey)
    assert load_data(tmp_path).channels == 1
    np.savez(tmp_path / "second.npz", **arrays)
    assert_refused(r"holds 2 \.npz files", tmp_path)
    np.savez(tmp_path / "cifar100.npz", **arrays)
    assert load_data("cifar100", folder=tmp_path).channels == 3


# ---------------------------------------------------------------- folders of pictures


@pytest.mark.parametrize(
    ("mode", "size", "match"),
    [
        ("RGB", (6, 4), r"zz\.png is RGB \(4, 6\)"),
        ("L", (4, 4), r"zz\.png is L"),
        ("RGBA", (4, 4), "mode RGBA"),
        ("I;16", (4, 4), "mode I;16"),
    ],
)
def test_picture_of_another_form(tree, mode, size, match):
    Image.new(mode, size).save(tree / "train" / "b" / "zz.png")
    assert_refused(match, tree)


def test_picture_that_is_damaged(tree):
    good = (tree / "train" / "a" / "000.png").read_bytes()
    bad = tree / "train" / "b" / "zz.png"
    for content in (b"", good[:40]):
        bad.write_bytes(content)
        assert_refused(r"cannot read the picture .*zz\.png", tree)
    bad.unlink()
    assert len(load_data(tree).test) == 10


def test_class_that_is_missing_or_empty(tree):
    (tree / "test" / "c").mkdir()
    assert_refused("class c is not in both train and test", tree)
    (tree / "train" / "c").mkdir()
    assert_refused("holds no picture", tree)


@pytest.mark.parametrize("part", ["", "a"])
def test_folder_that_cannot_be_read(tree, monkeypatch, part):
    """The folder behaves as if the rights were missing; root, who may run this, would be let in."""
    forbidden = tree / "train" / part
    iterdir = Path.iterdir

    def refuse_forbidden(self):
        if self == forbidden:
            raise PermissionError(13, "Permission denied", str(self))
        return iterdir(self)

    monkeypatch.setattr(Path, "iterdir", refuse_forbidden)
    assert_refused(f"cannot read .*train/?{part} .Permission denied", tree)
    with pytest.raises(EdgenesError, match=r"cannot read .*Permission denied"):
        read_part(tree, "train")


@pytest.mark.parametrize("name", ["n" * 300, "n/" * 3000])
def test_name_that_no_file_can_have(name, tmp_path):
    assert_refused("unknown data source", tmp_path / name)
    with pytest.raises(EdgenesError, match="data not found"):
        read_part(tmp_path / name, "test")
    with pytest.raises(EdgenesError, match="cannot read the picture"):
        read_pictures([tmp_path / name])


# ---------------------------------------------------------------- CIFAR-100


def test_empty_folder(tmp_path):
    assert_refused("holds no data", tmp_path)


def test_nothing_is_downloaded_into_a_folder_of_pictures(tmp_path):
    (tmp_path / "cat").mkdir()
    assert_refused(
        "CIFAR-100 is downloaded into an empty folder alone, and this one holds 'cat'",
        "cifar100",
        folder=tmp_path,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["cat"]


def test_cifar_without_network(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", no_network)
    assert_refused(
        "holds no sound copy of CIFAR-100, and it cannot be downloaded",
        "cifar100",
        folder=tmp_path,
    )
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "train").write_bytes(b"not the checksum of the original")
    assert_refused("no sound copy", "cifar100", folder=tmp_path)


def test_a_path_downloads_nothing(tmp_path, monkeypatch):
    """Also where an incomplete copy of CIFAR-100 lies there; only "cifar100" completes it."""
    calls = []

    def download(*args, **kwargs):
        calls.append(args)

    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", download)
    (tmp_path / "cifar-100-python").mkdir()
    message = '"cifar100" .*cifar-100-python/train is missing, or is not the published file'
    assert_refused(message, tmp_path)
    with pytest.raises(EdgenesError, match=message):
        read_part(tmp_path, "test")
    assert not calls
    assert_refused("no sound copy", "cifar100", folder=tmp_path)
    assert len(calls) == 1


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"val_images": 0}, "val_images is"),
        ({"val_images": 2.5}, "val_images is"),
        ({"train_images": True}, "train_images is"),
        ({"val_images": 2000}, "more than the"),
        ({"val_images": 1438}, "leave none"),
        ({"test_images": 5}, "10 classes on both sides"),
        ({"downscale": 0}, "downscale is"),
        ({"downscale": 3}, "multiples of 6"),
        ({"downscale": 8}, "multiples of 16"),
        ({"seed": -1}, "seed is"),
    ],
)
def test_settings(settings, match):
    assert_refused(match, "digits", **settings)


def small_source(arrays, classes, train_images):
    """So many training images of so many classes, and one test image per class."""
    return {
        "class_names": np.array([f"c{i}" for i in range(classes)]),
        "train_images": arrays["train_images"][:train_images],
        "train_labels": np.arange(train_images) % classes,
        "test_images": arrays["train_images"][:classes],
        "test_labels": np.arange(classes),
    }


@pytest.mark.parametrize(("classes", "per_class"), [(1, 2), (1, 40), (20, 2)])
def test_two_images_per_class_are_enough_for_a_split(tmp_path, arrays, classes, per_class):
    np.savez(tmp_path / "small.npz", **small_source(arrays, classes, classes * per_class))
    data = load_data(tmp_path / "small.npz")
    for split in (data.train, data.val, data.test):
        assert len(split.labels.unique()) == classes


def test_one_image_per_class_is_too_few_for_a_split(tmp_path, arrays):
    np.savez(tmp_path / "small.npz", **small_source(arrays, 20, 20))
    assert_refused("val_images=20 of 20 .*|leave none of 20", tmp_path / "small.npz")


def test_constant_channel(tmp_path, arrays):
    arrays["train_images"][..., 1] = 7
    np.savez(tmp_path / "x.npz", **arrays)
    data = load_data(tmp_path / "x.npz")
    assert torch.isfinite(data.normalise(data.test.images)).all()


def test_split_that_is_empty_or_of_unequal_lengths():
    data = load_data("digits")
    with pytest.raises(EdgenesError, match="the split is empty"):
        next(batches(data.train.take([]), data, 4, stream(0)))
    with pytest.raises(EdgenesError, match="3 images need as many"):
        Split(data.train.images[:3], data.train.labels[:2])


# ---------------------------------------------------------------- pixels


def test_normalisation_by_its_definition():
    data = load_data("digits", downscale=2)
    images = data.val.images
    assert images.dtype == torch.uint8
    assert data.shape == (4, 4)
    expected = (images / 255 - data.mean[:, None, None]) / data.std[:, None, None]
    torch.testing.assert_close(data.normalise(images), expected, atol=1e-5, rtol=1e-5)


def test_flip_mirrors_half_of_the_images():
    data = load_data("digits", downscale=2)
    images = data.normalise(data.val.images)
    augmented = augment_images(images, Augment(flip=True), stream(0))
    flipped = (augmented != images).flatten(1).any(1)
    assert 0.4 < flipped.float().mean() < 0.6
    assert torch.equal(augmented[flipped], images[flipped].flip(3))
