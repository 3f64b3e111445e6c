"""Pictures as people have them: every mode, size, orientation and name, by one command."""

from __future__ import annotations

import csv
import os
import struct
import subprocess
import sys
import unicodedata
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from commands import refusal, run_command
from estimator_inputs import IMAGES as DIGITS
from estimator_inputs import SINGLE, TINY, write_pictures
from PIL import Image, ImageDraw
from refusals import file_contents, in_time
from sklearn.exceptions import NotFittedError
from typer.testing import CliRunner

from edgenes import EdgeNES
from edgenes.cli import images as commands
from edgenes.cli.main import app, main
from edgenes.core import EdgenesError
from edgenes.estimator import estimator, places
from edgenes.estimator.pictures import Conversion, PictureSettings, read_pictures
from edgenes.estimator.problems import check_folder
from edgenes.estimator.saved import load_ensemble

TINY_OPTIONS = (
    *("--members", 1, "--candidates", 1, "--search-steps", 2, "--epochs", 1),
    *("--device", "cpu", "--quiet"),
)
ACCENTED = "café"
STORED = {  # how a camera that notes this orientation has stored the pixels
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}

# ---------------------------------------------------------------- the folder of faults


def arrow(height=48, width=36):
    """A red arrow that points up, with a blue dot at its lower left."""
    picture = Image.new("RGB", (36, 48), "white")
    draw = ImageDraw.Draw(picture)
    draw.polygon([(18, 4), (32, 24), (4, 24)], fill="red")
    draw.rectangle([14, 24, 22, 44], fill="red")
    draw.ellipse([2, 34, 10, 42], fill="blue")
    return picture.resize((width, height))


def bomb():
    """A PNG of 67 bytes that claims to have 60,000 x 60,000 pixels."""

    def chunk(kind, content):
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def modes():
    """The arrow as a picture of every mode, with the name of a file for it."""
    grey = np.asarray(arrow().convert("L"))
    pixels = np.array(arrow().convert("RGBA"))
    pixels[(pixels == 255).all(2)] = 0
    transparent = Image.fromarray(pixels)
    return {
        "rgba.png": transparent,
        "la.png": transparent.convert("LA"),
        "palette.png": transparent.quantize(8),
        "cmyk.jpg": arrow().convert("CMYK"),
        "cmyk.tif": arrow().convert("CMYK"),
        "lab.tif": arrow().convert("LAB"),
        "ycbcr.JPG": arrow().convert("YCbCr"),
        "grey.bmp": arrow().convert("L"),
        "bit.pbm": arrow().convert("1", dither=Image.Dither.NONE),
        "deep.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "int.tiff": Image.fromarray(grey.astype(np.int32) * 257),
        "float.tiff": Image.fromarray(grey.astype(np.float32) / 255),
        "odd.png": arrow(47, 35),
        "large.jpeg": arrow(960, 720),
        "tiny.png": arrow(24, 18),
        "wide name, and a\nline.png": arrow(),
        "ромашка 🌼.webp": arrow(),
    }


def write_arrows(folder):
    """Arrows of every orientation, mode and number of frames; the names of their files."""
    folder.mkdir(parents=True)
    for orientation, stored in STORED.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        arrow().transpose(stored).save(folder / f"exif {orientation}.jpg", exif=exif, quality=95)
        arrow().transpose(stored).save(folder / f"exif {orientation}.png", exif=exif)
    for name, picture in modes().items():
        picture.save(folder / name)
    for name in ("frames.gif", "frames.tif", "frames.webp", "frames.png"):
        frames = [Image.new("RGB", (36, 48), colour) for colour in ("green", "black")]
        arrow().save(folder / name, save_all=True, append_images=frames)
    return sorted(path.name for path in folder.iterdir())


def write_harm(folder):
    """What cannot be read as a picture, by name."""
    good = (folder / "large.jpeg").read_bytes()
    (folder / "cut.jpg").write_bytes(good[: len(good) // 2])
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("I am no picture")
    (folder / "postscript.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n")
    (folder / "broken link.png").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.png")
    return {"cut.jpg", "bomb.png", "empty.png", "text.jpg", "postscript.png", "broken link.png"} | {
        "pipe.png"
    }


class FaultyFolder(NamedTuple):
    """A folder with everything in it that people's folders have."""

    pictures: Path
    good: list[str]  # names of the files of the class `arrow` that are pictures
    bad: set[str]  # and of those that cannot be read


def write_faulty_folder(root):
    pictures = root / "pictures"
    good = write_arrows(pictures / "arrow")
    bad = write_harm(pictures / "arrow")
    disc = root / "elsewhere"
    disc.mkdir()
    for i in range(9):
        Image.new("RGB", (20 + i, 31), (0, 20 * i, 255)).save(disc / f"{i}.png")
    (pictures / "linked").symlink_to(disc)
    for name in (unicodedata.normalize(form, ACCENTED) for form in ("NFC", "NFD")):
        (pictures / name / "2021").mkdir(parents=True)
        for i in range(2):
            shade = 50 * i + 40 * len(name)
            Image.new("L", (40, 40), shade).save(pictures / name / "2021" / f"{len(name)}{i}.png")
    (pictures / "linked" / "same.png").write_bytes((pictures / "arrow" / "rgba.png").read_bytes())
    for name in (
        *("arrow/._exif 6.jpg", "arrow/.ipynb_checkpoints/rgba.png", "__MACOSX/arrow/._rgba.png"),
        *("arrow/Thumbs.db", "README.txt", "arrow/phone.heic", "loose.png"),
    ):
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        (pictures / name).write_text("no picture")
    return FaultyFolder(pictures, good, bad)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    return write_faulty_folder(tmp_path_factory.mktemp("faulty"))


@pytest.fixture(scope="module")
def fitted(faulty, tmp_path_factory):
    """(folder of the ensemble, notes): the folder of faults, fitted by one command."""
    out = tmp_path_factory.mktemp("fitted") / "ensemble"
    result = run_command("fit", faulty.pictures, "--out", out, *TINY_OPTIONS)
    return out, result.stderr


@pytest.fixture(scope="module")
def model(fitted):
    return EdgeNES.load(fitted[0], "cpu", verbose=0)


# ---------------------------------------------------------------- check and fit


def test_check_tells_every_problem_at_once(faulty):
    pictures, _, bad = faulty
    with in_time(5):
        output = run_command("check", pictures).stdout
    for problem in (
        f"pictures that cannot be read                 {len(bad)} ",
        "pictures of another size",
        "pictures of other modes",
        "transparent pictures",
        "pictures of 16 or 32 bits",
        "pictures that lie on their side (EXIF)",
        "files of several frames",
        "pictures of formats that are not read",
        "pictures beside the class folders",
        "pictures in folders of class folders",
        "files that are no pictures",
        "hidden files and folders",
        "folders of one name",
        "pictures that are in two classes",
    ):
        assert problem in output, (problem, output)
    first = check_folder(pictures, PictureSettings())[1][0].first
    assert "arrow/bomb.png (it unfolds to a huge number of pixels" in first
    for line in output.splitlines():
        assert line.isprintable()


def test_check_needs_no_torch(faulty):
    code = f"""
import sys
sys.argv = ["edgenes", "check", {str(faulty.pictures)!r}]
from edgenes.cli.main import main
try:
    main()
finally:
    print({{"torch", "sklearn", "pandas", "matplotlib"}} & set(sys.modules))
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("set()\n")


def test_check_refuses_what_a_fit_refuses(tmp_path, monkeypatch):
    write_pictures(tmp_path / "in", DIGITS[:7], ["a"] * 5 + ["b"] * 2)
    result = CliRunner().invoke(app, ["check", str(tmp_path / "in")])
    assert result.exit_code == 1
    assert "classes of fewer than 3 pictures" in result.output
    monkeypatch.setattr(estimator, "fit_ensemble", lambda *_, **__: pytest.fail("it was trained"))
    out = tmp_path / "out"
    assert "classes of fewer than 3" in refusal("fit", tmp_path / "in", "--out", out)
    assert not out.exists()
    with pytest.raises(EdgenesError, match="class b has 2 images"):
        EdgeNES(**SINGLE).fit(tmp_path / "in")


def test_the_folder_of_faults_is_fitted_by_one_command(fitted, faulty):
    out, notes = fitted
    card = (out / "README.md").read_text()
    ensemble = load_ensemble(out, "cpu")
    assert ensemble.classes.tolist() == ["arrow", ACCENTED, "linked"]
    pictures = len(faulty.good) + 4 + 10
    assert sum(ensemble.report["images"].values()) == pictures
    for words in ("cannot be read: 7", "lie on their side", "several frames", "in two classes"):
        assert words in notes
        assert words in card
    assert "hidden" not in notes


def test_each_picture_is_upright(faulty, tmp_path):
    """The contact sheet; each picture on it is the arrow."""
    pictures, good, bad = faulty
    files = [pictures / "arrow" / name for name in [*good, *sorted(bad)]]
    read = read_pictures(files, Conversion(48, 36, 3))
    assert [file.name for file in read.files] == good
    assert {file.name for file in read.faults} == bad
    assert "bomb" in read.faults[pictures / "arrow" / "bomb.png"]
    columns = 12
    sheet = Image.new("RGB", (columns * 40, -(-len(good) // columns) * 52), "grey")
    upright = np.asarray(arrow().convert("L"), float)
    for i, (name, image) in enumerate(zip(good, read.images)):
        sheet.paste(Image.fromarray(image), (40 * (i % columns) + 2, 52 * (i // columns) + 2))
        likeness = np.corrcoef(image.mean(2).flat, upright.flat)[0, 1]
        assert likeness > 0.85, (name, likeness)
    sheet.save(tmp_path / "contact_sheet.png")


@pytest.mark.parametrize("resize", ["crop", "pad"])
def test_sizes(tmp_path, resize):
    """A square in the middle of a wide picture keeps its shape."""
    picture = Image.new("RGB", (200, 100), "green")
    ImageDraw.Draw(picture).rectangle([75, 25, 125, 75], fill="red")
    picture.save(tmp_path / "x.png")
    image = read_pictures([tmp_path / "x.png"], Conversion(40, 40, 3, resize)).images[0]
    red = image[..., 0] > 128
    assert red.any(0).sum() == red.any(1).sum() == {"crop": 20, "pad": 10}[resize]
    assert (image[0, 0] == (0, 0, 0)).all() == (resize == "pad")


def test_options_of_pictures(faulty, tmp_path):
    options = ["--image-size", "16x24", "--resize", "pad", "--channels", "grey"]
    out = tmp_path / "ensemble"
    run_command("fit", faulty.pictures, "--out", out, *options, "--balanced", *TINY_OPTIONS)
    loaded = EdgeNES.load(out)
    assert loaded.image_shape_ == (16, 24, 1)
    assert loaded.conversion_ == Conversion(16, 24, 1, "pad")
    assert loaded.class_weight == "balanced"
    other = tmp_path / "x"
    line = refusal("fit", faulty.pictures, "--out", other, "--image-size", "7")
    assert "is 7 x 7: give even numbers" in line
    for wrong in (["--image-size", "big"], ["--resize", "x"], ["--channels", "x"]):
        assert wrong[1] in refusal("check", faulty.pictures, *wrong)


def test_unreadable_pictures_can_stop_a_fit(faulty, tmp_path):
    with pytest.raises(EdgenesError, match=r"cannot read the picture .*arrow/"):
        EdgeNES(**SINGLE, unreadable="error").fit(faulty.pictures)
    line = refusal("fit", faulty.pictures, "--out", tmp_path / "x", "--unreadable", "error")
    assert "pictures that cannot be read" in line


def write_classes(root, *classes):
    """Four different pictures of each of these classes."""
    labels = np.repeat(classes, 4)
    return write_pictures(root, DIGITS[: len(labels)], labels)


def test_names_that_are_no_text_do_not_lose_a_fit(tmp_path, capsys):
    """Of a file in Latin-1, and of a picture whose name would colour a terminal."""
    pictures = write_classes(tmp_path / "in", "cat", "mouse")
    (pictures / "cat" / os.fsdecode(b"caf\xe9.txt")).touch()
    (pictures / "mouse" / "\x1b[31mred.png").touch()
    model = EdgeNES(**SINGLE | {"verbose": 1}).fit(pictures)
    card = (model.save(tmp_path / "out") / "README.md").read_text()
    assert EdgeNES.load(tmp_path / "out").report_["notes"] == model.report_["notes"]
    for text in (capsys.readouterr().out, card.replace("&#91;", "[").replace("&#92;", "\\")):
        assert r"cat/caf\udce9.txt" in text
        assert r"mouse/\x1b[31mred.png" in text
        assert "\x1b" not in text
    with pytest.warns(match=r"first \S*/\\x1b\[31mred.png"):
        model.predict(pictures)


def test_a_class_may_be_called_train(tmp_path):
    pictures = write_classes(tmp_path / "in", "bus", "car", "train")
    run_command("fit", pictures, "--out", tmp_path / "out", *TINY_OPTIONS)
    assert EdgeNES.load(tmp_path / "out").classes_.tolist() == ["bus", "car", "train"]
    assert " of 12 test images" in run_command("evaluate", tmp_path / "out", pictures).stdout
    write_classes(pictures / "train", "steam")
    for command in (["check", pictures], ["fit", pictures, "--out", tmp_path / "x"]):
        assert "class folder bus beside train, which has folders" in refusal(*command)


def test_a_list_loses_no_class(tmp_path):
    pictures = write_classes(tmp_path / "in", "cat", "mouse")
    files = sorted(pictures.glob("*/*.png"))
    labels = [file.parent.name for file in files]
    model = EdgeNES(**SINGLE).fit(files, labels)
    with pytest.raises(EdgenesError, match="can be read only once"):
        EdgeNES(**SINGLE).fit(pictures.glob("*/*.png"), labels)
    for file in (pictures / "cat").iterdir():
        file.write_text("no picture")
    for method in (EdgeNES(**SINGLE).fit, model.evaluate, model.score):
        with pytest.raises(EdgenesError, match="no picture of the class cat can be read: replace"):
            method(files, labels)


# ---------------------------------------------------------------- every method takes pictures


def test_predict_takes_folders_files_and_lists(model, faulty):
    pictures, good, _ = faulty
    one = pictures / "arrow" / "exif 6.jpg"
    with pytest.warns(match="9 pictures cannot be read"):  # one lies in no class
        of_folder = model.predict_proba(pictures)
    with pytest.warns(match="8 pictures cannot be read"):
        answers = model.predict(str(pictures / "arrow"))
    read = model.read(pictures)
    assert len(of_folder) == len(read.files) == len(good) + 4 + 10
    assert "linked" in {file.parent.name for file in read.files}
    assert np.allclose(model.predict_proba(read.images), of_folder, atol=1e-6)
    assert len(answers) == len(good)
    place = read.files.index(one)
    for form in (one, str(one), [one], [str(one)], np.array([str(one)]), pd.Series([str(one)])):
        assert np.allclose(model.predict_proba(form), of_folder[[place]], atol=1e-5)
    upright = model.read(pictures / "arrow" / "exif 3.png").images
    assert abs(upright.astype(int) - model.read(one).images).mean() < 12  # JPEG
    with pytest.raises(EdgenesError, match="cannot read the picture"):
        model.predict(pictures / "arrow" / "text.jpg")
    with pytest.raises(EdgenesError, match="holds no picture"):
        model.predict(pictures / "__MACOSX")


def test_a_share_that_is_none_is_refused_before_pictures_are_judged(fitted, faulty, monkeypatch):
    monkeypatch.setattr(commands, "_predict_files", lambda *_: pytest.fail("they were judged"))
    assert "reject is 2.0" in refusal("predict", fitted[0], faulty.pictures, "--reject", 2)


def test_the_table_has_a_row_for_each_picture(fitted, faulty, tmp_path):
    pictures, good, bad = faulty
    result = run_command("predict", fitted[0], pictures, "--out", tmp_path / "answers.csv")
    with open(tmp_path / "answers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = {Path(row["file"]).name for row in rows}
    assert {*good, *bad} < names
    assert not any(name.startswith(".") for name in names)
    empty = {Path(row["file"]).name for row in rows if not row["label"]}
    assert empty == {*bad, "loose.png", "phone.heic"}
    assert result.stderr.count("note: no answer for") == len(empty)


def test_labelled_pictures_are_read_alike_by_all(model, fitted, faulty):
    pictures, good, bad = faulty
    told = f"^{len(bad)} pictures cannot be read and have no answer, first "
    with pytest.warns(match=told) as of_evaluate:
        metrics = model.evaluate(pictures)
    with pytest.warns(match=told) as of_score:
        share = model.score(pictures)
    assert {warning.filename for warning in (*of_evaluate, *of_score)} == {__file__}
    assert share == pytest.approx(metrics["accuracy_percent"] / 100, abs=1e-6)
    printed = run_command("evaluate", fitted[0], pictures)
    assert f"note: pictures that cannot be read: {len(bad)}, first arrow/" in printed.stderr
    assert f"accuracy_percent: {metrics['accuracy_percent']:.4g} " in printed.stdout
    read = model.read(pictures)
    labels = [file.relative_to(pictures).parts[0] for file in read.files]
    assert len(labels) == len(good) + 4 + 10
    of_arrays = model.evaluate(read.images, labels)
    assert of_arrays["nll_nats"] == pytest.approx(metrics["nll_nats"], abs=1e-4)
    of_list = model.evaluate(read.files, np.array(labels))
    assert of_list["nll_nats"] == pytest.approx(metrics["nll_nats"], abs=1e-4)


def test_a_list_of_pictures_with_labels_can_be_fitted(faulty):
    pictures, good, _ = faulty
    files = [pictures / "arrow" / name for name in [*good[:8], "text.jpg"]]
    labels = np.arange(9) % 2
    model = EdgeNES(**SINGLE).fit(files, labels)
    assert sum(model.report_["images"].values()) == 8
    assert model.classes_.dtype == labels.dtype
    with pytest.raises(EdgenesError, match="9 pictures, and labels of shape"):
        EdgeNES(**SINGLE).fit(files, labels[:3])


def test_a_saved_ensemble_keeps_the_conversion(model, faulty, tmp_path):
    again = EdgeNES.load(model.save(tmp_path / "again"))
    one = faulty.pictures / "arrow" / "large.jpeg"
    assert np.array_equal(again.predict_proba(one), model.predict_proba(one))
    assert "turned upright" in (tmp_path / "again" / "README.md").read_text()
    extra = {"card.md": ""}
    torch.export.load(model.export(tmp_path / "x.pt2"), extra_files=extra)
    height, width, _ = model.image_shape_
    assert f"{height} x {width} pixels" in extra["card.md"]
    assert f"arrow, {ACCENTED}, linked" in extra["card.md"]


def test_export_prints_nothing_of_torch(model, tmp_path):
    code = "import sys; from edgenes import EdgeNES; EdgeNES.load(sys.argv[1]).export(sys.argv[2])"
    folder = model.save(tmp_path / "e")
    process = subprocess.run(
        [sys.executable, "-c", code, folder, tmp_path / "x.pt2"], capture_output=True, text=True
    )
    assert (process.returncode, process.stderr, process.stdout) == (0, "", "")


# ---------------------------------------------------------------- arrays

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (24, 8, 8), dtype=np.uint8)
LABELS = np.arange(24) % 2


@pytest.fixture(scope="module")
def of_arrays():
    return EdgeNES(**SINGLE).fit(IMAGES, LABELS)


def test_one_image_is_not_many(model, of_arrays):
    height, width, channels = model.image_shape_
    with pytest.raises(EdgenesError, match=r"this is one image .* give x\[None\]"):
        model.predict(np.zeros((height, width, channels), np.uint8))
    with pytest.raises(EdgenesError, match=r"one image"):
        of_arrays.predict(IMAGES[0])
    assert of_arrays.predict(IMAGES[:1]).shape == (1,)
    for method in (of_arrays.predict, of_arrays.predict_uncertainty):
        with pytest.raises(EdgenesError, match=r"give one image as x\[None\]|one image"):
            method(np.zeros((8, 8, 3), np.uint8))


def test_a_table_is_no_image(of_arrays):
    table = pd.DataFrame(np.zeros((4, 3), np.uint8), columns=["a", "b", "c"])
    with pytest.raises(EdgenesError, match=r"images have shape \(4, 3\)"):
        of_arrays.predict(table)


def test_a_single_class_is_noted():
    model = EdgeNES(**SINGLE).fit(IMAGES, ["cat"] * len(IMAGES))
    assert any("a single class, cat" in note for note in model.report_["notes"])


def test_lists_of_whole_numbers_are_images(of_arrays):
    nested = IMAGES.tolist()
    assert np.array_equal(of_arrays.predict_proba(nested), of_arrays.predict_proba(IMAGES))
    again = EdgeNES(**SINGLE).fit(nested, LABELS)
    assert np.array_equal(again.predict_proba(IMAGES), of_arrays.predict_proba(IMAGES))


@pytest.mark.parametrize(
    ("images", "advice"),
    [
        (IMAGES.astype(np.int64), r"x\.astype\('uint8'\) for these"),
        (IMAGES.astype(np.int64) * 16, "from 0 to 4080, not uint8"),
        ((IMAGES.astype(int) * 16).tolist(), "from 0 to 4080, not uint8"),
        (IMAGES > 9, r"x \* np\.uint8\(255\)"),
        (IMAGES / 255, r"\(255 \* x\)\.round"),
    ],
)
def test_advice_fits_the_pixels(of_arrays, images, advice):
    for call in (of_arrays.predict, lambda X: EdgeNES(**SINGLE).fit(X, LABELS)):
        with pytest.raises(EdgenesError, match=advice):
            call(images)


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    "labels",
    [
        LABELS.astype(np.int8),
        LABELS.astype(np.uint64),
        LABELS.astype(bool),
        LABELS.astype(float),
        LABELS.astype(str),
        LABELS.astype(str).astype(object),
        pd.Series(LABELS, dtype="Int64"),
        pd.Categorical(np.array(["no", "yes"])[LABELS]),
    ],
    ids=lambda labels: str(labels.dtype),
)
def test_labels_come_back_as_they_were_given(labels, tmp_path):
    model = EdgeNES(**SINGLE).fit(IMAGES, labels)
    again = EdgeNES.load(model.save(tmp_path))
    given = np.asarray(labels)
    for answers in (model.predict(IMAGES), again.predict(IMAGES)):
        assert answers.dtype == given.dtype
        assert set(answers.tolist()) <= set(given.tolist())
    accuracy = model.evaluate(IMAGES, labels)["accuracy_percent"]
    assert model.score(IMAGES, labels) == pytest.approx(accuracy / 100, abs=1e-6)
    as_text = [str(label) for label in given]
    assert again.evaluate(IMAGES, as_text)["accuracy_percent"] == accuracy
    assert again.score(IMAGES, as_text) == pytest.approx(accuracy / 100, abs=1e-6)


def test_score_and_evaluate_have_one_rule_for_labels(of_arrays):
    accuracy = of_arrays.score(IMAGES, LABELS)
    for other in (LABELS.astype(float), LABELS.astype(str), [f" {label} " for label in LABELS]):
        assert of_arrays.score(IMAGES, other) == accuracy
        assert of_arrays.evaluate(IMAGES, other)["accuracy_percent"] / 100 == pytest.approx(
            accuracy
        )
    unseen = np.where(LABELS == 1, 7, LABELS)
    assert of_arrays.score(IMAGES, unseen) <= 0.5  # whatever is answered is wrong
    with pytest.raises(EdgenesError, match="was not among those of fit"):
        of_arrays.evaluate(IMAGES, unseen)
    weights = np.where(of_arrays.predict(IMAGES) == LABELS, 1.0, 0.0)
    assert of_arrays.score(IMAGES, LABELS, weights) == 1
    with pytest.raises(EdgenesError, match="sample_weight"):
        of_arrays.score(IMAGES, LABELS, weights[:3])


def test_one_name_in_two_forms_is_one_class():
    names = [unicodedata.normalize(form, ACCENTED) for form in ("NFC", "NFD")]
    labels = np.array([*names, "tea"])[np.arange(24) % 3]
    model = EdgeNES(**SINGLE).fit(IMAGES, labels)
    assert len(model.classes_) == 2
    assert model.evaluate(IMAGES, labels)["members"] == 1
    assert not any("look alike" in note for note in model.report_["notes"])


def test_a_class_name_that_is_no_text_is_refused_at_once(tmp_path):
    write_pictures(tmp_path, DIGITS[:8], ["a"] * 4 + [os.fsdecode(b"caf\xe9")] * 4)
    _, problems = check_folder(tmp_path, PictureSettings())
    (problem,) = [problem for problem in problems if problem.is_refused]
    assert "no text in UTF-8: 1, first 'caf\\udce9'; refused; rename" in problem.note
    assert "rename the folder" in refusal("fit", tmp_path, "--out", tmp_path.parent / "out")
    with pytest.raises(EdgenesError, match="rename it"):
        EdgeNES(**SINGLE).fit(tmp_path)


def test_names_that_look_alike_are_told():
    labels = np.array(["cat", "Cat", "dog"])[np.arange(24) % 3]
    model = EdgeNES(**SINGLE).fit(IMAGES, labels)
    assert len(model.classes_) == 3
    assert any("look alike" in note for note in model.report_["notes"])


def test_evaluating_before_a_fit():
    for method in ("evaluate", "score"):
        with pytest.raises(NotFittedError):
            getattr(EdgeNES(), method)(IMAGES, LABELS)
    with pytest.raises(NotFittedError):
        EdgeNES().predict("pictures")


def test_a_small_class_keeps_its_images():
    """A fifth of each class validates, so that a class of three trains with two."""
    labels = np.repeat([0, 1], [200, 3])
    images = RNG.integers(0, 256, (203, 4, 4), dtype=np.uint8)
    data, _ = estimator.to_data(images, labels, 0)
    assert np.bincount(data.val.labels).tolist() == [40, 1]


# ---------------------------------------------------------------- weights and seeds


def test_class_weights_and_the_note_on_imbalance():
    labels = np.repeat([0, 1], [66, 6])
    images = (RNG.integers(0, 160, (72, 8, 8)) + 60 * labels[:, None, None]).astype(np.uint8)
    longer = SINGLE | {"epochs": 8}
    plain = EdgeNES(**longer).fit(images, labels)
    assert any("under a tenth" in note for note in plain.report_["notes"])
    balanced = EdgeNES(**longer, class_weight="balanced").fit(images, labels)
    assert not any("under a tenth" in note for note in balanced.report_["notes"])
    common = images[labels == 0]
    assert balanced.predict_proba(common)[:, 1].mean() > plain.predict_proba(common)[:, 1].mean()
    by_hand = EdgeNES(**longer, class_weight={0: 72 / 132, "1": 72 / 12}).fit(images, labels)
    assert np.array_equal(by_hand.predict_proba(images), balanced.predict_proba(images))
    with pytest.raises(EdgenesError, match="class_weight has the label 5"):
        EdgeNES(**SINGLE, class_weight={5: 2}).fit(images, labels)


def test_random_state_is_the_seed(of_arrays, tmp_path):
    other = EdgeNES(**SINGLE, seed=3).fit(IMAGES, LABELS).predict_proba(IMAGES)
    named = EdgeNES(**SINGLE, random_state=3).fit(IMAGES, LABELS)
    assert np.array_equal(named.predict_proba(IMAGES), other)
    assert not np.array_equal(of_arrays.predict_proba(IMAGES), other)
    assert EdgeNES.load(named.save(tmp_path)).seed == 3
    drawn = EdgeNES(**SINGLE, random_state=np.random.RandomState(0)).fit(IMAGES, LABELS)
    assert drawn.seed_ == np.random.RandomState(0).randint(2**31)
    with pytest.raises(EdgenesError, match="random_state is 'x'"):
        EdgeNES(**SINGLE, random_state="x").fit(IMAGES, LABELS)


# ---------------------------------------------------------------- places


@pytest.fixture
def notes(tmp_path):
    """A folder of somebody's notes, with names that an ensemble has, too."""
    folder = tmp_path / "notes"
    folder.mkdir()
    for name in ("README.md", "optimum.json", "member-3.json"):
        (folder / name).write_text("mine")
    return folder


def test_nothing_of_anybody_is_written_over(of_arrays, notes, faulty, monkeypatch):
    before = file_contents(notes)
    monkeypatch.setattr(estimator, "fit_ensemble", lambda *_, **__: pytest.fail("it was trained"))
    with pytest.raises(EdgenesError, match=r"holds other things \(README\.md, member-3\.json\)"):
        of_arrays.save(notes)
    assert "holds other things" in refusal("fit", faulty.pictures, "--out", notes)
    for place in (notes / "README.md", notes / "README.md" / "deep"):
        with pytest.raises(EdgenesError, match=r"README\.md is a file"):
            of_arrays.save(place)
        assert "is a file" in refusal("fit", faulty.pictures, "--out", place)
    inside = faulty.pictures / "ensemble"
    assert "lies in the folder" in refusal("fit", faulty.pictures, "--out", inside)
    assert file_contents(notes) == before


def test_an_ensemble_is_replaced_only_where_that_is_asked_for(of_arrays, faulty, tmp_path):
    out = of_arrays.save(tmp_path / "ensemble")
    before = file_contents(out)
    assert "holds an ensemble" in refusal("fit", faulty.pictures, "--out", out)
    assert file_contents(out) == before
    run_command("fit", faulty.pictures, "--out", out, "--overwrite", *TINY_OPTIONS)
    assert file_contents(out) != before


def test_only_files_of_the_former_ensemble_are_removed(of_arrays, tmp_path):
    two = EdgeNES(**TINY).fit(IMAGES, LABELS)
    two.save(tmp_path)
    (tmp_path / "member-7.json").write_text("mine")
    of_arrays.save(tmp_path)
    assert (tmp_path / "member-7.json").read_text() == "mine"
    assert not (tmp_path / "member-1.json").exists()
    assert not (tmp_path / "member-1.svg").exists()


def test_the_tilde_is_the_home_folder(of_arrays, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert of_arrays.save("~/a") == tmp_path / "a"
    assert EdgeNES.load("~/a").members == 1
    Image.fromarray(IMAGES[0]).save(tmp_path / "x.png")
    run_command("predict", "~/a", "~/x.png", "--out=~/answers.csv")
    assert (tmp_path / "answers.csv").exists()
    assert not Path("~").exists()


def test_an_ensemble_goes_into_a_new_folder_by_default(faulty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_command("fit", faulty.pictures, "--image-size", "8", *TINY_OPTIONS)
    assert (tmp_path / "ensemble" / "ensemble.json").exists()
    assert "is there already" in refusal("fit", faulty.pictures, *TINY_OPTIONS)


def test_a_full_disk_is_found_before_the_fit(faulty, tmp_path, monkeypatch):
    usage = places.shutil.disk_usage
    monkeypatch.setattr(places.shutil, "disk_usage", lambda path: usage(path)._replace(free=10**6))
    monkeypatch.setattr(estimator, "fit_ensemble", lambda *_, **__: pytest.fail("it was trained"))
    assert "1 MiB are free" in refusal("fit", faulty.pictures, "--out", tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [EdgenesError, OSError, UnicodeError])
def test_what_was_trained_is_kept_whatever_fails(of_arrays, tmp_path, monkeypatch, kind):
    save = EdgeNES.save

    def full(model, folder):
        if Path(folder) == tmp_path / "out":
            raise kind("cannot write: No space left on device")
        return save(model, folder)

    monkeypatch.setattr(EdgeNES, "save", full)
    monkeypatch.setattr(commands.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(EdgenesError, match=r"No space .*; the ensemble that was trained lies in"):
        commands._save(of_arrays, tmp_path / "out")
    (rescue,) = tmp_path.iterdir()
    loaded = EdgeNES.load(rescue)
    assert np.array_equal(loaded.predict_proba(IMAGES), of_arrays.predict_proba(IMAGES))


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit", "nowhere"],
        ["fit", "PICTURES", "--members", "5", "--candidates", "2"],
        ["predict", "nowhere", "PICTURES"],
        ["evaluate", "nowhere", "PICTURES"],
        ["sample", "nowhere", "--lambda", "2"],
        ["draw", "x.json", "--out", "x.gif"],
        ["export", "nowhere", "--out", "x.pt2"],
        ["check", "nowhere"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_mistakes_are_told_before_anything_heavy_is_imported(arguments, faulty, tmp_path):
    arguments = [str(faulty.pictures) if word == "PICTURES" else word for word in arguments]
    code = f"""
import sys
sys.argv = ["edgenes", *{arguments!r}]
from edgenes.cli.main import main
try:
    main()
finally:
    print("torch" in sys.modules)
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert process.returncode == 2, process.stderr
    assert process.stderr.startswith("edgenes: ")
    assert process.stderr.count("\n") == 1
    assert process.stdout == "False\n"


def test_a_fit_says_what_it_does_before_libraries_are_loaded(faulty, tmp_path):
    code = f"""
import sys
sys.argv = ["edgenes", "fit", {str(faulty.pictures)!r}]
from edgenes.cli import images
from edgenes.cli.main import main

def say(what):
    sys.exit(f"{{what}}, {{'torch' in sys.modules}}")

images.say_at_once = say
main()
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert process.stderr == "reading pictures, False\n"


@pytest.mark.parametrize("what", ["torchvision::nms", "other"])
def test_libraries_that_do_not_fit_together_are_told(what, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError(f"operator {what} does not exist")

    monkeypatch.setattr(commands, "_saved_folder", broken)
    monkeypatch.setattr(sys, "argv", ["edgenes", "sample", "x", "--lambda", "1"])
    with pytest.raises(SystemExit if what != "other" else RuntimeError):
        main()
    assert ("install both from one index" in capsys.readouterr().err) == (what != "other")
