"""Disks that are full, or hold something else: what was complete stays complete."""

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import papermill
import pytest
import torch
from project import ROOT
from refusals import file_contents, no_space, no_space_after
from small_inputs import RUNS, TINY_SEARCH, trained_parts, write_npz, write_results

import edgenes.cli.study
from edgenes import core
from edgenes.core import EdgenesError, write_atomic, write_json
from edgenes.data import Augment
from edgenes.experiments import registry
from edgenes.genotype import SearchSpace
from edgenes.readers import load_data
from edgenes.search import search_darts
from edgenes.study.forecast import Meter
from edgenes.study.profiles import get_profile
from edgenes.study.records import (
    Records,
    all_records,
    load_predictions,
    save_predictions,
    write_record,
)
from edgenes.study.workspace import open_workspace
from edgenes.training import DiskCheckpoint

# ---------------------------------------------------------------- one file


def save_two_epochs(folder):
    """Writes a checkpoint."""
    DiskCheckpoint(folder / "work").save(trained_parts()[1])


def save_three_epochs(folder):
    """Writes a checkpoint that is newer."""
    state = trained_parts()[1] | {"log": [{}] * 3}
    DiskCheckpoint(folder / "work").save(state)


def save_some_predictions(folder):
    """Writes predictions to the cache."""
    save_predictions(Records(folder), "k", val=np.zeros((2, 2)))


def write_a_record(folder):
    """Writes the record of a search."""
    write_record(Records(folder), "darts", {"seed": 5}, *RUNS["darts"])


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_a_full_disk_leaves_every_file_complete(tmp_path, monkeypatch, step):
    text = write_atomic(tmp_path / "a.txt", "old")
    save_two_epochs(tmp_path)
    before = file_contents(tmp_path)
    monkeypatch.setattr(core.os, step, no_space)
    fault = r"cannot write .*: No space left on device; choose"
    with pytest.raises(EdgenesError, match=fault):
        write_atomic(text, "new")
    with pytest.raises(EdgenesError, match=fault):
        write_json(text, {})
    for write in (save_some_predictions, write_a_record, save_three_epochs):
        with pytest.raises(EdgenesError, match=fault):
            write(tmp_path)
    assert file_contents(tmp_path) == before


def test_what_killed_writers_left_is_removed(tmp_path):
    """This is done after an hour: a younger file may be that of a process at work."""
    profile = get_profile("smoke")
    open_workspace(profile, tmp_path, device="cpu")
    parts = (".", "runs", "cache", "tables", "figures", "work/darts-0")
    old = [tmp_path / part / ".x0.tmp" for part in parts]
    young = [tmp_path / part / ".x1.tmp" for part in parts]
    for path in (*old, *young):
        write_atomic(path, "half")
    for path in old:
        os.utime(path, (0, 0))
    open_workspace(profile, tmp_path, device="cpu")
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in young)


@contextlib.contextmanager
def file_size_limit(size):
    """The system itself refuses larger files, in the middle of them; the size is in bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_limit_of_the_file_size(tmp_path):
    write_atomic(tmp_path / "a.txt", "old")
    with file_size_limit(50_000), pytest.raises(EdgenesError, match="cannot write"):
        write_atomic(tmp_path / "a.txt", "x" * 10**6)
    assert file_contents(tmp_path) == {"a.txt": b"old"}


@pytest.fixture
def folder_of_files(tmp_path):
    """A results folder in which files stand where folders should be."""
    for name in ("runs", "cache", "work"):
        write_atomic(tmp_path / name, "")
    return tmp_path


def test_reading_where_a_file_is_no_folder(folder_of_files):
    records = Records(folder_of_files)
    assert records.find("darts", {"seed": 0}) is None
    assert load_predictions(records, "k") is None
    assert DiskCheckpoint(folder_of_files / "work").load() is None
    with pytest.raises(EdgenesError, match="cannot list"):
        all_records(records, "darts")
    assert all_records(Records(folder_of_files / "nowhere"), "darts") == []


def test_writing_where_a_file_is_no_folder(folder_of_files):
    before = file_contents(folder_of_files)
    for write in (write_a_record, save_some_predictions, save_two_epochs):
        with pytest.raises(EdgenesError, match="cannot write"):
            write(folder_of_files)
    for path in (folder_of_files, folder_of_files / "a\0b"):
        with pytest.raises(EdgenesError, match="cannot write"):
            write_atomic(path, "x")
    assert file_contents(folder_of_files) == before


# ---------------------------------------------------------------- searches and reports


def test_a_search_stopped_by_a_full_disk_goes_on_as_if_it_was_not(tmp_path, monkeypatch):
    data = load_data(write_npz(tmp_path))
    space = SearchSpace()
    budget = replace(TINY_SEARCH, epochs=4, batch_size=8, augment=Augment(pad=1))
    unbroken = search_darts(data, space, budget, 0)
    checkpoint = DiskCheckpoint(tmp_path / "c")
    monkeypatch.setattr(core.os, "fsync", no_space_after(2))
    with pytest.raises(EdgenesError, match="No space left"):
        search_darts(data, space, budget, 0, checkpoint=checkpoint)
    monkeypatch.undo()
    files = checkpoint.files()
    names = [path.name for path in files]
    assert names == ["epoch-00001.safetensors", "epoch-00002.safetensors"]
    files[-1].write_bytes(files[-1].read_bytes()[:-1])  # and the newest is torn
    with pytest.warns(match="is damaged"):
        resumed = search_darts(data, space, budget, 0, checkpoint=checkpoint)
    assert torch.equal(resumed.structure(None), unbroken.structure(None))


def without_drawings(contents):
    """The files without those in which matplotlib numbers the parts of an SVG anew."""
    drawings = (".svg", "dial.html")
    return {name: text for name, text in contents.items() if not name.endswith(drawings)}


def test_a_report_on_a_full_disk(tmp_path, monkeypatch):
    registry.build_report(write_results(tmp_path))
    before = file_contents(tmp_path)
    monkeypatch.setattr(core.os, "fsync", no_space_after(3))
    with pytest.raises(EdgenesError, match="No space left"):
        registry.build_report(tmp_path)
    assert file_contents(tmp_path).keys() == before.keys()
    monkeypatch.undo()
    registry.build_report(tmp_path)
    assert without_drawings(file_contents(tmp_path)) == without_drawings(before)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("Kernel died")],
    ids=["full disk", "dead kernel"],
)
def test_a_notebook_is_complete_or_as_it_was(tmp_path, monkeypatch, error):
    def write_half(source, target, *_, **__):
        Path(target).write_text('{"cells": [')
        raise error

    monkeypatch.setattr(papermill, "execute_notebook", write_half)
    monkeypatch.chdir(ROOT)
    write_atomic(tmp_path / "notebooks" / "space.ipynb", "{}")
    paths = edgenes.cli.study.notebook_paths(["space"])
    meter = Meter("smoke", show=False)
    with pytest.raises(EdgenesError, match=r"space.ipynb stopped .*(No space|Kernel died)"):
        edgenes.cli.study.execute_notebooks(paths, "smoke", {}, tmp_path, None, meter)
    assert file_contents(tmp_path) == {"notebooks/space.ipynb": b"{}"}


# ---------------------------------------------------------------- output

STATUS = f"{sys.executable} -m edgenes status smoke --results nowhere"


def code_and_errors(command):
    """(exit code of the first program of a pipe, lines on stderr)."""
    first, pipe, rest = command.partition("|")
    script = f"({first}; echo $? >&2) {pipe}{rest}"
    process = subprocess.run(script, shell=True, capture_output=True, text=True)
    *lines, code = process.stderr.splitlines()
    return int(code), lines


def test_a_full_disk_for_stdout_is_one_line():
    code, [line] = code_and_errors(f"{STATUS} >/dev/full")
    assert code == 2
    assert line.startswith("edgenes: cannot use the output: No space left on device; ")


def test_no_stdout_at_all_is_no_fault():
    assert code_and_errors(f"{STATUS} >&-") == (0, [])


def test_an_output_that_nobody_reads_is_no_message():
    """The reader has gone before the command has loaded its modules."""
    assert code_and_errors(f"{STATUS} | true") == (1, [])
