"""Strategies of the estimator: members from scratch, members that hatch, and the plan's choice."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from estimator_inputs import FEW, IMAGES, LABELS, SHORT, change_manifest, same_answers
from sklearn.base import clone

from edgenes import EdgeNES
from edgenes.algorithm import Candidate
from edgenes.core import EdgenesError
from edgenes.estimator import estimator, fit
from edgenes.estimator.candidates import Training, train_candidate
from edgenes.estimator.fit import load_metrics, near_optimum
from edgenes.estimator.parameters import FitParameters
from edgenes.estimator.planning import (
    HATCHING_PASSES,
    LEAST_PASSES,
    choose_strategy,
    clock_of_budgets,
    hatching,
    plan_fit,
)
from edgenes.estimator.progress import FitProgress
from edgenes.genotype import SearchSpace
from edgenes.hypernetwork import Hypernetwork
from edgenes.neighbours import random_genotype
from edgenes.readers import load_data


@pytest.fixture(scope="module")
def hatched():
    return EdgeNES(**SHORT, strategy="hatch").fit(*FEW)


# ---------------------------------------------------------------- the choice


@pytest.mark.parametrize("members", [1, 2, 3, 10])
@pytest.mark.parametrize("candidates", [10, 50])
def test_the_choice_of_the_plan(members, candidates):
    """More time never gives fewer passes to a member, and never fewer candidates."""
    before = 0
    for passes in (0.1, 1, 10, 44, 46, 99, 101, 149, 151, 500, 5000, 10**6):
        strategy = choose_strategy("auto", passes, members, candidates)
        assert members <= strategy.candidates <= candidates
        assert strategy.candidates >= before
        before = strategy.candidates
        if strategy.name == "independent" and members > 1:
            assert passes / strategy.candidates >= LEAST_PASSES
        if strategy.name == "hatch":
            assert members > 1
            assert passes < LEAST_PASSES * members
            assert strategy.fresh_edges == (passes >= HATCHING_PASSES)
        assert f"{passes:.3g} passes" in strategy.why


@pytest.mark.parametrize("asked", ["independent", "hatch"])
@pytest.mark.parametrize("passes", [0.1, 60, 10**6])
def test_a_strategy_that_was_asked_for_is_used(asked, passes):
    strategy = choose_strategy(asked, passes, 3, 8)
    assert strategy.name == asked
    assert "as was asked" in strategy.why


@pytest.mark.parametrize("members", [1, 2, 8])
def test_the_epochs_of_a_hatched_member_are_those_that_were_given(members):
    for passes in (10, 100):
        for epochs in (2, 3, 8, 40):
            parent, cycle = hatching(passes).split(epochs, members)
            assert parent + cycle == epochs
            assert min(parent, cycle) >= 1


def test_without_a_time_budget_members_are_independent_unless_asked():
    data = load_data("digits", train_images=200)
    for asked, expected in (("auto", "independent"), ("hatch", "hatch")):
        assert plan_fit(data, FitParameters(strategy=asked)).strategy.name == expected


def test_candidates_near_the_optimum():
    space = SearchSpace()
    hypernetwork = Hypernetwork.of(space, generator=torch.Generator().manual_seed(0))
    optimum = random_genotype(space, 0)
    for genotypes in (
        near_optimum(hypernetwork, optimum, 3)[1],  # the hypernetwork knows nothing of it
        near_optimum(hypernetwork, hypernetwork.sample(4), 3, fresh_edges=False)[1],
    ):
        assert genotypes == genotypes[:1] * 3
    with torch.no_grad():  # vectors far apart: between two knots the architecture changes
        hypernetwork.vectors.copy_(
            torch.randn(hypernetwork.vectors.shape, generator=torch.Generator().manual_seed(1))
        )
    lambdas, genotypes = near_optimum(hypernetwork, hypernetwork.sample(4), 3)
    assert genotypes[0] == hypernetwork.sample(4)
    assert len({genotype.key for genotype in genotypes}) > 1
    for lam, genotype in zip(lambdas, genotypes):
        assert genotype == hypernetwork.sample(lam)
        assert genotype.shared_edges(genotypes[0]) >= space.max_shared - 1


@pytest.mark.parametrize("strategy", ["snapshots", "", None, 3, np.array(["hatch"])])
def test_a_strategy_that_does_not_exist(strategy):
    with pytest.raises(EdgenesError, match=r"^strategy is .*: use auto, independent or hatch$"):
        EdgeNES(**SHORT, strategy=strategy).fit(*FEW)


# ---------------------------------------------------------------- hatched ensembles


def test_same_seed_same_hatched_members(hatched):
    assert same_answers(clone(hatched).fit(*FEW), hatched)
    assert not same_answers(clone(hatched).set_params(seed=1).fit(*FEW), hatched)
    assert not same_answers(clone(hatched).set_params(strategy="auto").fit(*FEW), hatched)


def test_the_report_of_a_hatched_ensemble(hatched):
    report = hatched.report_
    assert report["strategy"] == "hatch"
    assert list(report["spent"]) == ["search", "hypernetwork", "parent", "retraining"]
    assert report["spent"]["parent"]["epochs"] + report["spent"]["retraining"]["epochs"] == 2
    assert all(candidate["shared"] >= 3 for candidate in report["candidates"])


def test_a_hatched_ensemble_is_saved_and_exported(hatched, tmp_path):
    folder = hatched.save(tmp_path / "ensemble")
    again = EdgeNES.load(folder)
    assert again.strategy == "hatch"
    assert same_answers(again, hatched)
    assert "parent" in (folder / "README.md").read_text()
    module = torch.export.load(hatched.export(tmp_path / "ensemble.pt2")).module()
    with torch.no_grad():
        exported = module(torch.from_numpy(IMAGES[:9])[:, None].float() / 255).numpy()
    assert np.allclose(exported, hatched.predict_proba(IMAGES[:9]), atol=1e-5)


def test_an_ensemble_that_was_saved_without_a_strategy_is_read(hatched, tmp_path):
    def remove_strategy(manifest):
        del manifest["params"]["strategy"]
        del manifest["report"]["strategy"]

    change_manifest(hatched.save(tmp_path), remove_strategy)
    assert same_answers(EdgeNES.load(tmp_path), hatched)


# ---------------------------------------------------------------- within seconds


@pytest.mark.parametrize("strategy", ["independent", "hatch"])
def test_time_budget_is_kept_by_every_strategy(strategy):
    """Within a tenth in both directions, by the seconds of the process."""
    load_metrics()
    start = time.process_time()
    model = EdgeNES(members=3, candidates=4, time_budget=12, strategy=strategy, verbose=0)
    with clock_of_budgets(time.process_time):
        model.fit(IMAGES, LABELS)
    seconds = time.process_time() - start
    assert 10.8 <= seconds <= 13.2, (seconds, model.report_["spent"])
    assert any("passes over the training images" in note for note in model.report_["notes"])
    assert model.report_["strategy"] == strategy


@pytest.mark.parametrize("guess", [1e-3, 0.3, 30.0])
@pytest.mark.parametrize("end_step", [0.0, 0.6])
def test_a_training_uses_its_seconds_however_wrong_the_guess(guess, end_step):
    data = load_data("digits", train_images=600)
    plan = plan_fit(data, FitParameters())
    candidate = Candidate(random_genotype(plan.space, 3), 0)
    training = Training(plan.budget.retrain, 2.0, guess, end_step=end_step)
    with clock_of_budgets(time.process_time), FitProgress(2) as progress:
        start = time.process_time()
        trained = train_candidate(data, candidate, training, progress)
        seconds = time.process_time() - start
    assert 1 < seconds < 2.6, (seconds, trained.epochs)
    assert trained.images <= len(data.train)
    assert not trained.network.training


def test_what_reading_takes_is_not_planned(monkeypatch):
    read = estimator.read_labelled
    late = [0.0]

    def read_slowly(*arguments):
        late.append(late[-1] + 20)
        return read(*arguments)

    plan = fit.affordable_search_steps
    planned = []

    def plan_and_note(data, asked, seed, seconds):
        planned.append(seconds)
        return plan(data, asked, seed, seconds)

    monkeypatch.setattr(estimator, "read_labelled", read_slowly)
    monkeypatch.setattr(fit, "affordable_search_steps", plan_and_note)
    load_metrics()
    options = {"members": 2, "candidates": 3, "verbose": 0}
    with clock_of_budgets(lambda: time.process_time() + late[-1]):
        with pytest.raises(EdgenesError, match="reading the images took 20 s, all of the time"):
            EdgeNES(**options, time_budget=15).fit(IMAGES, LABELS)
        start = time.process_time()
        model = EdgeNES(**options, time_budget=25, epochs=3).fit(IMAGES, LABELS)
        assert 3.5 < time.process_time() - start < 7
    assert 4 < planned.pop() < 5
    notes = " ".join(model.report_["notes"])
    assert "reading the images took 20 of the 25 seconds" in notes
    assert "epochs is not used: the time budget decides instead" in notes


@pytest.mark.parametrize("end_step", [0.0, 0.3, 0.6, 0.9])
def test_the_step_size_after_a_training(end_step):
    plan = plan_fit(load_data("digits", train_images=200), FitParameters())
    settings = plan.budget.retrain
    for epochs in (10, 100):
        schedule = Training(settings, math.inf, end_step=end_step).schedule(epochs)
        last = settings.optimiser.step_size(epochs - 1, 99, 100, schedule.epochs)
        assert abs(last / settings.optimiser.lr - end_step) < 0.6 / epochs
