"""Files meant to do harm: nothing in them is run, followed, unfolded or shown as a page."""

import ast
import hashlib
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import file_contents, in_time
from small_inputs import ARRAYS, Harm, sealed, write_results, write_tree
from torchvision.datasets import CIFAR100, utils

from edgenes.core import EdgenesError, read_json, write_atomic, write_json
from edgenes.experiments import registry
from edgenes.readers import load_data
from edgenes.study import tasks
from edgenes.study.records import Records

PACKAGE = Path(__file__).resolve().parents[1] / "edgenes"

# ---------------------------------------------------------------- pickles

LOADERS = ("torch.load", "yaml.load", "pickle.load", "pickle.loads", "pandas.read_pickle")
PICKLERS = ("joblib", "dill", "cloudpickle", "shelve", "marshal")
UNPICKLER = ("readers.py", "pickle.Unpickler")  # it builds numbers and texts alone


def check_call(node, name):
    """Nothing is called that reads pickles, and NumPy is told not to."""
    function = ast.unparse(node.func)
    assert function not in LOADERS, (name, function)
    if function in ("np.load", "numpy.load"):
        assert "allow_pickle=False" in ast.unparse(node), name


def check_import(node, name):
    """Pickles are known by their own names alone, and only where the one unpickler is."""
    modules = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        modules = [node.module or ""]
        assert modules != ["pickle"], name
    packages = {module.split(".")[0] for module in modules}
    if name == "estimator/workers.py":  # objects between a process and its own workers, no files
        packages.discard("joblib")
    assert packages.isdisjoint(PICKLERS), name
    if "pickle" in packages:
        assert name == UNPICKLER[0]
        assert all(alias.asname is None for alias in node.names), name


def test_nothing_of_the_package_reads_a_pickle():
    """Arrays are read without pickles, tensors as safetensors."""
    paths = sorted(PACKAGE.rglob("*.py"))
    assert {path.parent.name for path in paths} >= {"edgenes", "study", "estimator", "cli"}
    uses = set()
    for path in paths:
        name = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                check_call(node, name)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                check_import(node, name)
            elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("pickle."):
                uses.add((name, ast.unparse(node)))
    assert uses == {UNPICKLER}


# ---------------------------------------------------------------- CIFAR-100


def python_2_pickle(images, labels):
    """A file of images, as the authors of CIFAR-100 wrote it."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K"
        + bytes([len(images)])
        + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", images.size)
        + images.tobytes()
        + b"tb"
    )
    label_codes = b"".join(b"K" + bytes([label]) for label in labels)
    return b"\x80\x02}(U\x0bfine_labels](" + label_codes + b"eU\x04data" + array + b"u."


IMAGES = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
CIFAR_FILES = {
    "train": python_2_pickle(IMAGES, [i % 2 for i in range(20)]),
    "test": python_2_pickle(IMAGES, [i % 2 for i in range(20)]),
    "meta": b"\x80\x02}U\x10fine_label_names](U\x05appleU\x04beares.",
}


def write_cifar(folder, monkeypatch, **changes):
    """Writes a cifar-100-python whose checksums are taken for the published ones."""
    files = CIFAR_FILES | changes
    for name, content in files.items():
        write_atomic(folder / "cifar-100-python" / name, content)
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    meta = {"filename": "meta", "key": "fine_label_names", "md5": sums["meta"]}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", meta)
    return folder


@pytest.fixture
def no_network(monkeypatch):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(utils, "_urlretrieve", fail)


def check_no_sound_copy(folder):
    with pytest.raises(EdgenesError, match="no sound copy of CIFAR-100"):
        load_data("cifar100", folder=folder)


def test_cifar_files_are_read(tmp_path, monkeypatch):
    data = load_data("cifar100", folder=write_cifar(tmp_path, monkeypatch))
    assert data.class_names == ("apple", "bear")
    assert torch.equal(data.test.images, torch.from_numpy(IMAGES.reshape(20, 3, 32, 32)))


@pytest.mark.parametrize("name", ["train", "meta", "meta of letters", "test", "cut train"])
def test_cifar_files_are_not_run(name, tmp_path, monkeypatch, no_network):
    """Even where the checksum fits."""
    content = {
        "train": pickle.dumps(Harm(tmp_path / "harm")),
        "meta": pickle.dumps(Harm(tmp_path / "harm")),
        "meta of letters": b"cos\nsystem\n(S'touch harm'\ntR.",
        "test": b"cnumpy\nload\n(S'x'\ntR.",
        "cut train": CIFAR_FILES["train"][:99],
    }[name]
    monkeypatch.chdir(tmp_path)
    file = next(file for file in CIFAR_FILES if file in name)
    folder = write_cifar(tmp_path / "bad", monkeypatch, **{file: content})
    check_no_sound_copy(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_a_cifar_file_that_was_exchanged(tmp_path, monkeypatch, no_network):
    folder = write_cifar(tmp_path / "data", monkeypatch)
    harm = pickle.dumps(Harm(tmp_path / "harm"))
    write_atomic(folder / "cifar-100-python" / "train", harm)
    check_no_sound_copy(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_an_archive_with_paths_is_not_unfolded(tmp_path, monkeypatch):
    def fetch(url, filename, **_):
        with tarfile.open(filename, "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("../outside"), io.BytesIO())

    monkeypatch.setattr(utils, "_urlretrieve", fetch)
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, **_: url)
    folder = tmp_path / "data"
    folder.mkdir()
    check_no_sound_copy(folder)
    assert list(tmp_path.iterdir()) == [folder]


# ---------------------------------------------------------------- names

HARMFUL_NAMES = [
    "../../x",
    "<script>alert(1)</script>",
    "$(touch harm); rm -rf *",
    "a\x1b[2Jb",
    "x" * 5000,
    "%s{0}{x}",
    "ä\u202egnp.x",
]


def test_class_names_of_an_archive_do_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = {name: np.concatenate([array] * 4) for name, array in ARRAYS.items()}
    arrays["class_names"] = np.array(HARMFUL_NAMES)
    for part in ("train", "test"):
        count = len(arrays[f"{part}_images"])
        arrays[f"{part}_labels"] = np.arange(count) % len(HARMFUL_NAMES)
    np.savez("x.npz", **arrays)
    assert load_data("x.npz").class_names == tuple(HARMFUL_NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_class_names_of_a_folder_do_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = [name for name in HARMFUL_NAMES if len(name) < 200]
    names = [name.replace("/", "∕").lstrip(".") for name in short]  # as a file system takes them
    folder = write_tree(tmp_path / "tree", names, images=20)
    assert load_data(folder).classes == len(names) == len(HARMFUL_NAMES) - 1
    (folder / "test" / "<b>\x1b[2J").mkdir()
    with pytest.raises(EdgenesError, match=r"class <b>\\x1b\[2J is not in both"):
        load_data(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_report_escapes_the_folder(tmp_path):
    folder = write_results(tmp_path / "<script>alert(1)<&script>")
    page = registry.build_report(folder)[-1].read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;&amp;script&gt;" in page
    assert page.count("<script") == 1  # its own, which marks wide tables
    assert "alert" not in page.partition("<script")[2]


def test_a_kind_of_record_is_a_word(tmp_path):
    """Whoever can hash can seal a record of any kind."""
    records = Records(write_results(tmp_path))
    path = records.paths("system")[0]
    record = read_json(path) | {"kind": "system-'><img src=x onerror=alert(1)>"}
    name = f"{record['kind']}-{records.key(record['inputs'])}.json"
    write_json(path.with_name(name), sealed(record))
    with pytest.raises(EdgenesError, match="no word"):
        registry.build_report(tmp_path)


# ---------------------------------------------------------------- locks


@pytest.mark.parametrize("target", ["victim", "nowhere", "lock", "a pipe"])
def test_a_lock_that_is_no_file(target, tmp_path):
    """A link is not followed, a pipe is not waited for, and nothing is emptied."""
    lock = tmp_path / "work" / "lock"
    write_atomic(tmp_path / "victim", "mine")
    lock.parent.mkdir()
    if target == "a pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(tmp_path / "victim" if target == "victim" else target)
    with (
        in_time(),
        pytest.raises(EdgenesError, match=r"cannot write|is no file"),
        tasks.claimed(lock.parent),
    ):
        pass
    lock.unlink()
    assert file_contents(tmp_path) == {"victim": b"mine"}


def test_a_lock_is_not_emptied(tmp_path):
    lock = tmp_path / "work" / "lock"
    write_atomic(lock, "text")
    with tasks.claimed(lock.parent):
        assert lock.read_text() == "text"
