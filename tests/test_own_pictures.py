"""What a user is told of pictures that have no answer, of sizes, and of names like Training."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
from PIL import Image

from edgenes import EdgeNES
from edgenes.core import EdgenesError
from edgenes.estimator.pictures import PictureSettings
from edgenes.estimator.problems import check_folder

TINY = {"members": 1, "candidates": 1, "search_steps": 2, "epochs": 1, "verbose": 0}
ASKED = ("predict", "predict_proba", "predict_uncertainty", "member_proba")
JUDGED = ("score", "evaluate")


def write_class(folder, seed, size=(8, 8), count=4):
    """Pictures of random pixels in a folder."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes of four pictures, of which one cannot be read and one is of a foreign format."""
    folder = tmp_path_factory.mktemp("pictures")
    write_class(folder / "cat", 0)
    write_class(folder / "dog", 1)
    (folder / "cat" / "1.png").write_text("no picture")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "dog" / "raw.dng", format="TIFF")
    return folder


@pytest.fixture(scope="module")
def model(pictures):
    return EdgeNES(**TINY).fit(pictures)


def listed(pictures):
    files = sorted(pictures.glob("*/*.png"))
    return files, [file.parent.name for file in files]


def told(call):
    """The warnings of a call, and the file whose line each of them names."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [(str(warning.message), warning.filename) for warning in caught]


# ---------------------------------------------------------------- pictures without an answer


@pytest.mark.parametrize("method", ASKED)
def test_a_picture_that_is_named_has_an_answer(model, pictures, method):
    files, _ = listed(pictures)
    ask = getattr(model, method)
    with pytest.raises(EdgenesError, match=r"1 of 8 pictures cannot be read, first .*1\.png \(it"):
        ask(files)
    ask(model.read(files).files)
    said = told(lambda: ask([pictures / "dog" / "0.png", pictures / "cat"]))
    assert [message[:31] for message, _ in said] == ["1 pictures cannot be read and h"]


@pytest.mark.parametrize("method", [*ASKED, *JUDGED])
def test_warnings_name_the_line_of_the_caller(model, pictures, method):
    [(message, place)] = told(lambda: getattr(model, method)(pictures))
    assert place == __file__
    assert " pictures cannot be read and have no answer, first " in message


def test_a_fit_warns_at_the_line_of_the_caller(pictures, tmp_path):
    (tmp_path / "file").touch()
    fit = EdgeNES(**TINY).fit
    said = told(lambda: fit(pictures, checkpoint=tmp_path / "file" / "unfinished"))
    assert {place for message, place in said if "have to start anew" in message} == {__file__}


def test_formats_that_are_not_read_have_no_answer(model, pictures):
    faults = model.read(pictures).faults
    reason = "it is no picture of a format that is read"
    assert faults == {pictures / "cat" / "1.png": reason, pictures / "dog" / "raw.dng": reason}
    _, problems = check_folder(pictures, PictureSettings())
    assert "pictures of formats that are not read" in {problem.what for problem in problems}


def test_labels_go_with_their_pictures(model, pictures):
    files, labels = listed(pictures)
    kept = [place for place, file in enumerate(files) if file.name != "1.png" or place > 3]
    read = model.read([files[place] for place in kept])
    right = model.score(read.images, [labels[place] for place in kept])
    with pytest.warns(match="1 pictures cannot be read"):
        assert model.score(files, labels) == right


def test_what_does_not_exist_is_no_unreadable_picture(model, pictures, tmp_path):
    files, labels = listed(pictures)
    files[2] = files[2].with_name("typo.png")
    for method in (*ASKED, "read"):
        with pytest.raises(EdgenesError, match=r"typo\.png does not exist: give pictures or fold"):
            getattr(model, method)(files)
        with pytest.raises(EdgenesError, match="typo_folder does not exist"):
            getattr(model, method)("typo_folder")
    for method in (model.score, model.evaluate, EdgeNES(**TINY).fit):
        with pytest.raises(EdgenesError, match=r"typo\.png does not exist"):
            method(files, labels)
    link = tmp_path / "link.png"
    link.symlink_to("nowhere")
    with pytest.warns(match=r"link\.png \(it is not a file\)"):
        model.score([link, *files[3:]], [labels[0], *labels[3:]])


def test_labels_that_a_fit_has_not_seen(model, pictures):
    files = model.read(pictures).files
    for method in JUDGED:
        with pytest.raises(EdgenesError, match=r"label \['bird'\] was not among those of fit"):
            getattr(model, method)(files, ["bird"] * len(files))
    assert 0 <= model.score(files, ["bird", *["cat"] * (len(files) - 1)]) < 1
    with pytest.raises(EdgenesError, match=r"label 1 is missing \(nan\): give it"):
        model.score(files, ["cat", float("nan"), *["dog"] * (len(files) - 2)])


# ---------------------------------------------------------------- folders and sizes


def test_parts_of_a_data_set_are_no_classes(model, tmp_path):
    for part in ("Training", "Testing"):
        for seed, name in enumerate(("cat", "dog")):
            write_class(tmp_path / part / name, seed)
    for call, part in (
        (EdgeNES(**TINY).fit, "Training"),
        (lambda path: check_folder(path, PictureSettings()), "Training"),
        (model.score, "Testing"),
    ):
        with pytest.raises(EdgenesError, match="Testing and Training, which look like parts") as no:
            call(tmp_path)
        assert f"give {tmp_path / part}, or rename them train and test" in str(no.value)
    for part, name in (("Training", "train"), ("Testing", "test")):
        os.rename(tmp_path / part, tmp_path / name)
    assert EdgeNES(**TINY).fit(tmp_path).classes_.tolist() == ["cat", "dog"]


def test_a_common_size_without_blocks_is_changed_a_little(tmp_path):
    for seed, name in enumerate(("cat", "dog")):
        write_class(tmp_path / name, seed, size=(134, 134))
    facts, _ = check_folder(tmp_path, PictureSettings())
    assert (
        "136 x 136 pixels, grey, of which networks see means of 4 x 4 pixels (34 x 34)" in facts[1]
    )
    model = EdgeNES(**TINY).fit(tmp_path)
    assert model.image_shape_ == (136, 136, 1)
    assert model.report_["downscale"] == 4
    assert any("(all are 134 x 134)" in note for note in model.report_["notes"])


def test_notes_on_arrays():
    images = np.random.default_rng(0).integers(0, 256, (8, 134, 134), np.uint8)
    model = EdgeNES(**TINY, image_size=8, channels="rgb").fit(images, np.arange(8) % 2)
    notes = " ".join(model.report_["notes"])
    assert model.image_shape_ == (134, 134, 1)
    assert "image_size and channels are not used: arrays are taken as they are" in notes
    assert "networks see 134 x 134 pixels" in notes
    assert "images of 136 x 136 would be seen as 34 x 34" in notes
