"""The estimator on tiny budgets: scikit-learn's conventions, shapes, saved files, seeds."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from estimator_inputs import (
    IMAGES,
    LABELS,
    SINGLE,
    TINY,
    change_manifest,
    same_answers,
    write_pictures,
)
from refusals import in_time
from sklearn.base import clone
from sklearn.model_selection import cross_val_score

import edgenes
from edgenes import EdgeNES
from edgenes.algorithm import Candidate
from edgenes.core import EdgenesError, write_atomic, write_json
from edgenes.estimator import estimator, saved
from edgenes.estimator.fit import run_retraining
from edgenes.estimator.parameters import FitParameters
from edgenes.estimator.planning import plan_fit
from edgenes.estimator.progress import FitProgress
from edgenes.neighbours import random_genotype
from edgenes.readers import load_data

FEW_IMAGES = IMAGES[:200]
FEW_LABELS = np.array([f"digit {label}" for label in LABELS[:200]])


@pytest.fixture(scope="module")
def model():
    return EdgeNES(**TINY).fit(FEW_IMAGES, FEW_LABELS)


@pytest.fixture(scope="module")
def former_model():
    return EdgeNES(**SINGLE, seed=5).fit(FEW_IMAGES, FEW_LABELS)


@pytest.fixture(scope="module")
def saved_model(model, tmp_path_factory):
    """The folder of the saved model, which no test changes."""
    return model.save(tmp_path_factory.mktemp("saved") / "ensemble")


@pytest.fixture(scope="module")
def saved_former_model(former_model, tmp_path_factory):
    """The folder of the saved former model, which no test changes."""
    return former_model.save(tmp_path_factory.mktemp("saved") / "former")


@pytest.fixture
def folder(saved_model, tmp_path):
    """A copy of the saved model."""
    return shutil.copytree(saved_model, tmp_path / "ensemble")


def test_the_package_offers_the_estimator_alone():
    assert edgenes.EdgeNES is EdgeNES
    assert not hasattr(edgenes, "nothing")


# ---------------------------------------------------------------- conventions of scikit-learn


def test_same_seed_same_predictions_and_another_seed_others(model):
    assert same_answers(clone(model).fit(FEW_IMAGES, FEW_LABELS), model)
    other = clone(model).set_params(seed=1).fit(FEW_IMAGES, FEW_LABELS)
    assert not same_answers(other, model)


def test_fit_changes_nothing_but_what_is_learned():
    images = FEW_IMAGES.copy()
    images.setflags(write=False)
    fresh = EdgeNES(**TINY)
    parameters = fresh.get_params()
    names = set(vars(fresh))
    assert fresh.fit(images, list(FEW_LABELS)) is fresh
    assert fresh.get_params() == parameters
    assert all(name.endswith("_") for name in set(vars(fresh)) - names)
    assert fresh.classes_.tolist() == sorted(set(FEW_LABELS))
    assert fresh.n_features_in_ == 64


def test_predictions_do_not_depend_on_order_and_subset(model):
    probabilities = model.predict_proba(FEW_IMAGES)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-6)
    labels = model.classes_[probabilities.argmax(1)]
    assert (model.predict(FEW_IMAGES) == labels).all()
    order = np.random.default_rng(0).permutation(len(FEW_IMAGES))
    assert np.allclose(model.predict_proba(FEW_IMAGES[order]), probabilities[order], atol=1e-5)
    parts = [model.predict_proba(part) for part in np.array_split(FEW_IMAGES, 3)]
    assert np.allclose(np.concatenate(parts), probabilities, atol=1e-5)
    assert same_answers(pickle.loads(pickle.dumps(model)), model)
    assert np.array_equal(model.predict_proba(FEW_IMAGES), probabilities)


def test_labels_in_a_column_are_refused():
    with pytest.raises(EdgenesError, match="shape"):
        EdgeNES(**TINY).fit(FEW_IMAGES, FEW_LABELS[:, None])


def test_cross_validation():
    scores = cross_val_score(EdgeNES(**TINY), FEW_IMAGES, FEW_LABELS, cv=2, error_score="raise")
    assert scores.shape == (2,)
    assert ((scores >= 0) & (scores <= 1)).all()


# ---------------------------------------------------------------- images and labels


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1), (64, 64, 3), (6, 10, 5)])
def test_shapes(shape, tmp_path):
    images = np.random.default_rng(0).integers(256, size=(30, *shape), dtype=np.uint8)
    labels = np.arange(30) % 3 == 0
    model = EdgeNES(**SINGLE).fit(images, labels)
    assert model.predict(images).dtype == bool
    assert model.image_shape_ == (*shape, 1)[:3]
    again = EdgeNES.load(model.save(tmp_path))
    assert np.array_equal(again.predict_proba(images), model.predict_proba(images))
    assert again.classes_.dtype == bool
    with torch.no_grad():
        logits = model.members_[0](torch.rand(2, model.image_shape_[2], *shape[:2]))
    assert logits.shape == (2, 2)


@pytest.mark.parametrize("sizes", [(5,), (3, 3), (3,) * 10, (3, 90)])
def test_few_images_per_class_are_enough(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    model = EdgeNES(**TINY).fit(IMAGES[: len(labels)], labels)
    assert model.predict_proba(IMAGES[:4]).shape == (4, len(sizes))
    assert model.evaluate(IMAGES[:1], labels[:1])["members"] == 2


@pytest.mark.parametrize("sizes", [(4,), (2, 9), (1,) * 10])
def test_too_few_images_per_class_are_refused(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    with pytest.raises(EdgenesError, match=r"give at least [35] of each class"):
        EdgeNES(**TINY).fit(IMAGES[: len(labels)], labels)


@pytest.mark.parametrize(
    "labels",
    [
        ["a\udcff", "b"] * 10,
        np.array(["2026-01-01", "2026-01-02"] * 10, "M8[s]"),
        [b"a", b"b"] * 10,
    ],
)
def test_what_cannot_be_saved_is_refused_before_training(labels, monkeypatch):
    def train(*_, **__):
        pytest.fail("it was trained")

    monkeypatch.setattr(estimator, "fit_ensemble", train)
    with pytest.raises(EdgenesError, match="labels cannot be used"):
        EdgeNES(**TINY).fit(IMAGES[:20], labels)


@pytest.fixture
def folder_of_pictures(tmp_path):
    """Six pictures of each of two classes."""
    return write_pictures(tmp_path / "pictures", IMAGES[:12], ["cat"] * 6 + ["dog"] * 6)


def test_a_folder_is_the_arrays_of_its_pictures(folder_of_pictures):
    from_folder = EdgeNES(**TINY).fit(folder_of_pictures)
    from_arrays = EdgeNES(**TINY).fit(IMAGES[:12], np.repeat(["cat", "dog"], 6))
    assert from_folder.report_["notes"] == from_arrays.report_["notes"]
    assert same_answers(from_folder, from_arrays)


def test_what_is_not_read_in_a_folder_is_noted(folder_of_pictures, tmp_path, capsys):
    """A text file and a picture outside a class are noted.

    What operating systems leave behind is not.
    """
    for name in ("cat/notes.txt", "cat/.DS_Store", "dog/Thumbs.db", ".hidden.png", "loose.png"):
        (folder_of_pictures / name).write_text("text")
    (folder_of_pictures / "dog" / "more").mkdir()
    model = EdgeNES(**TINY | {"verbose": 1}).fit(folder_of_pictures)
    notes = [
        "pictures beside the class folders: 1, first loose.png; left out; put them into a class",
        "files that are no pictures: 1, first cat/notes.txt; left out",
    ]
    assert [note for note in model.report_["notes"] if "left out" in note] == notes
    assert model.report_["images"] == {"train": 9, "val": 3}
    assert f"note: {notes[0]}" in capsys.readouterr().out
    card = (model.save(tmp_path / "ensemble") / "README.md").read_text()
    assert notes[0] in card


def test_a_picture_that_cannot_be_read_is_left_out(folder_of_pictures):
    (folder_of_pictures / "dog" / "broken.png").write_text("no picture")
    model = EdgeNES(**TINY).fit(folder_of_pictures)
    faults = "pictures that cannot be read: 1, first dog/broken"
    assert any(note.startswith(faults) for note in model.report_["notes"])
    assert sum(model.report_["images"].values()) == 12


def test_a_fit_does_not_write_into_its_pictures(tmp_path):
    from edgenes.cli.images import fit

    message = "is the folder of the pictures: give another one with --out"
    with pytest.raises(EdgenesError, match=message):
        fit(tmp_path, tmp_path / "." / "")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- saved ensembles


def test_saved_files_are_the_model(model, tmp_path):
    again = EdgeNES.load(model.save(tmp_path))
    for member, loaded in zip(model.members_, again.members_):
        weights = loaded.state_dict()
        for name, tensor in member.state_dict().items():
            assert torch.equal(tensor, weights[name])
    for method in ("predict_proba", "member_proba", "predict", "predict_uncertainty"):
        answers = getattr(again, method)(IMAGES)
        assert np.array_equal(getattr(model, method)(IMAGES), answers)
    assert again.report_ == model.report_
    assert again.optimum_ == model.optimum_
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".pkl", ".pt", ".tmp")]
    assert model.save(tmp_path) == tmp_path  # over itself


def test_names_of_the_saved_files_and_of_what_they_hold(model, folder):
    """Folders that were saved by earlier versions are read by these names."""
    from safetensors.numpy import load_file

    manifest = json.loads((folder / "ensemble.json").read_text())
    assert set(manifest) == {
        "classes",
        "files",
        "format",
        "hash",
        "image_shape",
        "params",
        "report",
        "version",
    }
    assert set(manifest["files"]) == {
        "weights.safetensors",
        "optimum.json",
        "member-0.json",
        "member-1.json",
    }
    assert manifest["format"] == 1
    assert set(manifest["params"]) == set(model.get_params()) - {"random_state"}
    names = set(load_file(folder / "weights.safetensors"))
    assert {"hypernetwork.vectors", "hypernetwork.segments"} < names
    for member in ("member-0", "member-1"):
        for name in ("mean", "std", "net.stem.0.weight", "net.head.weight", "net.head.bias"):
            assert f"{member}.{name}" in names


@pytest.mark.parametrize(
    "name",
    ["ensemble.json", "weights.safetensors", "member-1.json", "optimum.json"],
)
def test_damaged_file_is_named(folder, name):
    path = folder / name
    good = path.read_bytes()
    damaged = (
        b"",
        good[: len(good) // 2],
        good[:-2] + b"xx",
        b"[]",
        b"null",
        good.replace(b"3", b"4"),
    )
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(EdgenesError, match=name):
            EdgeNES.load(folder)
    path.unlink()
    with pytest.raises(EdgenesError, match=name):
        EdgeNES.load(folder)


def set_entry(document: dict, place: tuple, value: object) -> None:
    """Gives an entry another value; None removes it."""
    holder = document
    for step in place[:-1]:
        holder = holder[step]
    if value is None:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("files", "../outside"), "0" * 64),
        (("files", "a\0b"), "0" * 64),
        (("files", "optimum.json"), "../x"),
        (("files",), []),
        (("files",), {}),
        (("params", "members"), 10**12),
        (("params", "members"), 0),
        (("params", "members"), 1),
        (("params", "downscale"), "x"),
        (("params", "time_budget"), "x"),
        (("params", "more"), 1),
        (("params",), []),
        (("report", "network", "layers"), 10**9),
        (("report", "network", "channels"), 10**9),
        (("report", "network"), None),
        (("report", "downscale"), 10**6),
        (("report", "downscale"), "x"),
        (("report", "spent"), None),
        (("report", "validation"), "x"),
        (("report", "candidates"), [[]]),
        (("report", "calibration"), 3),
        (("report", "images"), None),
        (("report",), "x"),
        (("image_shape",), [8, 8]),
        (("image_shape",), [8, 8, 10**9]),
        (("classes", "values"), [10**30, 1]),
        (("classes", "values"), ["b", "a"]),
        (("classes", "dtype"), "<M8[s]"),
        (("classes", "dtype"), "<U999999999"),
        (("classes",), None),
    ],
)
def test_manifest_with_the_right_hash_that_is_nonsense_is_one_line(folder, place, value):
    change_manifest(folder, lambda manifest: set_entry(manifest, place, value))
    with pytest.raises(EdgenesError, match=r"was changed after|cannot build"):
        EdgeNES.load(folder)


def test_the_version_in_a_manifest_is_of_no_importance(folder):
    change_manifest(folder, lambda manifest: set_entry(manifest, ("version",), {}))
    assert EdgeNES.load(folder).report_


@pytest.mark.parametrize("name", ["weights.safetensors", "ensemble.json"])
def test_pipe_in_place_of_a_file_is_refused(folder, name):
    path = folder / name
    path.unlink()
    os.mkfifo(path)
    with in_time(), pytest.raises(EdgenesError, match=name):
        EdgeNES.load(folder)


@pytest.mark.parametrize(
    ("step", "successes"),
    [("write_atomic", 3), ("write_json", 0), ("replace", 0), ("replace", 2)],
    ids=["the fourth file", "the manifest", "the first renaming", "the third renaming"],
)
@pytest.mark.parametrize("error", [EdgenesError, KeyboardInterrupt])
def test_saving_over_an_ensemble_leaves_one_of_the_two(
    model, former_model, saved_former_model, tmp_path, monkeypatch, step, successes, error
):
    """A full disk (an error) or a kill (no clean-up) when a file is written or renamed."""
    folder = shutil.copytree(saved_former_model, tmp_path / "ensemble")
    steps = {"write_atomic": write_atomic, "write_json": write_json, "replace": os.replace}
    works = steps[step]
    calls = []

    def fail_in_the_end(*arguments):
        calls.append(arguments)
        if len(calls) > successes:
            raise error("no space left")
        return works(*arguments)

    with monkeypatch.context() as patch:
        if step == "replace":
            patch.setattr(saved, "os", SimpleNamespace(replace=fail_in_the_end, path=os.path))
        else:
            patch.setattr(saved, step, fail_in_the_end)
        with pytest.raises(error):
            model.save(folder)
    loaded = EdgeNES.load(folder)
    assert any(same_answers(loaded, one, FEW_IMAGES) for one in (former_model, model))
    model.save(folder)
    assert same_answers(EdgeNES.load(folder), model, FEW_IMAGES)
    assert not list(folder.glob(".*"))


def test_card_shows_names_as_they_are(model, tmp_path):
    name = "<script>\nalert(1)</script>|[x](y)"
    labels = np.where(FEW_LABELS == "digit 3", name, FEW_LABELS)
    card = (clone(model).fit(FEW_IMAGES, labels).save(tmp_path) / "README.md").read_text()
    assert "<script" not in card
    assert "&#60;script&#62; alert(1)&#60;/script&#62;&#124;&#91;x&#93;(y)" in card


def test_card_explains_its_metrics(model, folder):
    card = (folder / "README.md").read_text()
    for name in model.report_["validation"]:
        assert re.search(rf"^\| {name} \| [-\d.e]+ \| \w.{{9,}} \|$", card, re.M), name
    assert "aleatoric" in card
    assert "epistemic" in card


def test_export_is_read_back_and_equal(model, tmp_path):
    path = model.export(tmp_path / "ensemble.pt2")
    module = torch.export.load(path).module()
    for count in (1, 7):
        images = torch.from_numpy(IMAGES[:count])[:, None].float() / 255
        with torch.no_grad():
            probabilities = module(images).numpy()
        assert np.allclose(probabilities, model.predict_proba(IMAGES[:count]), atol=1e-5)


# ---------------------------------------------------------------- seeds


def test_one_architecture_twice_gives_two_networks():
    data = load_data("digits", train_images=200)
    plan = plan_fit(data, FitParameters(members=1, candidates=2, search_steps=1, epochs=1))
    genotype = random_genotype(plan.space, 0)
    candidates = [Candidate(genotype, seed) for seed in (0, 1)]
    with FitProgress() as progress:
        trained = run_retraining(progress, data, data.val, plan, candidates)
    assert not torch.equal(*trained.probabilities)
