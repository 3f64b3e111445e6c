"""Fits of one's own: what is refused leaves no trace, and what is said comes in time."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from commands import refusal, run_command
from estimator_inputs import FEW, TINY, write_pictures

from edgenes import EdgeNES
from edgenes.core import EdgenesError
from edgenes.estimator import fit, members, planning, workers
from edgenes.estimator.card import evaluation_in_words

IMAGES = FEW[0][:120]
LABELS = FEW[1][:120] % 3


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of three classes."""
    root = tmp_path_factory.mktemp("own") / "pictures"
    return write_pictures(root, IMAGES, [f"class {label}" for label in LABELS])


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    model = EdgeNES(**TINY).fit(IMAGES, np.array(["a", "b", "c"])[LABELS])
    return model.save(tmp_path_factory.mktemp("saved") / "ensemble")


# ---------------------------------------------------------------- fits that are refused


def slow_steps(monkeypatch, seconds):
    """Lets a step of the search seem to take so many seconds."""
    monkeypatch.setattr(planning, "time_search_step", lambda *_: seconds)


def test_what_a_refusal_asked_for_is_not_refused(tmp_path, monkeypatch):
    place = tmp_path / "deep" / "unfinished"
    for wrong in ({"downscale": 100}, {"inputs_per_node": 3}):
        with pytest.raises(EdgenesError):
            EdgeNES(**TINY | wrong).fit(IMAGES, LABELS, checkpoint=place)
        assert not place.exists()
    slow_steps(monkeypatch, 10)
    seconds = {"members": 1, "candidates": 1, "verbose": 0}
    with pytest.raises(EdgenesError, match=r"the time budget leaves .*: give more seconds"):
        EdgeNES(**seconds, time_budget=4).fit(IMAGES, LABELS, checkpoint=place)
    assert not place.exists()
    fitted = EdgeNES(**TINY).fit(IMAGES, LABELS, checkpoint=place)
    assert len(fitted.members_) == 2
    assert place.exists()


def test_the_command_line_takes_the_correction(pictures, tmp_path, monkeypatch):
    out = tmp_path / "ensemble"
    slow_steps(monkeypatch, 10)
    assert "give more seconds" in refusal("fit", pictures, "--out", out, "--time-budget", 4)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    options = ("--members", 2, "--candidates", 2, "--search-steps", 2, "--epochs", 1, "--quiet")
    run_command("fit", pictures, "--out", out, *options)
    assert os.listdir(tmp_path) == ["ensemble"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--time-budget", -1),
        ("--jobs", 0),
        ("--image-size", 63),
        ("--search-steps", 0),
        ("--members", 0),
        ("--candidates", 2),
        ("--relaxation", "none"),
    ],
)
def test_values_are_refused_by_the_names_of_options_before_pictures_are_read(option, value):
    message = refusal("fit", "nowhere", option, value)
    assert message.startswith(f"{option} "), message
    assert not message.endswith("None"), message


def test_no_torch_is_loaded_to_refuse_a_value():
    code = (
        "import sys; sys.argv = ['edgenes', 'fit', 'nowhere', '--jobs', '0']\n"
        "from edgenes.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout == "2 False\n", process.stderr


def test_an_empty_folder_is_taken_and_a_former_ensemble_named(pictures, ensemble, tmp_path):
    options = ("--members", 1, "--candidates", 1, "--search-steps", 2, "--epochs", 1, "--quiet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        (tmp_path / "ensemble").mkdir()
        run_command("fit", pictures, *options)
        message = refusal("fit", pictures, *options)
    assert message.endswith("name another folder with --out, or replace it with --overwrite")


# ---------------------------------------------------------------- what is said, and when


def test_notes_on_images_come_before_the_fit(monkeypatch, capsys):
    rare = np.concatenate([np.zeros(117, int), np.ones(3, int)])
    said = {}

    def search(*arguments, **options):
        said["before"] = capsys.readouterr().out
        return real(*arguments, **options)

    real = fit.run_searches
    monkeypatch.setattr(fit, "run_searches", search)
    model = EdgeNES(**TINY | {"verbose": 1}).fit(IMAGES, rare)
    said["after"] = capsys.readouterr().out
    assert "class_weight" in said["before"]
    assert "class_weight" not in said["after"]
    lines = (said["before"] + said["after"]).splitlines()
    assert sorted(lines) == sorted(f"note: {note}" for note in model.report_["notes"])


def test_no_process_starts_for_members_in_a_chain(monkeypatch):
    monkeypatch.setattr(workers, "ProcessPoolExecutor", lambda *_, **__: pytest.fail("it started"))
    parameters = TINY | {"strategy": "hatch"}
    alone = EdgeNES(**parameters).fit(IMAGES, LABELS)
    asked = EdgeNES(**parameters, n_jobs=2).fit(IMAGES, LABELS)
    assert np.array_equal(asked.predict_proba(IMAGES), alone.predict_proba(IMAGES))
    note = "no candidates were trained side by side: members of a short fit start one from another"
    assert note in asked.report_["notes"]
    assert note not in alone.report_["notes"]


# ---------------------------------------------------------------- answers


def test_a_column_for_each_class(ensemble, pictures):
    text = run_command("predict", ensemble, pictures, "--probabilities").stdout
    head, *rows = csv.reader(io.StringIO(text))
    assert head[6:] == ["probability_a", "probability_b", "probability_c"]
    assert len(rows) == len(IMAGES)
    for row in rows:
        numbers = list(map(float, row[6:]))
        assert abs(sum(numbers) - 1) < 1e-3
        assert row[6 + "abc".index(row[1])] == row[2] == max(row[6:])
    plain = run_command("predict", ensemble, pictures).stdout
    assert [line.split(",") for line in plain.splitlines()] == [row[:6] for row in (head, *rows)]


def test_answers_do_not_depend_on_how_many_images_are_judged_at_a_time(ensemble, monkeypatch):
    model = EdgeNES.load(ensemble)
    expected = model.member_proba(IMAGES)
    monkeypatch.setattr(members, "_MOST_NUMBERS", 7 * 64)
    assert members.images_at_a_time((8, 8, 1)) == 7
    assert np.abs(model.member_proba(IMAGES) - expected).max() < 1e-6


def test_a_table_goes_where_a_link_leads(ensemble, pictures, tmp_path):
    real = tmp_path / "real.csv"
    real.write_text("old")
    link = tmp_path / "link.csv"
    link.symlink_to(real)
    run_command("predict", ensemble, pictures, "--out", link)
    assert link.is_symlink()
    assert real.read_text().startswith("file,label,")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", os.devnull):
        said = refusal("predict", ensemble, pictures, "--out", path)
        assert said.endswith("is a folder or no regular file: give the name of a file with --out")
    assert "leave it out" in refusal("predict", ensemble, pictures, "--out", "-")
    assert sorted(os.listdir(tmp_path)) == ["link.csv", "pipe", "real.csv"]


def test_pictures_of_an_ensemble_need_a_folder(ensemble, tmp_path):
    message = refusal("draw", ensemble, "--out", tmp_path / "x.svg")
    assert message.endswith("give a folder")
    assert list(tmp_path.iterdir()) == []


def test_zero_has_no_sign():
    metrics = dict.fromkeys(fit.ensemble_metrics(np.full((1, 2, 2), 0.5), np.array([0, 1])), -0.0)
    lines = evaluation_in_words(metrics | {"images": 2, "most_frequent_percent": 50.0})
    assert not any(": -0 " in line for line in lines)


# ---------------------------------------------------------------- usage


def run_main(*arguments, before=""):
    code = f"import sys; sys.argv = {['edgenes', *arguments]!r}\n{before}\n"
    code += "from edgenes.__main__ import main\nmain()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_a_usage_error_points_to_the_help_of_its_command(command):
    process = run_main(command)
    assert process.returncode == 2
    assert process.stderr.rstrip().endswith(f"; see edgenes {command} --help"), process.stderr


def test_ctrl_c_while_the_command_line_is_loaded():
    interrupted = """
import importlib.abc
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())"""
    process = run_main("fit", before=interrupted)
    assert process.returncode == 130
    assert process.stderr == "edgenes: stopped\n"
