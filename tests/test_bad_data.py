"""Bad images: `.npz` files and folders of pictures. One line names the fault."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import Refusals, examples
from small_inputs import ARRAYS, Harm, picture_bytes, write_tree

from edgenes.readers import load_data

TRIED = Refusals(npz=300, tree=150)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("bad")


# ---------------------------------------------------------------- arrays


def numbered_names(count):
    """As many class names; the labels of `ARRAYS` need two."""
    return np.array([str(i) for i in range(count)])


BAD_CLASS_NAMES = st.sampled_from(
    [
        np.array(["a", "a"]),
        np.array([1, 2]),
        np.array([["a", "b"]]),
        np.array("a"),
        np.array([b"a", b"b"]),
        np.array([]),
        np.array(["a", "b", "c"]),
        np.array(["a"]),
        np.array(["a", None], dtype=object),
    ]
) | st.integers(3, 40).map(numbered_names)


def other_types(name):
    """The array in a type that it cannot have."""
    types = ["f2", "f4", "f8", "?", "c8", "U3", "S2", "M8[s]"]
    if "images" in name:
        types += ["i4", "u2"]
    return st.sampled_from(types).map(ARRAYS[name].astype)


def other_shapes(name):
    """Zeros in a shape that the array cannot have."""
    dtype = ARRAYS[name].dtype
    shapes = st.lists(st.sampled_from([0, 1, 3, 5]), max_size=5).map(tuple)
    return shapes.map(lambda shape: np.zeros(shape, dtype))


def other_lengths(name):
    """Fewer or more entries than images or labels beside it."""
    good = ARRAYS[name]
    twice = np.concatenate([good, good])
    lengths = st.integers(0, len(twice)).filter(lambda length: length != len(good))
    return lengths.map(lambda length: twice[:length])


def other_values(name):
    """Labels without a class, or pixels that no picture has."""
    good = ARRAYS[name]
    if "labels" in name:
        offsets = st.integers(1, 2**62) | st.integers(-(2**62), -1)
        return offsets.map(lambda offset: good + offset)
    pixels = st.sampled_from([np.nan, np.inf, -1.0, 256.0, 0.5])
    return pixels.map(lambda pixel: np.full(good.shape, pixel))


def bad_arrays(name):
    """Arrays that cannot stand for this one."""
    if name == "class_names":
        return BAD_CLASS_NAMES
    return other_types(name) | other_shapes(name) | other_lengths(name) | other_values(name)


@examples(150)
@given(st.data())
def test_npz_arrays(place, data):
    name = data.draw(st.sampled_from(sorted(ARRAYS)))
    arrays = ARRAYS | {name: data.draw(bad_arrays(name))}
    if data.draw(st.integers(0, 9)) == 0:
        del arrays[name]
    np.savez(place / "x.npz", **arrays)
    TRIED.refused("npz", load_data, place / "x.npz")


@examples(40)
@given(
    st.sampled_from((np.savez, np.savez_compressed)),
    st.integers(0, 400),
    st.binary(min_size=1, max_size=40),
)
def test_npz_bytes(place, save, first, noise):
    buffer = io.BytesIO()
    save(buffer, **ARRAYS)
    content = buffer.getvalue()
    path = place / "x.npz"
    for cut in range(first, len(content), 401):
        path.write_bytes(content[:cut])
        TRIED.refused("npz", load_data, path)
        path.write_bytes(content[:cut] + noise + content[cut + len(noise) :])
        # Where nothing that is read was hit, the file is sound.
        TRIED.attempt("npz", load_data, path)


# ---------------------------------------------------------------- archives made by hand


def array_bytes(array):
    """The content of the .npy file of an array."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


MEMBERS = {name: array_bytes(array) for name, array in ARRAYS.items()}


def member(header, body=b"\0" * 8):
    """A .npy file with this header."""
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def write_archive(folder, **changes):
    """A sound .npz file in which the members given replace or join the others; its path."""
    path = folder / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in (MEMBERS | changes).items():
            file.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (10**15,)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 1000, 1000)}",
        "{",
        "__import__('os')",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}",
        "(" * 2000,
    ],
    ids=range(7),
)
def test_headers_of_arrays(header, tmp_path):
    assert len(load_data(write_archive(tmp_path)).test) == 6
    path = write_archive(tmp_path, train_images=member(header))
    TRIED.refused("npz", load_data, path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_pickle_in_an_archive_is_not_run(tmp_path):
    path = write_archive(tmp_path, train_images=pickle.dumps(Harm(tmp_path / "harm")))
    TRIED.refused("npz", load_data, path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_in_an_archive_is_a_name(tmp_path):
    """Nothing is unfolded there."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    path = write_archive(folder, **{"../../outside": MEMBERS["test_labels"]})
    assert load_data(path).classes == 2
    assert sorted(tmp_path.rglob("*")) == [folder.parent, folder, path]


def test_an_archive_that_unfolds_to_more_than_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 64)  # a machine of 4,096 bytes
    TRIED.refused("npz", load_data, write_archive(tmp_path, surplus=bytes(10**6)))


def test_paths_where_no_archive_can_be(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "x.txt").write_text("")
    for name in ("pipe.npz", "nowhere.npz", "n" * 300, "x.txt", "nowhere.txt"):
        TRIED.refused("npz", load_data, tmp_path / name)
    TRIED.refused("npz", load_data, "a\0b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipe.npz", "x.txt"]


# ---------------------------------------------------------------- folders of pictures

# Pillow would start Ghostscript to draw it.
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n"
OTHER_PICTURES = [
    *(picture_bytes(name) for name in ("grey", "wide", "alpha", "palette", "deep", "bit", "odd")),
    picture_bytes("float", "TIFF"),
    picture_bytes("good", "GIF"),
    POSTSCRIPT,
    b"",
]
# From 49 bytes on all pixels of the picture are there.
CUT_PICTURES = st.integers(0, 48).map(lambda length: picture_bytes("good")[:length])
BAD_PICTURES = st.sampled_from(OTHER_PICTURES) | CUT_PICTURES | st.binary(max_size=60)

CLASS_NAMES = st.text("<>$.;&' ab", min_size=2, max_size=9).filter(lambda name: name[0] != ".")
SUFFIXES = st.sampled_from((".png", ".jpg", ".TIFF", ".ppm", ".webp"))
TREE_FAULTS = (
    *("bad picture",) * 4,  # of which there are most kinds
    "folder for a picture",
    "unpaired class",
    "empty class",
    "pipe",
    "broken link",
    "link to itself",
    "one image per class",
)


def spoil_tree(fault, folder, class_folder, data):
    """Gives a sound folder of pictures a fault, in one of its classes where it can be there."""
    picture = class_folder / ("7" + data.draw(SUFFIXES))
    match fault:
        case "bad picture":
            picture.write_bytes(data.draw(BAD_PICTURES))
        case "folder for a picture":
            picture.mkdir()
        case "unpaired class":
            (class_folder.parent / data.draw(CLASS_NAMES)).mkdir()
        case "empty class":
            for file in class_folder.iterdir():
                file.unlink()
        case "pipe":
            os.mkfifo(picture)
        case "broken link":
            picture.symlink_to("nowhere")
        case "link to itself":
            picture.symlink_to(picture.name)
        case "one image per class":
            write_tree(folder, images=1)


@examples(170)
@given(st.data())
def test_image_trees(place, data):
    folder = write_tree(place / "tree")
    assert len(load_data(folder).val) == 2  # it is the fault that is refused
    part = data.draw(st.sampled_from(("train", "test")))
    name = data.draw(st.sampled_from(("a", "b")))
    fault = data.draw(st.sampled_from(TREE_FAULTS))
    spoil_tree(fault, folder, folder / part / name, data)
    TRIED.refused("tree", load_data, folder)


def test_enough_was_tried(request, place):
    assert not list(place.rglob("*.tmp"))
    TRIED.check_counts(request)
