"""Images, budgets and files for tests of the estimator."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from small_inputs import sealed

_HAS_ONNX = find_spec("onnxruntime") is not None and find_spec("onnxscript") is not None
_NEEDS_ONNX = pytest.mark.skipif(not _HAS_ONNX, reason="needs the extra onnx")
EXPORTED = [".pt2", pytest.param(".onnx", marks=_NEEDS_ONNX)]  # suffixes of exported files

# The digits: 1,797 grey images of 8 x 8 pixels.
_DIGITS = load_digits()
IMAGES = (_DIGITS.images * 255 / 16).round().astype(np.uint8)
LABELS = _DIGITS.target
FEW = IMAGES[:200], LABELS[:200]

TINY = {"members": 2, "candidates": 2, "search_steps": 2, "epochs": 1, "verbose": 0}
SINGLE = TINY | {"members": 1, "candidates": 1}
SHORT = TINY | {"candidates": 3, "search_steps": 4, "epochs": 2}  # every phase has a middle


def same_answers(model, other, images=IMAGES):
    """Whether two ensembles give the same bits."""
    return np.array_equal(model.predict_proba(images), other.predict_proba(images))


def write_pictures(folder, images, labels):
    """Writes one folder per class, with a PNG file per image: LABEL/NUMBER.png."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i:03}.png")
    return folder


def change_manifest(folder, change):
    """Lets a function change the manifest of a saved ensemble; its hash fits afterwards."""
    path = folder / "ensemble.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(sealed(manifest)))
