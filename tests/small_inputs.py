"""The smallest sound input of every kind, from which bad input is made."""

import contextlib
import io
import os
import shutil

import numpy as np
import torch
from PIL import Image

from edgenes.bilevel import SearchSettings, SupernetSettings
from edgenes.core import EdgenesError, content_hash
from edgenes.data import Augment
from edgenes.experiments import quality
from edgenes.genotype import SearchSpace
from edgenes.retraining import DiscreteSettings, RetrainSettings
from edgenes.study import pipeline
from edgenes.study.profiles import get_profile
from edgenes.study.records import write_record
from edgenes.study.workspace import open_workspace


class Harm:
    """A pickle of it makes a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


# ---------------------------------------------------------------- images


def small_arrays(train=20, test=6):
    """The content of a good .npz file: so many colour images of two classes."""
    rng = np.random.default_rng(0)
    return {
        "class_names": np.array(["a", "b"]),
        "train_images": rng.integers(0, 256, (train, 4, 4, 3), dtype=np.uint8),
        "train_labels": np.arange(train) % 2,
        "test_images": rng.integers(0, 256, (test, 4, 4, 3), dtype=np.uint8),
        "test_labels": np.arange(test) % 2,
    }


ARRAYS = small_arrays()


def write_npz(folder, classes=2, each=8, size=4, channels=3, constant=False):
    """Writes a source with `each` images per class in training and test; returns its path."""
    count = classes * each
    shape = (count, size, size, channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    if constant:
        images = np.full(shape, 7, np.uint8)
    labels = np.arange(count) % classes
    np.savez(
        folder / "x.npz",
        class_names=np.array([f"c{i}" for i in range(classes)]),
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )
    return folder / "x.npz"


PICTURES = {
    "good": Image.new("RGB", (4, 4)),
    "grey": Image.new("L", (4, 4)),
    "wide": Image.new("RGB", (6, 4)),
    "alpha": Image.new("RGBA", (4, 4)),
    "palette": Image.new("P", (4, 4)),
    "deep": Image.new("I;16", (4, 4)),
    "bit": Image.new("1", (4, 4)),
    "float": Image.new("F", (4, 4)),
    "odd": Image.new("RGB", (3, 4)),
}


def picture_bytes(name, file_format="PNG"):
    """The file of one of the pictures."""
    buffer = io.BytesIO()
    PICTURES[name].save(buffer, file_format)
    return buffer.getvalue()


def write_tree(folder, classes=("a", "b"), images=3):
    """Makes a folder of pictures anew, with train and test and one folder per class."""
    shutil.rmtree(folder, ignore_errors=True)
    content = picture_bytes("good")
    for part in ("train", "test"):
        for name in classes:
            class_folder = folder / part / name
            class_folder.mkdir(parents=True)
            for i in range(images):
                (class_folder / f"{i}.png").write_bytes(content)
    return folder


# ---------------------------------------------------------------- budgets

TINY_SEARCH = SearchSettings(epochs=1, network=SupernetSettings(channels=2), augment=Augment())
TINY_RETRAINING = RetrainSettings(
    epochs=1, batch_size=64, network=DiscreteSettings(channels=2), augment=Augment()
)


def write_results(folder):
    """A results folder with real records, at the smallest budget."""
    workspace = open_workspace(get_profile("smoke"), folder, device="cpu")
    plans = quality.plans(workspace, 0, ("DARTS", "EdgeNES"))
    pipeline.run(workspace, plans, workers=1, progress=False)
    return folder


# ---------------------------------------------------------------- records

_EDGES = [["reduce", 2, 0, "skip_connect"]]
_SPACE = SearchSpace(nodes=1, operations=("skip_connect",))
_SCALED_SCORES = {"nll_nats": 1.0, "brier": 0.5, "ece": 0.1}
_SHIFTED_SCORES = {"accuracy_percent": 50.0} | _SCALED_SCORES
_SCORES = _SHIFTED_SCORES | {"oracle_nll_nats": 0.5, "disagreement": 0.2, "members": 2}
_EPOCH = {
    "epoch": 0,
    "genotypes": [_EDGES],
    "seconds": 1.0,
    "regulariser": 0.1,
    "val_loss_nats": 2.0,
}
_HYPERNETWORK_EPOCH = _EPOCH | {
    "calibration": [[0.0, 0], [0.5, 1]],
    "active_edges": [[0, 1, 2, 3]],
}

RUNS = {  # results and seconds of a record of every kind
    "darts": (
        {"genotype": _EDGES, "structure": {"vector": [0.0]}, "log": [_EPOCH]},
        {"search": 2.0, "wall": 2.0},
    ),
    "hypernetwork": (
        {
            "structure": {"vectors": [[0.0] * 4] * 2, "segments": [0.0]},
            "log": [_HYPERNETWORK_EPOCH],
        },
        {"search": 2.0},
    ),
    "screening": (
        {"judged": [{"lambda": 1.0, "genotype": _EDGES, "val_loss_nats": 2.0}]},
        {"screening": 0.1},
    ),
    "retraining": (
        {"val": _SCORES, "log": []},
        {"retraining": 1.0, "prediction": 0.1},
    ),
    "evolution": (
        {"pool": [[_EDGES, 0]]},
        {"wall": 1.0},
    ),
    "system": (
        {
            "chosen": [0],
            "retrainings": ["0"],
            "val": _SCORES,
            "test": _SCORES,
            "test_scaled": _SCALED_SCORES,
            "temperature": 1.0,
        },
        {"search": 1.0, "retraining": 1.0, "selection": 0.0, "total": 2.0},
    ),
    "shift": (
        {
            "images": 5,
            "rows": [{"corruption": "noise", "severity": 1} | _SHIFTED_SCORES],
        },
        {"shift": 0.1},
    ),
}


def write_runs(records):
    """Writes a sound record of every kind, with the same inputs for all; returns them."""
    inputs = {
        "seed": 0,
        "data": "0123456789abcdef",
        "system": "EdgeNES",
        "experiment": "quality",
        "point": {},
        "settings": {"hypernetwork": {"knots": 2, "margin": 0.2}},
        "space": _SPACE.to_dict(),
        "optimum": _EDGES,
        "pool": [[_EDGES, 0]],
        "keep": 1,
        "rule": "exhaustive",
    }
    return [write_record(records, kind, inputs, *content) for kind, content in RUNS.items()]


def sealed(document):
    """The same document, with the hash that fits it where it can have one.

    This is the work of somebody who knows how.
    """
    with contextlib.suppress(EdgenesError):
        content = {name: value for name, value in document.items() if name != "hash"}
        document["hash"] = content_hash(content)
    return document


# ---------------------------------------------------------------- checkpoints


def trained_parts(seed=0):
    """(modules and optimisers by name, their state) after two steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = torch.nn.Linear(3, 2)
        structure = torch.nn.Linear(2, 1)
    parts = {
        "net": net,
        "structure": structure,
        "weight_optimiser": torch.optim.SGD(net.parameters(), 0.1, 0.9),
        "structure_optimiser": torch.optim.Adam(structure.parameters(), 0.1),
    }
    for _ in range(2):
        structure(net(torch.ones(1, 3))).sum().backward()
        parts["weight_optimiser"].step()
        parts["structure_optimiser"].step()
    state = {name: part.state_dict() for name, part in parts.items()}
    state["log"] = [{"epoch": epoch, "seconds": 1.0} for epoch in range(2)]
    return parts, state
