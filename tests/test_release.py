"""The committed ensemble: whoever has no time to train can load it."""

import pytest
from project import ROOT
from sklearn.datasets import load_digits

from edgenes import EdgeNES
from edgenes.core import read_json

FOLDER = ROOT / "results" / "release" / "digits"
BYTES = 5_000_000


@pytest.fixture(scope="module")
def model():
    return EdgeNES.load(FOLDER, device="cpu", verbose=0)


def test_it_is_small_and_has_its_card():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < BYTES
    assert (FOLDER / "README.md").is_file()


def test_it_knows_the_digits_that_it_was_not_trained_on(model):
    digits = load_digits()
    images = (digits.images * 255 / 16).round().astype("uint8")
    accuracy = model.score(images[1500:], digits.target[1500:])
    assert accuracy > 0.96
    measured = read_json(FOLDER.parent / "measured.json")
    assert abs(accuracy - measured["test_accuracy"]) < 1 / measured["test_images"]


def test_it_was_trained_as_readme_says(model):
    parameters = model.get_params()
    asked = {"members": 3, "candidates": 6, "search_steps": 64, "epochs": 16, "seed": 0}
    assert {name: parameters[name] for name in asked} == asked
    example = "EdgeNES(members=3, candidates=6, search_steps=64, epochs=16"
    assert example in (ROOT / "README.md").read_text(encoding="utf-8")
