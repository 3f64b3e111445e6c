"""Bad input of every kind, thousands of pieces: each ends in one line that names the fault, never in another error, a hang or half a file.
Then extreme input that is valid, files that were made to do harm, and disks that are full."""

from __future__ import annotations

import ast
import contextlib
import errno
import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_genotype import FULL_SPACES, VALUES, damaged, entry_paths

import edgenes.cli.main
import edgenes.cli.study
from edgenes import core
from edgenes.bilevel import SearchSettings, SupernetSettings
from edgenes.core import EdgenesError, content_hash, read_json, write_atomic, write_json
from edgenes.data import Augment
from edgenes.experiments import control, quality
from edgenes.experiments import registry as report
from edgenes.genotype import Genotype, SearchSpace
from edgenes.metrics import ensemble_metrics
from edgenes.neighbours import random_genotype
from edgenes.nni import genotype_from_nni, genotype_to_nni
from edgenes.readers import load_data
from edgenes.retraining import DiscreteSettings, RetrainSettings, predict, retrain
from edgenes.search import search_darts, train_hypernetwork
from edgenes.study import pipeline, tasks
from edgenes.study.profiles import PARAMETERS, PROFILES, get_profile
from edgenes.study.records import (
    DiskCheckpoint,
    Records,
    all_records,
    digest,
    load_predictions,
    load_weights,
    pack,
    save_predictions,
    save_weights,
    write_record,
)
from edgenes.study.workspace import RecordedWorkspace, open_workspace
from edgenes.training import WeightOptimiser, restore

ROOT = Path(__file__).resolve().parents[1]
TRIED: Counter[str] = Counter()  # bad inputs that were refused, by kind
WANTED = {
    "genotype": 500,
    "nni": 300,
    "record": 300,
    "npz": 300,
    "tree": 150,
    "command line": 250,
    "parameters": 200,
    "checkpoint": 150,
}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from([10**400, "<b>", "../../x", "\x1b[2J"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def examples(n: int):
    "The same n examples in every run."
    return settings(
        max_examples=n,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def in_time(seconds: float = 20):
    "What takes longer is a hang."

    def late(*_):
        raise AssertionError("this hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def one_line(text: str) -> None:
    assert 10 < len(text) < 2500 and text.isprintable(), text


def attempt(kind: str, call, *args, **kwargs):
    "(whether it was refused, the result). Counts what was refused; any error but EdgenesError fails the test."
    with in_time():
        try:
            return False, call(*args, **kwargs)
        except EdgenesError as error:
            one_line(str(error))
            TRIED[kind] += 1
            return True, None


def refused(kind: str, call, *args, **kwargs) -> None:
    assert attempt(kind, call, *args, **kwargs)[0], "bad input was taken"


@st.composite
def changed(draw: st.DrawFn, document):
    "A JSON document with one entry replaced, removed or added."
    document = json.loads(json.dumps(document))
    *path, last = draw(st.sampled_from(entry_paths(document)))
    holder = document
    for step in path:
        holder = holder[step]
    what = draw(st.sampled_from(("replace", "replace", "remove", "add")))
    if what == "replace":
        holder[last] = draw(JSON)
    elif what == "remove":
        del holder[last]
    elif isinstance(holder, dict):
        holder[draw(st.text(max_size=5))] = draw(JSON)
    else:
        holder.append(draw(JSON))
    return document


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("bad")


# ---------------------------------------------------------------- architectures


@examples(150)
@given(damaged(Genotype.to_dict) | VALUES)
def test_genotype_documents(document):
    attempt("genotype", Genotype.from_json, document)
    with contextlib.suppress(ValueError):
        attempt("genotype", Genotype.from_json, json.dumps(document))


@examples(50)
@given(FULL_SPACES, st.integers(0, 40), st.text(max_size=3))
def test_genotype_texts(space, first, noise):
    text = random_genotype(space, 1).to_json()
    for cut in range(first, len(text), 41):
        refused("genotype", Genotype.from_json, text[:cut])
        attempt("genotype", Genotype.from_json, text[:cut] + noise + text[cut + 1 :])


@examples(310)
@given(damaged(genotype_to_nni) | VALUES)
def test_nni_documents(mapping):
    attempt("nni", genotype_from_nni, mapping)


# ---------------------------------------------------------------- records

SCORES = {
    "accuracy_percent": 50.0,
    "nll_nats": 1.0,
    "brier": 0.5,
    "ece": 0.1,
    "oracle_nll_nats": 0.5,
    "disagreement": 0.2,
    "members": 2,
}
EDGES, SMALL = (
    [["reduce", 2, 0, "skip_connect"]],
    SearchSpace(nodes=1, operations=("skip_connect",)),
)
EPOCH = {"epoch": 0, "genotypes": [EDGES], "seconds": 1.0, "regulariser": 0.1, "val_loss_nats": 2.0}
RUNS = {
    "darts": (
        {"genotype": EDGES, "structure": {"vector": [0.0]}, "log": [EPOCH]},
        {"search": 2.0, "wall": 2.0},
    ),
    "hypernetwork": (
        {
            "structure": {"vectors": [[0.0] * 4] * 2, "segments": [0.0]},
            "log": [EPOCH | {"calibration": [[0.0, 0], [0.5, 1]], "active_edges": [[0, 1, 2, 3]]}],
        },
        {"search": 2.0},
    ),
    "screening": (
        {"judged": [{"lambda": 1.0, "genotype": EDGES, "val_loss_nats": 2.0}]},
        {"screening": 0.1},
    ),
    "retraining": ({"val": SCORES, "log": []}, {"retraining": 1.0, "prediction": 0.1}),
    "evolution": ({"pool": [[EDGES, 0]]}, {"wall": 1.0}),
    "system": (
        {
            "chosen": [0],
            "retrainings": ["0"],
            "val": SCORES,
            "test": SCORES,
            "test_scaled": {"nll_nats": 1.0, "brier": 0.5, "ece": 0.1},
            "temperature": 1.0,
        },
        {"search": 1.0, "retraining": 1.0, "selection": 0.0, "total": 2.0},
    ),
    "shift": (
        {
            "images": 5,
            "rows": [
                {
                    "corruption": "noise",
                    "severity": 1,
                    "accuracy_percent": 50.0,
                    "nll_nats": 1.0,
                    "brier": 0.5,
                    "ece": 0.1,
                }
            ],
        },
        {"shift": 0.1},
    ),
}


@pytest.fixture(scope="module")
def whole_records(place):
    records = Records(place / "whole")
    inputs = {
        "seed": 0,
        "system": "EdgeNES",
        "experiment": "quality",
        "point": {},
        "settings": {"hypernetwork": {"knots": 2, "margin": 0.2}},
        "space": SMALL.to_dict(),
        "optimum": EDGES,
        "pool": [[EDGES, 0]],
    }
    return [write_record(records, kind, inputs, *content) for kind, content in RUNS.items()]


def sealed(document):
    "The document with the hash that fits it, where it can have one: the work of somebody who knows how."
    with contextlib.suppress(EdgenesError):
        document["hash"] = content_hash({k: v for k, v in document.items() if k != "hash"})
    return document


def test_record_forms_are_those_of_the_pipeline(whole_records):
    committed = Records(ROOT / "results" / "cpu")
    for kind in RUNS:
        assert all_records(committed, kind)
    assert set(RUNS) == set(tasks.KINDS)


@examples(170)
@given(st.data())
def test_records(place, whole_records, data):
    record = data.draw(st.sampled_from(whole_records))
    document = data.draw(changed(record))
    if harm := data.draw(st.booleans()):
        sealed(document)
    folder = place / "records"
    shutil.rmtree(folder, ignore_errors=True)
    records = Records(folder)
    text = json.dumps(document)
    name = "x"
    with contextlib.suppress(EdgenesError):  # inputs that cannot be hashed have no name
        if harm and isinstance(document.get("inputs"), dict):
            name = f"{record['kind']}-{records.key(document['inputs'])}"
    path = folder / "runs" / f"{name}.json"
    path.parent.mkdir(parents=True)
    for cut in range(0, len(text) - 1, 1 + len(text) // 2):
        path.write_text(text[:cut])
        refused("record", records.read, path)
    path.write_text(text)
    said_no, _ = attempt("record", records.read, path)
    if said_no or record["kind"] not in ("system", "hypernetwork"):
        return
    frame = (
        quality.frame
        if record["kind"] == "system"
        else lambda records: control.table(control.hypernetwork_records(records))
    )
    attempt("record", frame, records)  # a record that was taken can be shown


HOSTILE = {
    "knots without end": (
        "hypernetwork",
        lambda r: r["inputs"]["settings"]["hypernetwork"].update(knots=10**12),
    ),
    "half a knot": (
        "hypernetwork",
        lambda r: r["inputs"]["settings"]["hypernetwork"].update(knots=2.5),
    ),
    "a place of letters": ("system", lambda r: r["inputs"].update(point={"lambda": "<script>"})),
    "a place that is a list": ("system", lambda r: r["inputs"].update(point={"lambda": [1]})),
    "a shift of letters": ("shift", lambda r: r["results"]["rows"][0].update(nll_nats="<b>")),
    "a shift without rows": ("shift", lambda r: r["results"].update(rows=[])),
    "no genotypes": ("darts", lambda r: r["results"]["log"][0].update(genotypes=[])),
    "genotypes of numbers": ("darts", lambda r: r["results"]["log"][0].update(genotypes=[[5]])),
    "an edge of three": ("system", lambda r: r["inputs"].update(pool=[[[["reduce", 2, 0]], 0]])),
    "a pool of numbers": ("evolution", lambda r: r["results"].update(pool=[1])),
    "a judgement without a number": (
        "screening",
        lambda r: r["results"]["judged"][0].update(val_loss_nats=None),
    ),
    "no such member": ("system", lambda r: r["results"].update(chosen=[7])),
    "a place without lambda": ("system", lambda r: r["inputs"].update(experiment="deviation")),
    "steps of letters": (
        "hypernetwork",
        lambda r: r["results"]["log"][0].update(active_edges=[["<b>"]]),
    ),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_sealed_records_that_do_not_fit(fault, tmp_path, place, whole_records):
    "Whoever can hash can seal anything: tables are made of it, or one line says of what they cannot be made."
    kind, spoil = HOSTILE[fault]
    assert report.results(Records(place / "whole"), {})
    for record in whole_records:
        record = json.loads(json.dumps(record))
        if record["kind"] == kind:
            spoil(record)
        write_json(
            tmp_path / "runs" / f"{record['kind']}-{Records(tmp_path).key(record['inputs'])}.json",
            sealed(record),
        )
    refused("record", report.build_report, tmp_path)
    assert not (tmp_path / "report.html").exists()


@examples(40)
@given(st.data())
def test_results_of_sealed_records(place, whole_records, data):
    folder = place / "sealed"
    shutil.rmtree(folder, ignore_errors=True)
    document = sealed(data.draw(changed(data.draw(st.sampled_from(whole_records)))))
    with contextlib.suppress(EdgenesError, KeyError, AttributeError):
        write_json(
            folder / "runs" / f"{document['kind']}-{Records(folder).key(document['inputs'])}.json",
            document,
        )
    attempt(
        "record",
        lambda: (
            [Records(folder).read(path) for path in Records(folder).paths()]
            and report.results(Records(folder), {})
        ),
    )


def test_record_files(tmp_path):
    for content in (
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 10**5,
        b"9" * 5000,
        b'{"schema": 2, "hash": NaN}',
        b'{"schema": 2}',
    ):
        (tmp_path / "x.json").write_bytes(content)
        refused("record", Records(tmp_path).read, tmp_path / "x.json")
    os.mkfifo(tmp_path / "pipe.json")  # nobody writes: reading it would wait for ever
    for name in ("pipe.json", "none.json", "a\0b.json", "n" * 300, "."):
        refused("record", read_json, tmp_path / name)


# ---------------------------------------------------------------- data

RNG = np.random.default_rng(0)
ARRAYS = {
    "class_names": np.array(["a", "b"]),
    "train_images": RNG.integers(0, 256, (20, 4, 4, 3), dtype=np.uint8),
    "train_labels": np.arange(20) % 2,
    "test_images": RNG.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8),
    "test_labels": np.arange(6) % 2,
}


@st.composite
def bad_array(draw, name: str):
    "An array that cannot stand for this one."
    good = ARRAYS[name]
    if name == "class_names":
        return draw(
            st.sampled_from(
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
            )
            | st.integers(3, 40).map(lambda n: np.array([str(i) for i in range(n)]))
        )
    kind = draw(st.sampled_from(("type", "shape", "length", "values")))
    if kind == "type":
        return good.astype(
            draw(
                st.sampled_from(
                    ["f2", "f4", "f8", "?", "c8", "U3", "S2", "M8[s]"]
                    + (["i4", "u2"] if "images" in name else [])
                )
            )
        )
    if kind == "shape":
        return np.zeros(
            draw(st.lists(st.sampled_from([0, 1, 3, 5]), max_size=5).map(tuple)), good.dtype
        )
    if kind == "length":
        return np.concatenate([good, good])[
            : draw(st.integers(0, 2 * len(good)).filter(lambda n: n != len(good)))
        ]
    if "labels" in name:
        return good + draw(st.integers(1, 2**62) | st.integers(-(2**62), -1))
    return np.full(good.shape, draw(st.sampled_from([np.nan, np.inf, -1.0, 256.0, 0.5])))


@examples(150)
@given(st.data())
def test_npz_arrays(place, data):
    name = data.draw(st.sampled_from(sorted(ARRAYS)))
    arrays = ARRAYS | {name: data.draw(bad_array(name))}
    if data.draw(st.integers(0, 9)) == 0:
        del arrays[name]
    np.savez(place / "x.npz", **arrays)
    refused("npz", load_data, place / "x.npz")


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
    for cut in range(first, len(content), 401):
        (place / "x.npz").write_bytes(content[:cut])
        refused("npz", load_data, place / "x.npz")
        (place / "x.npz").write_bytes(content[:cut] + noise + content[cut + len(noise) :])
        attempt(
            "npz", load_data, place / "x.npz"
        )  # where nothing that is read was hit, the file is sound


def test_npz_traps(tmp_path, monkeypatch):
    def member(header: str, body: bytes = b"") -> bytes:
        text = header.encode()
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body

    def archive(**members: bytes) -> Path:
        with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in members.items():
                file.writestr(f"{name}.npy", content)
        return tmp_path / "x.npz"

    whole = {name: io.BytesIO() for name in ARRAYS}
    for name, buffer in whole.items():
        np.save(buffer, ARRAYS[name])
    members = {name: buffer.getvalue() for name, buffer in whole.items()}
    assert len(load_data(archive(**members)).test) == 6
    for header in (
        "{'descr': '|u1', 'fortran_order': False, 'shape': (10**15,)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 1000, 1000)}",
        "{",
        "__import__('os')",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}",
        "(" * 2000,
    ):
        refused("npz", load_data, archive(**members | {"train_images": member(header, b"\0" * 8)}))
    refused(
        "npz",
        load_data,
        archive(**members | {"train_images": pickle.dumps(Harm(tmp_path / "harm"))}),
    )
    assert (
        load_data(archive(**members, **{"../../outside": members["test_labels"]})).classes == 2
    )  # a path in the archive is a name, nothing is unfolded there
    monkeypatch.setattr(os, "sysconf", lambda name: 64)  # a machine of 4,096 bytes
    refused("npz", load_data, archive(**members | {"more": bytes(10**6)}))
    os.mkfifo(tmp_path / "folder.npz")
    for path in (
        tmp_path / "folder.npz",
        tmp_path / "nowhere.npz",
        tmp_path / ("n" * 300),
        "a\0b",
        tmp_path / "x.txt",
    ):
        refused("npz", load_data, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.npz", "x.npz"]


class Harm:
    "A pickle that makes a file when it is loaded."

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


PICTURES = {
    kind: Image.new(*form)
    for kind, form in {
        "good": ("RGB", (4, 4)),
        "grey": ("L", (4, 4)),
        "wide": ("RGB", (6, 4)),
        "alpha": ("RGBA", (4, 4)),
        "palette": ("P", (4, 4)),
        "deep": ("I;16", (4, 4)),
        "bit": ("1", (4, 4)),
        "float": ("F", (4, 4)),
        "odd": ("RGB", (3, 4)),
    }.items()
}


def picture(kind: str, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    PICTURES[kind].save(buffer, form)
    return buffer.getvalue()


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n"  # PIL would start Ghostscript to draw it
BAD_FILES = (
    st.sampled_from(
        [picture(k) for k in ("grey", "wide", "alpha", "palette", "deep", "bit", "odd")]
        + [picture("float", "TIFF"), picture("good", "GIF"), POSTSCRIPT, b""]
    )
    | st.integers(0, 48).map(lambda n: picture("good")[:n])
    | st.binary(max_size=60)
)  # from 49 bytes on all pixels are there


def tree(
    folder: Path, classes=("a", "b"), images: int = 3, content: bytes = picture("good")
) -> Path:  # noqa: B008
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("train", "test"):
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for i in range(images):
                (folder / part / name / f"{i}.png").write_bytes(content)
    return folder


@examples(170)
@given(st.data())
def test_image_trees(place, data):
    folder = tree(place / "tree")
    assert len(load_data(folder).val) == 2  # it is the fault that is refused
    where = (
        folder
        / data.draw(st.sampled_from(("train", "test")))
        / data.draw(st.sampled_from(("a", "b")))
    )
    fault = data.draw(
        st.sampled_from(
            (
                "file",
                "file",
                "file",
                "file",
                "folder",
                "class",
                "empty",
                "pipe",
                "link",
                "loop",
                "few",
            )
        )
    )
    bad = where / ("7" + data.draw(st.sampled_from((".png", ".jpg", ".TIFF", ".ppm", ".webp"))))
    if fault == "file":
        bad.write_bytes(data.draw(BAD_FILES))
    elif fault == "folder":
        bad.mkdir()
    elif fault == "pipe":
        os.mkfifo(bad)
    elif fault == "link":
        bad.symlink_to("nowhere")
    elif fault == "loop":
        bad.symlink_to(bad.name)
    elif fault == "empty":
        for file in where.iterdir():
            file.unlink()
    elif fault == "class":
        (
            where.parent
            / data.draw(st.text("<>$.;&' ab", min_size=2, max_size=9).filter(lambda n: n[0] != "."))
        ).mkdir()
    else:
        tree(folder, images=1)
    refused("tree", load_data, folder)


# ---------------------------------------------------------------- command line


def command(*arguments: str) -> tuple[int, str]:
    "(exit code, what was written to stderr) of the entry point."
    before, sys.argv, said = sys.argv, ["edgenes", *arguments], io.StringIO()
    try:
        with in_time(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            edgenes.cli.main.main()
    except SystemExit as end:
        return end.code, said.getvalue()
    finally:
        sys.argv = before
    raise AssertionError("the entry point came back")


def badly(*arguments: str) -> None:
    code, said = command(*arguments)
    assert (
        code == 2
        and said.startswith("edgenes: ")
        and said.count("\n") == 1
        and "Traceback" not in said
    ), (arguments, code, said)
    TRIED["command line"] += 1


WORDS = st.text(
    st.characters(codec="ascii", categories=("L", "N", "P", "S")), min_size=1, max_size=8
)
SETTINGS = [
    "members=0",
    "members=9",
    "candidates=0",
    "candidates=-1",
    "candidates=x",
    "candidates=1.5",
    "candidates",
    "candidates=",
    "inputs_per_node=0",
    "inputs_per_node=3",
    "downscale=0",
    "downscale=3",
    "downscale=-2",
    "train_images=0",
    "train_images=99999",
    "val_images=-1",
    "val_images=2000",
    "test_images=1",
    "criterion=luck",
    "seeds=0",
    "seeds=-1",
    "darts=1",
    "__class__=1",
    "source=nowhere",
    "source=cifar100",
    "source=<b>",
    "downscale=1" + "0" * 30,
    "screened=1" + "0" * 12,
    "deep_pool=1" + "0" * 20,
    "free_pool=1" + "0" * 12,
    "shift_images=-1",
    "shift_images=0",
    "members=" + "9" * 5000,
]


@st.composite
def bad_commands(draw, results: str, file: str) -> list[str]:
    "A command with one fault."
    given = {"profile": "smoke", "--results": results, "--workers": "1", "--device": "cpu"}
    fault = draw(
        st.sampled_from(
            (
                "profile",
                "--device",
                "--workers",
                "--seeds",
                "--set",
                "--set name",
                "--results",
                "--data",
                "option",
                "command",
                "report",
            )
        )
    )
    if fault == "command":
        return [draw(WORDS.filter(lambda w: w not in ("run", "report", "bench") and w != "--help"))]
    if fault == "report":
        return ["report", draw(WORDS.filter(lambda w: w not in PROFILES)), "--results", results]
    extra = []
    if fault == "profile":
        given["profile"] = draw(WORDS.filter(lambda w: w not in PROFILES))
    elif fault == "--device":
        given["--device"] = draw(
            WORDS.filter(lambda w: w not in ("cpu", "auto", "cuda"))
            | st.sampled_from(["cuda:99", "cuda:", "cpu:0"])
        )
    elif fault == "--workers":
        given["--workers"] = draw(
            st.sampled_from(["0", "-1", "x", "1.5", "", "1e3", "99999999999"])
            | WORDS.filter(lambda w: not w.isdigit())
        )
    elif fault == "--seeds":
        given["--seeds"] = draw(
            st.text("0123456789,.-+ex ", min_size=1, max_size=6).filter(
                lambda t: (
                    t == "0" or not all(p.strip().isdigit() for p in t.rstrip(", ").split(","))
                )
            )
        )
    elif fault == "--set":
        extra = ["--set", draw(st.sampled_from(SETTINGS))]
    elif fault == "--set name":
        extra = [
            "--set",
            draw(WORDS.filter(lambda w: w.partition("=")[0] not in PARAMETERS))
            + "=1",
        ]
    elif fault == "--results":
        given["--results"] = f"{file}/{draw(WORDS)}"
    elif fault == "--data":
        extra = [
            "--set",
            "source=cifar100",
            "--data",
            draw(
                st.sampled_from([file, f"{file}/x", "nowhere", "n" * 300, results])
                | WORDS.map(lambda w: f"{file}/{w}")
            ),
        ]
    else:
        extra = ["--" + draw(WORDS.filter(lambda w: w.isalnum() and w != "help"))]
    return [
        "run",
        given.pop("profile"),
        "--no-notebooks",
        *(x for pair in given.items() for x in pair),
        *extra,
    ]


@examples(260)
@given(st.data())
def test_command_lines(place, data):
    (place / "file").write_text("")
    results = place / "results"
    badly(*data.draw(bad_commands(str(results), str(place / "file"))))
    for path in results.rglob("*"):  # what is there is whole
        assert path.suffix == ".json" and isinstance(json.loads(path.read_text()), dict), path


def test_report_of_a_folder_that_cannot_be_used(tmp_path):
    badly("report", "smoke", "--results", str(tmp_path / "none"))
    badly("report", "smoke", "--results", str(tmp_path))
    write_atomic(tmp_path / "runs" / "system-0.json", "{")
    badly("report", "smoke", "--results", str(tmp_path))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["runs", "system-0.json"]


LONG = "n" * 300
TOO_LONG = [
    ["report", "smoke", "--results", LONG],
    ["scaling", "smoke", "--results", LONG],
    ["run", "smoke", "--no-notebooks", "--results", LONG],
    ["draw", LONG, "--out", "x.svg"],
    ["fit", LONG, "--out", "o"],
    ["predict", LONG, "x.png"],
    ["evaluate", LONG, "x"],
    ["sample", LONG, "--lambda", "1"],
]


@pytest.mark.parametrize("arguments", TOO_LONG, ids=lambda a: a[0])
def test_a_name_that_is_too_long(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    badly(*arguments)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_to_stdout():
    "A full disk behind stdout is one line; a reader that has gone, or no stdout at all, is no traceback."
    start = f"{sys.executable} -m edgenes status smoke --results nowhere"
    for command_line, code in (
        (f"{start} >/dev/full", 2),
        (f"{start} >&-", 0),
        (f"({start}; echo $? >&2) | true", 0),
    ):
        done = subprocess.run(command_line, shell=True, capture_output=True, text=True)
        assert (
            done.returncode == code
            and "Traceback" not in done.stderr
            and done.stderr.count("\n") <= 1
        ), (command_line, done)
        if "full" in command_line:
            assert done.stderr.startswith(
                "edgenes: cannot use the output: No space left on device; "
            )


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("Kernel died")]
)
def test_a_notebook_is_whole_or_as_it_was(tmp_path, monkeypatch, error):
    import papermill

    def half(source, target, *args, **kwargs):
        Path(target).write_text('{"cells": [')
        raise error

    monkeypatch.setattr(papermill, "execute_notebook", half)
    monkeypatch.chdir(ROOT)
    write_atomic(tmp_path / "notebooks" / "space.ipynb", "{}")
    with pytest.raises(EdgenesError, match="space.ipynb stopped .*(No space|Kernel died)"):
        edgenes.cli.study.execute_notebooks(["space"], "smoke", {}, tmp_path)
    assert whole_files(tmp_path) == {"notebooks/space.ipynb": b"{}"}


# ---------------------------------------------------------------- parameters of the experiments


def opening(name: str):
    "What an experiment does with its parameters before anything else: code that opens the workspace and runs."
    cells = [
        c.source
        for c in nbformat.read(ROOT / "nbs" / "experiments" / name, as_version=4).cells
        if c.cell_type == "code"
    ]

    def wanted(node):
        text = ast.unparse(node)
        return (
            isinstance(node, ast.ImportFrom)
            and node.module
            in ("edgenes.study.pipeline", "edgenes.study.profiles", "edgenes.study.workspace")
        ) or text.startswith(("workspace = open_workspace", "run(workspace"))

    nodes = [node for cell in cells for node in ast.parse(cell).body if wanted(node)]
    plans = ast.parse(f"from edgenes.experiments.{name.partition('.')[0]} import plans").body
    return compile(
        ast.Module(
            plans
            + [n for n in nodes if isinstance(n, ast.ImportFrom)]
            + [n for n in nodes if not isinstance(n, ast.ImportFrom)],
            [],
        ),
        name,
        "exec",
    )


OPENINGS = [opening(name) for name in ("quality.ipynb", "control.ipynb")]
NO_SEED = st.floats().filter(lambda x: x != int(x) if np.isfinite(x) else True) | st.sampled_from(
    [True, 10**40, -(10**40), float("inf"), -0.25]
)


BAD_CHANGES = st.sampled_from(
    ("candidates", "members", "train_images", "source", "criterion", "downscale")
).flatmap(
    lambda name: st.fixed_dictionaries(
        {
            name: st.none()
            | st.floats()
            | st.lists(st.integers(), max_size=2)
            | st.sampled_from([-1, 0, "x", "<b>", 10**400])
        }
    )
)


@examples(210)
@given(st.data())
def test_parameters(place, data):
    (place / "file").write_text("")
    parameters = {
        "profile": "smoke",
        "seed": 0,
        "device": "cpu",
        "results": str(place / "parameters"),
        "workers": 1,
        "changes": {},
    }
    fault = data.draw(st.sampled_from(("profile", "device", "results", "seed", "changes")))
    code = OPENINGS[0] if fault == "seed" else data.draw(st.sampled_from(OPENINGS))
    parameters[fault] = data.draw(
        {
            "profile": (
                st.text(max_size=8)
                | st.none()
                | st.integers()
                | st.floats()
                | st.sampled_from(["../../x", "<b>", "$(id)"])
            ).filter(lambda p: p not in PROFILES),
            "device": JSON.filter(lambda d: d not in ("cpu", "auto")),
            "results": WORDS.map(lambda w: f"{place / 'file'}/{w}"),
            "seed": NO_SEED,
            "changes": JSON.filter(lambda c: c not in (None, {})) | BAD_CHANGES,
        }[fault]
    )
    refused("parameters", exec, code, dict(parameters))


REFUSED = {
    "a profile that is a list": lambda t: get_profile(["smoke"]),
    "a setting called name": lambda t: get_profile("smoke", **{"name": "x"}),
    "more candidates than any pool has": lambda t: get_profile("smoke", candidates=10**9),
    "a results folder that is a number": lambda t: open_workspace(
        get_profile("smoke"), 5, device="cpu"
    ),
    "a name that is too long": lambda t: open_workspace(
        get_profile("smoke"), t / ("n" * 300), device="cpu"
    ),
    "a seed that is a text": lambda t: run_seed(t, "x"),
    "a seed that is a list": lambda t: run_seed(t, [1]),
    "fewer than no workers": lambda t: pipeline.run(
        open_workspace(get_profile("smoke"), t, device="cpu"), [], workers=-1, progress=False
    ),
    "a digit that is none": lambda t: edgenes.cli.study.seed_list("²"),
    "more seeds than anybody can run": lambda t: edgenes.cli.study.seed_list("99999"),
    "a profile.json that is a list": lambda t: (
        write_json(t / "profile.json", []),
        open_workspace(get_profile("smoke"), t, device="cpu"),
    ),
    "a published.json that is damaged": lambda t: (
        write_atomic(t / "results" / "published.json", "{"),
        report.published_figures(t),
    ),
    "more workers than any machine has": lambda t: pipeline.run(
        open_workspace(get_profile("smoke"), t, device="cpu"),
        [],
        workers=99999999999,
        progress=False,
    ),
    "a reader's profile.json that is a list": lambda t: (
        write_json(t / "profile.json", []),
        RecordedWorkspace(get_profile("smoke"), str(t), None).data_fingerprint,
    ),
    "a want of memory": lambda t: lacks_memory(t, MemoryError("cannot hold 9 GB")),
    "torch's want of memory": lambda t: lacks_memory(
        t,
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
    ),
    "an experiment that is a path": lambda t: report.experiment("../../x"),
    "a hypernetwork of another size": lambda t: tasks.hypernetwork_of(
        {
            "inputs": {
                "seed": 0,
                "settings": {"hypernetwork": {"knots": 5, "margin": 0.2}},
                "space": SearchSpace().to_dict(),
            },
            "results": {"structure": {"vectors": [[0.0]], "segments": [0.0]}},
        }
    ),
}


def run_seed(folder, seed):
    workspace = open_workspace(get_profile("smoke"), folder, device="cpu")
    pipeline.run(workspace, quality.plans(workspace, seed), workers=1, progress=False)


def lacks_memory(folder, error):
    def work(*_):
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks.DartsSearch, "run", work)
        pipeline.run(
            open_workspace(get_profile("smoke"), folder, device="cpu"),
            [(needs for needs in [[tasks.DartsSearch(0)]])],
            workers=1,
            progress=False,
        )


@pytest.mark.parametrize("fault", REFUSED)
def test_faults_around_the_pipeline(fault, tmp_path):
    with in_time(), pytest.raises(EdgenesError):
        REFUSED[fault](tmp_path)


def test_a_lock_that_is_no_file(tmp_path):
    "Neither is a link followed, nor a pipe waited for, nor what is there emptied."
    lock, victim = tmp_path / "work" / "lock", tmp_path / "victim"
    write_atomic(victim, "mine"), lock.parent.mkdir()
    for make in (
        lambda: lock.symlink_to(victim),
        lambda: lock.symlink_to("nowhere"),
        lambda: lock.symlink_to("lock"),
        lambda: os.mkfifo(lock),
    ):
        make()
        with (
            in_time(),
            pytest.raises(EdgenesError, match="cannot write|is no file"),
            tasks.claimed(lock.parent),
        ):
            pass
        lock.unlink()
    assert whole_files(tmp_path) == {"victim": b"mine"}
    lock.write_text("kept")
    with tasks.claimed(lock.parent):
        assert lock.read_text() == "kept"


# ---------------------------------------------------------------- checkpoints


def training(seed: int = 0):
    "Modules and optimisers after two steps, and their state."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net, structure = torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)
    parts = {
        "net": net,
        "structure": structure,
        "weight_optimiser": torch.optim.SGD(net.parameters(), 0.1, 0.9),
        "structure_optimiser": torch.optim.Adam(structure.parameters(), 0.1),
    }
    for _ in range(2):
        structure(net(torch.ones(1, 3))).sum().backward()
        parts["weight_optimiser"].step(), parts["structure_optimiser"].step()
    return parts, {name: part.state_dict() for name, part in parts.items()} | {
        "log": [{"epoch": 0, "seconds": 1.0}, {"epoch": 1, "seconds": 1.0}]
    }


def resumable(kind: str, folder: Path) -> None:
    "Loads and restores; what is taken can be trained on. A warning or an EdgenesError counts as refused."
    parts, _ = training(1)
    with warnings.catch_warnings(record=True) as caught, in_time():
        warnings.simplefilter("always")
        try:
            log = restore(DiskCheckpoint(folder), parts, 2)
        except EdgenesError as error:
            one_line(str(error))
            TRIED[kind] += 1
            return
    if caught:
        TRIED[kind] += 1
        assert log == []
    for name in ("weight_optimiser", "structure_optimiser"):
        parts[name].step()


@examples(160)
@given(st.data())
def test_checkpoints(place, data):
    folder = place / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    tensors: dict[str, torch.Tensor] = {}
    nest = pack(training()[1], tensors)
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from(sorted(tensors)))
        tensors[name] = torch.zeros(
            data.draw(st.lists(st.integers(0, 4), max_size=3)),
            dtype=data.draw(
                st.sampled_from([torch.float32, torch.int8, torch.bool, torch.float64])
            ),
        )
        if data.draw(st.integers(0, 4)) == 0:
            del tensors[name]
    else:
        nest = data.draw(changed(nest) | JSON)
    text = json.dumps(nest)
    metadata = {
        "state": text,
        "digest": digest(text, tensors) if data.draw(st.integers(0, 9)) else "0",
    }
    write_atomic(
        folder / "epoch-00002.safetensors", safetensors.torch.save(tensors, metadata=metadata)
    )
    resumable("checkpoint", folder)


def test_checkpoint_bytes(tmp_path):
    DiskCheckpoint(tmp_path).save(training()[1])
    [path] = DiskCheckpoint(tmp_path).files()
    content = path.read_bytes()
    for bad in (
        *(content[:cut] for cut in range(0, len(content), 61)),
        b"\xff" * 8 + content[8:],
        b"[" * 10**5,
        content[:8] + b"{" * (len(content) - 8),
    ):
        path.write_bytes(bad)
        resumable("checkpoint", tmp_path)
    head, refused_before = 8 + int.from_bytes(content[:8], "little"), TRIED["checkpoint"]
    spoiled = [
        content[: head + (len(content) - head) * 2 // 3].ljust(len(content), b"\0")
    ]  # a file of the right length whose end never reached the disk
    spoiled += [
        content[:i] + bytes([content[i] ^ 64]) + content[i + 1 :]
        for i in range(head, len(content), 7)
    ]
    for bad in spoiled:
        path.write_bytes(bad)
        resumable("checkpoint", tmp_path)
    assert TRIED["checkpoint"] == refused_before + len(spoiled), (
        "a number that was changed on the disk was taken"
    )
    path.write_bytes(content)
    refused(
        "checkpoint", restore, DiskCheckpoint(tmp_path), training(1)[0], 1
    )  # more epochs than were asked for


def test_checkpoint_metadata_that_nests_for_ever(tmp_path):
    for text in (
        "[" * 10**5,
        '{"list": [' * 5000,
        '{"tensor": "nowhere"}',
        '{"dict": 3}',
        "7",
        "[]",
    ):
        write_atomic(
            tmp_path / "epoch-00001.safetensors",
            safetensors.torch.save({}, metadata={"state": text, "digest": digest(text, {})}),
        )
        resumable("checkpoint", tmp_path)
    os.mkfifo(tmp_path / "epoch-00002.safetensors")
    with in_time(), pytest.warns(match="is damaged"):
        assert DiskCheckpoint(tmp_path).load() is None
    (tmp_path / "epoch-00001.safetensors").write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    with pytest.warns(match="is damaged"):
        assert DiskCheckpoint(tmp_path).load() is None
    assert not (tmp_path / "harm").exists()


def test_a_sound_checkpoint_goes_on_with_its_own_steps(tmp_path):
    parts, state = training()
    state["weight_optimiser"]["param_groups"][0]["lr"] = (
        "rm -rf"  # the settings say how large a step is, not the file
    )
    DiskCheckpoint(tmp_path).save(state)
    fresh, _ = training(1)
    assert len(restore(DiskCheckpoint(tmp_path), fresh, 2)) == 2
    assert (
        torch.equal(fresh["net"].weight, parts["net"].weight)
        and fresh["weight_optimiser"].param_groups[0]["lr"] == 0.1
    )


def test_predictions_are_a_cache(tmp_path):
    records, probs = Records(tmp_path), np.full((4, 2), 0.5)
    save_predictions(records, "k", val=probs, test=probs)
    path = tmp_path / "cache" / "k.npz"
    whole = path.read_bytes()
    assert load_predictions(records, "k")["val"].shape == (4, 2)
    for arrays in (
        {"val": probs},
        {"val": probs, "test": probs},
        {"val": np.array([{}]), "test": np.float16(probs)},
        {"val": np.zeros(3, "f2"), "test": np.float16(probs)},
    ):
        np.savez(path, **arrays)
        assert load_predictions(records, "k") is None
    save_predictions(records, "other", val=probs, test=probs)
    path.write_bytes((tmp_path / "cache" / "other.npz").read_bytes())
    assert load_predictions(records, "k") is None and load_predictions(
        records, "other"
    )  # the file of another run
    for content in (
        whole[:-30],
        b"",
        pickle.dumps(Harm(tmp_path / "harm")),
        whole.replace(b"\x93NUMPY", b"\x93NUMBY"),
    ):
        path.write_bytes(content)
        assert load_predictions(records, "k") is None
    assert not (tmp_path / "harm").exists()


def test_weights_are_a_cache(tmp_path):
    records, net, other = Records(tmp_path), torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    save_weights(records, "k", net)
    path = tmp_path / "cache" / "k.safetensors"
    content = path.read_bytes()
    assert load_weights(records, "k", other) and torch.equal(other.weight, net.weight)
    head = 8 + int.from_bytes(content[:8], "little")
    for bad in (
        *(
            content[:i] + bytes([content[i] ^ 64]) + content[i + 1 :]
            for i in range(head, len(content))
        ),
        content[:head].ljust(len(content), b"\0"),
        content[:-1],
        b"",
        b"\xff" * 99,
        safetensors.torch.save(net.state_dict()),
        safetensors.torch.save(
            net.state_dict(), metadata={"digest": digest("other", net.state_dict())}
        ),
    ):
        path.write_bytes(bad)
        assert not load_weights(records, "k", other)
    path.unlink()
    os.mkfifo(path)  # nobody writes
    with in_time():
        assert not load_weights(records, "k", other)


# ---------------------------------------------------------------- extreme, and valid

TINY = SearchSettings(epochs=1, network=SupernetSettings(channels=2), augment=Augment())
SHORT = RetrainSettings(
    epochs=1, batch_size=64, network=DiscreteSettings(channels=2), augment=Augment()
)


def source(
    folder: Path,
    classes: int = 2,
    each: int = 8,
    size: int = 4,
    channels: int = 3,
    constant: bool = False,
) -> Path:
    n, rng = classes * each, np.random.default_rng(0)
    made = (
        np.full((n, size, size, channels), 7, np.uint8)
        if constant
        else rng.integers(0, 256, (n, size, size, channels), dtype=np.uint8)
    )
    np.savez(
        folder / "x.npz",
        class_names=np.array([f"c{i}" for i in range(classes)]),
        train_images=made,
        train_labels=np.arange(n) % classes,
        test_images=made,
        test_labels=np.arange(n) % classes,
    )
    return folder / "x.npz"


@pytest.mark.parametrize(
    ("made", "space"),
    [
        ({"classes": 1}, SearchSpace()),
        ({"channels": 1}, SearchSpace()),
        ({"channels": 5}, SearchSpace()),
        ({"constant": True}, SearchSpace()),
        ({"size": 2}, SearchSpace()),
        ({}, SearchSpace(nodes=1)),
        ({}, SearchSpace(nodes=1, operations=("skip_connect",))),
        ({"classes": 1, "each": 4}, SearchSpace(nodes=1)),
    ],
    ids=str,
)
def test_extreme_data_and_spaces_work(tmp_path, made, space):
    data = load_data(source(tmp_path, **made), val_images=2 * made.get("classes", 2))
    assert len(data.train) < TINY.batch_size  # batches are larger than the data
    found = search_darts(data, space, TINY, 0).genotype
    hyper = train_hypernetwork(data, space, TINY, 0, found)
    assert len(hyper.log[0]["calibration"]) == 2 * space.max_shared + 1
    net, _ = retrain(data, hyper.structure.sample(space.max_shared), SHORT, 0)
    probs = predict(net, data.test, data)
    assert np.isfinite(
        list(ensemble_metrics(probs[None], data.test.labels).values())
    ).all()  # an ensemble of one member


def test_one_image_a_class_is_refused_by_name(tmp_path):
    with pytest.raises(EdgenesError, match="leave none of 2 for training"):
        load_data(source(tmp_path, each=1))


def test_a_batch_of_one_pixel_is_refused_by_name(tmp_path):
    data = load_data(source(tmp_path, size=2), val_images=2)
    for train in (
        lambda: search_darts(data, SearchSpace(), replace(TINY, batch_size=1), 0),
        lambda: retrain(
            data, random_genotype(SearchSpace(), 0), replace(SHORT, batch_size=1), 0
        ),
    ):
        with pytest.raises(EdgenesError, match="a batch of 1 image of 2 x 2 pixels is too small"):
            train()


def test_one_candidate_and_one_member(tmp_path):
    workspace = open_workspace(
        get_profile("smoke", candidates=1, members=1), tmp_path, device="cpu"
    )
    pipeline.run(workspace, quality.plans(workspace, 0), workers=1, progress=False)
    assert set(quality.frame(workspace.records)["system"]) == set(quality.SYSTEMS)


@pytest.mark.parametrize("lr", [1e38, float("nan"), float("inf")])
def test_a_loss_that_diverges_is_said(tmp_path, lr):
    data = load_data(source(tmp_path, each=40))
    steps = WeightOptimiser(lr=lr)
    with pytest.raises(EdgenesError, match="the search diverged in epoch"):
        search_darts(
            data,
            SearchSpace(),
            replace(TINY, epochs=3, batch_size=8, weights=steps),
            0,
            checkpoint=DiskCheckpoint(tmp_path / "c"),
        )
    with pytest.raises(EdgenesError, match="the retraining of .* diverged"):
        retrain(data, random_genotype(SearchSpace(), 0), replace(SHORT, epochs=3, batch_size=8, optimiser=steps), 0)
    if lr == 1e38:
        return  # one step of this size still has finite weights
    with pytest.raises(EdgenesError, match="diverged in its last step"):
        retrain(data, random_genotype(SearchSpace(), 0), replace(SHORT, optimiser=steps), 0)


# ---------------------------------------------------------------- made to do harm


def test_nothing_of_the_package_reads_a_pickle():
    "Arrays are read without pickles, tensors as safetensors; the one unpickler builds numbers and texts alone."
    for path in sorted((ROOT / "edgenes").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = (
                ast.unparse(node) if isinstance(node, (ast.Call, ast.Attribute, ast.alias)) else ""
            )
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
                assert "allow_pickle=False" in text, (path.name, text)
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in (
                    "torch.load",
                    "yaml.load",
                    "pickle.load",
                    "pickle.loads",
                ), (path.name, text)
            if isinstance(node, ast.Attribute) and text.startswith("pickle."):
                assert (path.name, text) == ("data.py", "pickle.Unpickler")
            if isinstance(node, ast.alias):
                assert text.split(".")[0] not in (
                    "joblib",
                    "dill",
                    "cloudpickle",
                    "shelve",
                    "marshal",
                ), path.name


def python_2_pickle(images: np.ndarray, labels: list[int]) -> bytes:
    "As the authors of CIFAR-100 wrote it."
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K"
        + bytes([len(images)])
        + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", images.size)
        + images.tobytes()
        + b"tb"
    )
    return (
        b"\x80\x02}(U\x0bfine_labels]("
        + b"".join(b"K" + bytes([i]) for i in labels)
        + b"eU\x04data"
        + array
        + b"u."
    )


def published(folder: Path, monkeypatch, **contents: bytes) -> None:
    "A cifar-100-python whose checksums are taken for the published ones."
    import hashlib

    for name, content in contents.items():
        write_atomic(folder / "cifar-100-python" / name, content)
    sums = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(
        torchvision.datasets.CIFAR100,
        "meta",
        {"filename": "meta", "key": "fine_label_names", "md5": sums["meta"]},
    )


def test_cifar_files_are_read_without_running_them(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    whole = {
        part: python_2_pickle(images, [i % 2 for i in range(20)]) for part in ("train", "test")
    } | {"meta": b"\x80\x02}U\x10fine_label_names](U\x05appleU\x04beares."}
    published(tmp_path / "good", monkeypatch, **whole)
    data = load_data("cifar100", folder=tmp_path / "good")
    assert data.class_names == ("apple", "bear") and torch.equal(
        data.test.images, torch.from_numpy(images.reshape(20, 3, 32, 32))
    )
    monkeypatch.setattr(
        torchvision.datasets.utils,
        "_urlretrieve",
        lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no network")),
    )
    for name, content in (
        ("train", pickle.dumps(Harm(tmp_path / "harm"))),
        ("meta", b"cos\nsystem\n(S'touch harm'\ntR."),
        ("test", b"cnumpy\nload\n(S'x'\ntR."),
        ("train", whole["train"][:99]),
    ):
        published(
            tmp_path / "bad", monkeypatch, **whole | {name: content}
        )  # even where the checksum fits
        with pytest.raises(EdgenesError, match="no sound copy of CIFAR-100"):
            load_data("cifar100", folder=tmp_path / "bad")
    write_atomic(
        tmp_path / "good" / "cifar-100-python" / "train", pickle.dumps(Harm(tmp_path / "harm"))
    )
    with pytest.raises(EdgenesError, match="no sound copy of CIFAR-100"):
        load_data("cifar100", folder=tmp_path / "good")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad", "good"]


def test_an_archive_with_paths_is_not_unfolded(tmp_path, monkeypatch):
    def fetch(url, filename, **_):
        with tarfile.open(filename, "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("../outside"), io.BytesIO())

    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", fetch)
    monkeypatch.setattr(torchvision.datasets.utils, "_get_redirect_url", lambda url, **_: url)
    with pytest.raises(EdgenesError, match="no sound copy of CIFAR-100"):
        load_data(
            "cifar100", folder=tmp_path / "data" if (tmp_path / "data").mkdir() is None else None
        )
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


NAMES = [
    "../../x",
    "<script>alert(1)</script>",
    "$(touch harm); rm -rf *",
    "a\x1b[2Jb",
    "x" * 5000,
    "%s{0}{x}",
    "ä\u202egnp.x",
]


def test_class_names_do_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = {k: np.concatenate([v] * 4) for k, v in ARRAYS.items() if k != "class_names"} | {
        f"{p}_labels": np.arange(n) % len(NAMES) for p, n in (("train", 80), ("test", 24))
    }
    np.savez("x.npz", class_names=np.array(NAMES), **arrays)
    assert load_data("x.npz").class_names == tuple(NAMES)
    folder = tree(
        tmp_path / "tree",
        [n.replace("/", "∕").lstrip(".") for n in NAMES if len(n) < 200],
        images=20,
    )
    assert load_data(folder).classes == len(NAMES) - 1
    (folder / "test" / "<b>\x1b[2J").mkdir()
    with pytest.raises(EdgenesError, match=r"class <b>\\x1b\[2J is not in both"):
        load_data(folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tree", "x.npz"]


def finished(folder: Path) -> Path:
    "A results folder with real records, at the smallest budget."
    workspace = open_workspace(get_profile("smoke"), folder, device="cpu")
    pipeline.run(
        workspace, quality.plans(workspace, 0, ("DARTS", "EdgeNES")), workers=1, progress=False
    )
    return folder


def test_report_escapes_the_folder(tmp_path):
    page = report.build_report(finished(tmp_path / "<script>alert(1)<&script>"))[-1].read_text(
        encoding="utf-8"
    )
    assert "&lt;script&gt;alert(1)&lt;&amp;script&gt;" in page and "<script" not in page


def test_report_escapes_a_kind(tmp_path):
    "A record is sealed by whoever can hash: its kind is a word, or it is refused."
    records = Records(finished(tmp_path))
    [path, *_] = records.paths("system")
    record = read_json(path) | {"kind": "system-'><img src=x onerror=alert(1)>"}
    write_json(
        path.with_name(f"{record['kind']}-{records.key(record['inputs'])}.json"), sealed(record)
    )
    with pytest.raises(EdgenesError, match="no word"):
        report.build_report(tmp_path)


def test_records_that_cannot_be_listed_take_nothing_away(tmp_path, monkeypatch):
    "Tables of records that are out of sight for a moment are not tables of none."
    report.build_report(finished(tmp_path))
    before = whole_files(tmp_path)
    (tmp_path / "runs").rename(tmp_path / "away"), write_atomic(tmp_path / "runs", "")
    with pytest.raises(EdgenesError, match="cannot list"):
        report.build_report(tmp_path)
    (tmp_path / "runs").unlink(), (tmp_path / "away").rename(tmp_path / "runs")

    def barred(folder):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "listdir", barred)
    with pytest.raises(EdgenesError, match="cannot list .*Permission denied"):
        report.build_report(tmp_path)
    monkeypatch.undo()
    assert whole_files(tmp_path) == before


# ---------------------------------------------------------------- disks


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def whole_files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_a_full_disk_leaves_every_file_whole(tmp_path, monkeypatch, whole_records, step):
    records = Records(tmp_path)
    write_atomic(tmp_path / "a.txt", "old")
    DiskCheckpoint(tmp_path / "work").save(training()[1])
    before = whole_files(tmp_path)
    monkeypatch.setattr(core.os, step, full)
    for write in (
        lambda: write_atomic(tmp_path / "a.txt", "new"),
        lambda: write_json(tmp_path / "a.txt", {}),
        lambda: save_predictions(records, "k", val=np.zeros((2, 2))),
        lambda: write_record(records, "darts", {"seed": 5}, *RUNS["darts"]),
        lambda: DiskCheckpoint(tmp_path / "work").save(training()[1] | {"log": [{}] * 3}),
    ):
        with pytest.raises(EdgenesError, match="cannot write .*: No space left on device; choose"):
            write()
    assert whole_files(tmp_path) == before


def test_what_killed_writers_left_is_removed(tmp_path):
    "After an hour: a younger file may be that of a process at work."
    open_workspace(get_profile("smoke"), tmp_path, device="cpu")
    left = [
        tmp_path / part / f".x{i}.tmp"
        for part in (".", "runs", "cache", "tables", "figures", "work/darts-0")
        for i in range(2)
    ]
    for path in left:
        write_atomic(path, "half")
    for path in left[::2]:
        os.utime(path, (0, 0))
    open_workspace(get_profile("smoke"), tmp_path, device="cpu")
    assert [path.exists() for path in left] == [False, True] * 6


def test_a_limit_of_the_file_size(tmp_path):
    "The disk of the system itself says no, in the middle of a file."
    write_atomic(tmp_path / "a.txt", "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(EdgenesError, match="cannot write"):
            write_atomic(tmp_path / "a.txt", "x" * 10**6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert whole_files(tmp_path) == {"a.txt": b"old"}


def test_a_file_where_a_folder_should_be(tmp_path):
    (
        write_atomic(tmp_path / "runs", ""),
        write_atomic(tmp_path / "cache", ""),
        write_atomic(tmp_path / "work", ""),
    )
    records, before = Records(tmp_path), whole_files(tmp_path)
    assert (
        records.find("darts", {"seed": 0}) is None
        and load_predictions(records, "k") is None
        and DiskCheckpoint(tmp_path / "work").load() is None
    )
    with pytest.raises(EdgenesError, match="cannot list"):
        all_records(records, "darts")
    assert all_records(Records(tmp_path / "nowhere"), "darts") == []
    for write in (
        lambda: write_record(records, "darts", {"seed": 5}, *RUNS["darts"]),
        lambda: save_predictions(records, "k", val=np.zeros((2, 2))),
        lambda: DiskCheckpoint(tmp_path / "work").save(training()[1]),
        lambda: write_atomic(tmp_path, "x"),
        lambda: write_atomic(tmp_path / "a\0b", "x"),
    ):
        with pytest.raises(EdgenesError, match="cannot write"):
            write()
    assert whole_files(tmp_path) == before


def test_a_search_stopped_by_a_full_disk_goes_on_as_if_it_was_not(tmp_path, monkeypatch):
    data, budget = (
        load_data(source(tmp_path)),
        replace(TINY, epochs=4, batch_size=8, augment=Augment(pad=1)),
    )
    unbroken, checkpoint, real, calls = (
        search_darts(data, SearchSpace(), budget, 0),
        DiskCheckpoint(tmp_path / "c"),
        os.fsync,
        [],
    )
    monkeypatch.setattr(
        core.os,
        "fsync",
        lambda file: full() if len(calls) == 2 else (calls.append(file), real(file)),
    )
    with pytest.raises(EdgenesError, match="No space left"):
        search_darts(data, SearchSpace(), budget, 0, checkpoint=checkpoint)
    monkeypatch.undo()
    assert [p.name for p in checkpoint.files()] == [
        "epoch-00001.safetensors",
        "epoch-00002.safetensors",
    ]
    checkpoint.files()[-1].write_bytes(
        checkpoint.files()[-1].read_bytes()[:-1]
    )  # and the newest is torn
    with pytest.warns(match="is damaged"):
        resumed = search_darts(data, SearchSpace(), budget, 0, checkpoint=checkpoint)
    assert torch.equal(resumed.structure(None), unbroken.structure(None))


def test_a_report_on_a_full_disk(tmp_path, monkeypatch):
    report.build_report(finished(tmp_path))
    drawn = lambda files: {
        name: content for name, content in files.items() if not name.endswith((".svg", "dial.html"))
    }  # matplotlib numbers the parts of an SVG anew
    before, calls, real = whole_files(tmp_path), [], os.fsync
    monkeypatch.setattr(
        core.os,
        "fsync",
        lambda file: full() if len(calls) == 3 else (calls.append(file), real(file)),
    )
    with pytest.raises(EdgenesError, match="No space left"):
        report.build_report(tmp_path)
    assert whole_files(tmp_path).keys() == before.keys()
    monkeypatch.undo()
    report.build_report(tmp_path)
    assert drawn(whole_files(tmp_path)) == drawn(before)


# ---------------------------------------------------------------- the count


def test_enough_was_tried(place):
    "Last in the file: how many bad inputs were really refused."
    print(f"{sum(TRIED.values())} bad inputs were refused: {dict(TRIED)}")
    if set(TRIED) != set(WANTED):
        pytest.skip("only a part of this file was run")
    assert (
        all(TRIED[kind] >= least for kind, least in WANTED.items()) and sum(TRIED.values()) >= 2000
    ), TRIED
    assert not list(place.rglob("*.tmp"))
