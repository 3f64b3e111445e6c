"""Fits that are stopped and go on, bars that are right, and what fitted ensembles are used for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch._dynamo  # the first optimiser loads it: seconds that no bar can foresee
from commands import refusal
from estimator_inputs import EXPORTED, FEW, IMAGES, LABELS, SHORT, same_answers, write_pictures

from edgenes import EdgeNES
from edgenes.core import EdgenesError
from edgenes.estimator import fit, notes, progress, unfinished
from edgenes.estimator.planning import clock_of_budgets
from edgenes.estimator.unfinished import TrainingCheckpoint


class Stopped(BaseException):
    """Ends a fit as Ctrl-C does."""


@pytest.fixture
def stop_at(monkeypatch):
    """Lets a fit end at every so many states that it saves, all of which are written."""
    saved = []
    real = TrainingCheckpoint.save
    monkeypatch.setattr(unfinished, "SECONDS_BETWEEN", 0)
    monkeypatch.setattr(unfinished, "_PATIENCE", 0)

    def stop_every(number):
        def save(self, state):
            real(self, state)
            saved.append(state)
            if len(saved) % number == 0:
                raise Stopped

        monkeypatch.setattr(TrainingCheckpoint, "save", save)

    return stop_every


@pytest.fixture(scope="module")
def model():
    return EdgeNES(members=2, candidates=2, search_steps=16, epochs=12, verbose=0).fit(
        IMAGES[:900], LABELS[:900]
    )


# ---------------------------------------------------------------- fits that are stopped


@pytest.mark.parametrize("strategy", ["independent", "hatch"])
def test_a_fit_that_is_stopped_again_and_again_ends_with_the_same_bits(tmp_path, stop_at, strategy):
    parameters = SHORT | {"strategy": strategy}
    expected = EdgeNES(**parameters).fit(*FEW)
    stop_at(3)
    stops = 0
    while True:
        again = EdgeNES(**parameters)
        try:
            again.fit(*FEW, checkpoint=tmp_path / "unfinished")
            break
        except Stopped:
            stops += 1
    assert stops >= 2
    assert same_answers(again, expected)
    reports = [dict(fitted.report_, spent=None) for fitted in (again, expected)]
    assert reports[0] == reports[1]
    again.save(tmp_path / "ensemble")
    assert os.listdir(tmp_path) == ["ensemble"]


BUDGET = ("--members", 2, "--candidates", 2, "--search-steps", 32, "--epochs", 40)


def start_fit(root, out, *options):
    """The process of a command that fits the pictures of a folder."""
    arguments = ["fit", root / "pictures", "--out", out, "--quiet", *options, *BUDGET]
    command = [sys.executable, "-m", "edgenes", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def fitted_files(root, out, *options):
    """The digests of the files of the ensemble that a command fits."""
    process = start_fit(root, out, *options)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return json.loads((out / "ensemble.json").read_text())["files"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder with pictures, digests of the ensemble of a command that was never stopped)."""
    root = tmp_path_factory.mktemp("whole")
    write_pictures(root / "pictures", *FEW)
    return root, fitted_files(root, root / "ensemble")


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_command_goes_on_after_a_kill_and_after_ctrl_c(whole, tmp_path, jobs):
    """To the same bits as one process that is never stopped."""
    root, expected = whole
    out = tmp_path / "stopped"
    kept = tmp_path / "stopped.unfinished"
    for place, moment in (("search", signal.SIGKILL), ("candidate-1", signal.SIGINT)):
        process = start_fit(root, out, "--jobs", jobs)
        while process.poll() is None and not list(kept.glob(f"{place}/epoch-*")):
            time.sleep(0.02)
        process.send_signal(moment)
        _, errors = process.communicate()
        assert (kept / "fit.json").exists(), errors
        assert not out.exists()
    assert process.returncode == 130
    last = errors.splitlines()[-1]
    assert last.startswith(f"edgenes: stopped; to go on from here: edgenes fit {root}/pictures")
    other = ("--seed", 1, "--balanced")
    line = refusal("fit", root / "pictures", "--out", out, "--quiet", *other, *BUDGET)
    assert "class_weight was None and is 'balanced'; seed was 0 and is 1" in line
    assert fitted_files(root, out, "--jobs", jobs) == expected
    assert os.listdir(tmp_path) == ["stopped"]


def test_the_seconds_of_a_stopped_fit_count(tmp_path, stop_at):
    parameters = {"members": 2, "candidates": 3, "time_budget": 10, "verbose": 0}
    stop_at(8)
    fit.load_metrics()
    start = time.process_time()
    stops = 0
    with clock_of_budgets(time.process_time):
        while True:
            again = EdgeNES(**parameters)
            try:
                again.fit(IMAGES, LABELS, checkpoint=tmp_path / "unfinished")
                break
            except Stopped:
                stops += 1
                if stops == 3:
                    stop_at(10**9)
    seconds = time.process_time() - start
    assert stops == 3
    assert 8 < seconds < 13, (seconds, again.report_["spent"])
    assert sum(spent["seconds"] for spent in again.report_["spent"].values()) < 11


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 3}, "epochs was 2 and is 3"),
        ({"seed": 1, "time_budget": 9.0}, "seed was 0 and is 1; time_budget was None and is 9.0"),
        ({"images": IMAGES[1:201]}, "the images or labels are others"),
    ],
)
def test_the_checkpoint_of_another_fit_is_refused_and_left(tmp_path, stop_at, change, said):
    stop_at(2)
    with pytest.raises(Stopped):
        EdgeNES(**SHORT).fit(*FEW, checkpoint=tmp_path)
    before = sorted(tmp_path.rglob("*"))
    images = change.pop("images", FEW[0])
    with pytest.raises(EdgenesError, match=rf"\({said}\): give what it had"):
        EdgeNES(**SHORT | change).fit(images, FEW[1], checkpoint=tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_is_full_does_not_end_a_fit(tmp_path, monkeypatch):
    def full(*_):
        raise EdgenesError("cannot write x: No space left on device")

    monkeypatch.setattr("edgenes.training.write_atomic", full)
    with pytest.warns(UserWarning, match="will have to start anew"):
        fitted = EdgeNES(**SHORT).fit(*FEW, checkpoint=tmp_path / "unfinished")
    assert len(fitted.members_) == 2


# ---------------------------------------------------------------- the bar


@pytest.mark.parametrize("budget", [{"search_steps": 64, "epochs": 12}, {"time_budget": 12}])
def test_the_bar_tells_the_time_that_is_left(monkeypatch, budget, capsys):
    seen = []
    real = progress.FitProgress.show

    def show(self):
        real(self)
        gone = time.process_time() - start
        left = self.forecast.left() if self.seconds is None else self.seconds - gone
        seen.append((gone, left, self.bar.n))

    monkeypatch.setattr(progress.FitProgress, "show", show)
    fit.load_metrics()
    start = time.process_time()
    with clock_of_budgets(time.process_time):
        EdgeNES(members=2, candidates=3, **budget).fit(IMAGES[:900], LABELS[:900])
    whole = time.process_time() - start
    shares = [share for *_, share in seen]
    assert shares == sorted(shares)
    between = [moment for moment in seen if 0.1 < moment[0] / whole < 0.9]
    ratios = [left / (whole - gone) for gone, left, _ in between]
    close = [1 / 2 < ratio < 2 for ratio in ratios]
    assert np.mean(close) > 0.8, ratios
    assert 1 / 2.5 < min(ratios) <= max(ratios) < 2.5, ratios
    assert all(abs(share - gone / whole) < 0.25 for gone, _, share in between), between
    log = capsys.readouterr().err
    assert "left]" in log
    # What is captured is no terminal: a line for every phase and every tenth.
    assert "\r" not in log
    lines = log.splitlines()
    phases = {line.partition(":")[0] for line in lines}
    assert len(phases) <= len(lines) <= len(phases) + 11


def test_on_a_terminal_the_bar_stays_on_its_line(monkeypatch, capsys):
    monkeypatch.setattr(progress, "redraws", lambda stream: True)
    with progress.FitProgress(10, verbose=1) as shown_progress:
        shown_progress.begin("search")
        shown_progress.on_epoch(1, 2)
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "search:  0% [00:00, 00:" in shown
    assert "[," not in shown
    assert "[]" not in shown


# ---------------------------------------------------------------- members that do not differ


def test_members_of_one_architecture_are_told_first(tmp_path, capsys):
    model = EdgeNES(members=2, candidates=2, strategy="hatch", search_steps=4, epochs=2)
    model.fit(*FEW)
    note = model.report_["notes"][0]
    assert note.startswith("no diversity of architectures: all 2 members are alpha* itself")
    assert "give 45 epochs" in note
    assert capsys.readouterr().out.startswith(f"note: {note}\n")
    card = (model.save(tmp_path / "ensemble") / "README.md").read_text()
    assert card.splitlines()[2].startswith("**Note**: no diversity of architectures")


def test_a_short_budget_says_how_many_seconds_would_do():
    assert notes.enough_for_fresh_edges(60, 18.5) == "about 150 seconds"
    assert notes.enough_for_fresh_edges(2, 0.01) == "about 9000 seconds"
    assert notes.enough_for_fresh_edges(2, -1) == "more seconds"
    assert notes.enough_for_fresh_edges(None, None) == "45 epochs"


# ---------------------------------------------------------------- sure and unsure


def test_answers_that_are_rejected_are_the_unsure_ones(model):
    test_images = IMAGES[900:]
    total = model.predict_uncertainty(test_images).total
    answers = model.predict(test_images, reject=0.1)
    assert total[answers.mask].min() > total[~answers.mask].max()
    assert 0.02 < answers.mask.mean() < 0.3
    is_right = answers.data == LABELS[900:]
    assert is_right[~answers.mask].mean() > is_right.mean()
    assert (answers.data == model.predict(test_images)).all()
    alone = [bool(np.ma.getmaskarray(model.predict(x[None], reject=0.1))) for x in test_images[:9]]
    assert alone == answers.mask[:9].tolist()
    for wrong in (-0.1, 1, "x", True, float("nan")):
        with pytest.raises(EdgenesError, match="reject is"):
            model.predict(test_images, reject=wrong)


def test_a_temperature_is_kept_wherever_the_ensemble_goes(model, tmp_path):
    sharper = EdgeNES.load(model.save(tmp_path / "ensemble"))
    sharper.members_[0].temperature.fill_(0.5)
    again = EdgeNES.load(sharper.save(tmp_path / "sharper"))
    expected = sharper.predict_proba(IMAGES)
    assert not np.allclose(expected, model.predict_proba(IMAGES), atol=1e-3)
    assert np.array_equal(again.predict_proba(IMAGES), expected)
    exported = torch.export.load(again.export(tmp_path / "x.pt2")).module()
    x = torch.from_numpy(IMAGES[:9])[:, None].float() / 255
    assert np.allclose(exported(x).detach().numpy(), expected[:9], atol=1e-5)


def test_without_calibration_logits_stay(model):
    plain = EdgeNES(**model.get_params() | {"calibrate": False}).fit(IMAGES[:900], LABELS[:900])
    assert plain.report_["temperature"] == 1
    assert plain.report_["chosen"] == model.report_["chosen"]
    gain = plain.report_["validation"]["nll_nats"] - model.report_["validation"]["nll_nats"]
    assert gain > 0 if model.report_["temperature"] != 1 else gain == 0


# ---------------------------------------------------------------- exported files


@pytest.mark.parametrize("suffix", EXPORTED)
@pytest.mark.parametrize("member", [None, 1])
def test_an_exported_file_takes_any_number_of_images(model, tmp_path, suffix, member):
    if suffix == ".onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
    path = model.export(tmp_path / f"ensemble{suffix}", member)
    expected = model.predict_proba(IMAGES) if member is None else model.member_proba(IMAGES)[member]
    for count in (1, 2, 7):
        x = torch.from_numpy(IMAGES[:count])[:, None].float() / 255
        if suffix == ".onnx":
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            (answers,) = session.run(None, {"images": x.numpy()})
            assert "card.md" in session.get_modelmeta().custom_metadata_map
        else:
            answers = torch.export.load(path).module()(x).detach().numpy()
        assert np.allclose(answers, expected[:count], atol=1e-5)


@pytest.mark.parametrize("member", [2, -1, 0.5, "0"])
def test_a_member_that_is_none_is_refused(model, tmp_path, member):
    with pytest.raises(EdgenesError, match="member is"):
        model.export(tmp_path / "x.pt2", member)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_ensemble_moves_to_another_device(model, tmp_path):
    folder = model.save(tmp_path / "ensemble")
    moved = EdgeNES.load(folder, "cuda")
    assert moved.members_[0].mean.is_cuda
    assert np.allclose(moved.predict_proba(IMAGES), model.predict_proba(IMAGES), atol=1e-4)
    back = EdgeNES.load(moved.save(tmp_path / "moved"), "cpu")
    assert np.array_equal(back.predict_proba(IMAGES), model.predict_proba(IMAGES))
    assert moved.export(tmp_path / "x.pt2").exists()
