"""Candidates that are trained side by side, and the search space with dense convolutions."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from estimator_inputs import EXPORTED, FEW, IMAGES, SHORT, change_manifest, write_pictures

from edgenes import EdgeNES
from edgenes.algorithm import Candidate
from edgenes.core import Diverged, EdgenesError
from edgenes.data import Split
from edgenes.discrete import DiscreteNetwork
from edgenes.estimator.candidates import Job, Training, _train_elsewhere, train_all
from edgenes.estimator.card import model_card
from edgenes.estimator.members import (
    FittedEnsemble,
    ImageNetwork,
    member_probabilities,
)
from edgenes.estimator.parameters import FitParameters
from edgenes.estimator.planning import OPERATIONS_OF_SPACES, choose_strategy, plan_fit
from edgenes.estimator.progress import FitProgress
from edgenes.estimator.saved import export_ensemble, load_ensemble, save_ensemble
from edgenes.estimator.workers import Workers
from edgenes.genotype import Edge, Genotype, SearchSpace
from edgenes.hypernetwork import Hypernetwork
from edgenes.neighbours import random_genotype
from edgenes.readers import load_data

# ---------------------------------------------------------------- side by side

# No `if __name__ == "__main__"`: a script of a user has none either.
SCRIPT = """
import numpy as np
from sklearn.datasets import load_digits
from edgenes import EdgeNES

digits = load_digits()
images = (digits.images * 255 / 16).round().astype(np.uint8)[:200]
for options in ({"strategy": "independent"}, {"strategy": "hatch", "space": "images"}):
    answers = []
    for n_jobs in (2, None):
        model = EdgeNES(
            2, 3, search_steps=4, epochs=2, n_jobs=n_jobs, verbose=0, **options
        )
        answers.append(model.fit(images, digits.target[:200]).member_proba(images))
    assert np.array_equal(*answers), options
print("equal")
"""


def test_the_same_bits_with_two_processes_as_with_one(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    done = subprocess.run([sys.executable, path], capture_output=True, text=True)
    assert done.stdout == "equal\n", done.stderr
    assert done.stderr == ""


def test_the_seconds_of_a_training_count_from_its_beginning_in_whatever_process():
    data = load_data("digits", train_images=200)
    settings = plan_fit(data, FitParameters(epochs=30)).budget.retrain
    candidate = Candidate(random_genotype(SearchSpace(), 3), 0)
    for seconds, epochs in ((math.inf, 30), (50.0, 1)):  # the 50 seconds are over
        job = Job("candidate 1", candidate, Training(settings, seconds, epoch_seconds=0.1))
        _, result = _train_elsewhere(data, job, None, time.time() - 100)
        assert result["epochs"] == epochs


def test_two_workers_hold_twice_as_many_independent_candidates():
    for passes in (10, 49, 50, 99, 100, 149, 150, 1000):
        alone = choose_strategy("auto", passes, 3, 20)
        with_two = choose_strategy("auto", passes, 3, 20, workers=2)
        if with_two.name == "independent":
            assert passes / -(-with_two.candidates // 2) >= 50
        if alone.name == "independent":
            assert with_two.name == "independent"
            assert with_two.candidates == min(20, 2 * alone.candidates)


def test_an_error_of_a_process_names_the_candidate():
    data = load_data("digits", train_images=200)
    settings = plan_fit(data, FitParameters(epochs=2)).budget.retrain
    too_large = replace(settings, optimiser=replace(settings.optimiser, lr=1e38))
    candidate = Candidate(random_genotype(SearchSpace(), 0), 0)
    jobs = [
        Job("candidate 1", candidate, Training(settings)),
        Job("candidate 2", candidate, Training(too_large)),
    ]
    with (
        pytest.raises(Diverged, match=r"^candidate 2: the retraining of .* diverged"),
        Workers(2) as workers,
        FitProgress() as progress,
    ):
        list(train_all(progress, data, iter(jobs), 2, [], workers))


def children_of(process):
    """The processes that a process has started."""
    stats = [path.read_text().rsplit(")", 1) for path in Path("/proc").glob("[0-9]*/stat")]
    return [int(head.split()[0]) for head, tail in stats if int(tail.split()[1]) == process]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are listed in /proc")
def test_processes_end_with_the_command_and_it_goes_on(tmp_path):
    """After Ctrl-C, which reaches all processes of a terminal, and after a kill of the first."""
    write_pictures(tmp_path / "pictures", *FEW)
    steps = ["--members", 2, "--candidates", 2, "--search-steps", 4, "--epochs", 4000]
    kept = tmp_path / "ensemble.unfinished"

    def start(*options):
        arguments = ["fit", tmp_path / "pictures", "--out", tmp_path / "ensemble", *options]
        command = [sys.executable, "-m", "edgenes", *map(str, [*arguments, *steps])]
        return subprocess.Popen(
            [*command, "--quiet"], stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    for moment in (signal.SIGINT, signal.SIGKILL):
        before = set(kept.glob("candidate-*/epoch-*"))
        process = start("--jobs", 2)
        while process.poll() is None and not (set(kept.glob("candidate-*/epoch-*")) - before):
            time.sleep(0.05)
        workers = children_of(process.pid)
        assert len(workers) >= 2
        if moment == signal.SIGINT:
            os.killpg(process.pid, moment)
        else:
            process.kill()
        _, errors = process.communicate()
        if moment == signal.SIGINT:
            [line] = errors.splitlines()  # and no word of the other processes
            assert line.startswith("edgenes: stopped; ")
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{worker}").exists() for worker in workers):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert (kept / "fit.json").exists()


@pytest.mark.parametrize("n_jobs", [0, 1.5, "two", True])
def test_a_number_of_jobs_that_is_none(n_jobs):
    with pytest.raises(EdgenesError, match=r"^n_jobs is "):
        EdgeNES(**SHORT, n_jobs=n_jobs).fit(*FEW)


# ---------------------------------------------------------------- dense convolutions


@pytest.fixture(scope="module")
def dense():
    """An untrained ensemble, whose members read every node through a dense convolution."""
    space = SearchSpace(operations=OPERATIONS_OF_SPACES["images"])
    genotypes = [
        Genotype(space, [Edge("reduce", node, source, "conv_3x3") for node in range(2, 6)])
        for source in (0, 1)
    ]
    mean = torch.tensor([0.5])
    networks = [
        DiscreteNetwork(genotype, 2, 1, channels=4).to(memory_format=torch.channels_last)
        for genotype in genotypes
    ]
    metrics = {"accuracy_percent": 50.0, "nll_nats": 0.69}
    return FittedEnsemble(
        parameters=FitParameters(members=2, candidates=2, space="images", n_jobs=2),
        classes=np.array(["cat", "dog"]),
        image_shape=(8, 8, 1),
        optimum=genotypes[0],
        hypernetwork=Hypernetwork.of(space),
        genotypes=genotypes,
        members=[ImageNetwork(network, mean, mean / 2).eval() for network in networks],
        report={
            "spent": {},
            "candidates": [{"lambda": 1.0, "shared": 1} | metrics] * 2,
            "chosen": [0, 1],
            "rule": "exhaustive",
            "calibration": [],
            "validation": {"members": 2} | metrics,
            "network": {"channels": 4, "layers": 2},
            "downscale": 1,
            "images": {"train": 8, "val": 2},
        },
    )


def answers_of(ensemble):
    images = torch.from_numpy(IMAGES[:9])[:, None]
    split = Split(images, torch.zeros(9, dtype=torch.int64))
    return member_probabilities(ensemble.members, split)


def test_an_ensemble_of_dense_convolutions_is_saved_and_loaded(dense, tmp_path):
    folder = save_ensemble(dense, tmp_path / "ensemble")
    again = load_ensemble(folder, "cpu")
    assert torch.equal(answers_of(again), answers_of(dense))
    assert (again.parameters.space, again.parameters.n_jobs) == ("images", 2)
    assert again.hypernetwork.sample(2).space.operations[-1] == "conv_3x3"
    assert "in the space `images`" in (folder / "README.md").read_text()
    assert "space" not in model_card(replace(dense, parameters=FitParameters(members=2)))


@pytest.mark.parametrize("suffix", EXPORTED)
def test_an_ensemble_of_dense_convolutions_is_exported(dense, tmp_path, suffix):
    """`export_ensemble` compares the file with the members."""
    assert export_ensemble(dense, tmp_path / f"ensemble{suffix}").stat().st_size > 0


def test_an_ensemble_that_was_saved_without_a_space_is_read(dense, tmp_path):
    def remove_space(manifest):
        for name in ("space", "n_jobs"):
            del manifest["params"][name]

    change_manifest(save_ensemble(dense, tmp_path), remove_space)
    parameters = load_ensemble(tmp_path, "cpu").parameters
    assert (parameters.space, parameters.n_jobs) == ("paper", None)


def test_the_plan_of_each_space():
    data = load_data("digits", train_images=200)
    paper = plan_fit(data, FitParameters())
    images = plan_fit(data, FitParameters(space="images", inputs_per_node=2))
    assert paper.space == SearchSpace()
    assert set(images.space.operations) - set(paper.space.operations) == {"conv_3x3"}
    assert images.space.inputs_per_node == 2
    assert images.budget == paper.budget


def test_a_fit_in_the_space_with_dense_convolutions():
    model = EdgeNES(**SHORT, space="images").fit(*FEW)
    assert model.optimum_.space.operations == OPERATIONS_OF_SPACES["images"]
    assert {model.sample(lam).space for lam in (0, 2, 4)} == {model.optimum_.space}
    with pytest.raises(EdgenesError, match=r"^space is 'darts': use paper or images$"):
        EdgeNES(**SHORT, space="darts").fit(*FEW)
