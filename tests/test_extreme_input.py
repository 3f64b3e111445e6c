"""Extreme input that is valid works; where it cannot, one line says why."""

from dataclasses import replace

import numpy as np
import pytest
from refusals import check_one_line, in_time
from small_inputs import TINY_RETRAINING, TINY_SEARCH, write_npz

from edgenes.core import EdgenesError
from edgenes.experiments import quality
from edgenes.genotype import SearchSpace
from edgenes.metrics import ensemble_metrics
from edgenes.neighbours import random_genotype
from edgenes.readers import load_data
from edgenes.retraining import predict, retrain
from edgenes.search import search_darts, train_hypernetwork
from edgenes.study import pipeline, searches
from edgenes.study.profiles import get_profile
from edgenes.study.workspace import open_workspace
from edgenes.training import DiskCheckpoint, WeightOptimiser


@pytest.mark.parametrize(
    ("form", "space"),
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
def test_extreme_data_and_spaces_work(tmp_path, form, space):
    source = write_npz(tmp_path, **form)
    data = load_data(source, val_images=2 * form.get("classes", 2))
    assert len(data.train) < TINY_SEARCH.batch_size  # batches are larger than the data
    optimum = search_darts(data, space, TINY_SEARCH, 0).genotype
    trained = train_hypernetwork(data, space, TINY_SEARCH, 0, optimum)
    assert len(trained.log[0]["calibration"]) == 2 * space.max_shared + 1
    genotype = trained.structure.sample(space.max_shared)
    network, _ = retrain(data, genotype, TINY_RETRAINING, 0)
    probs = predict(network, data.test, data)
    metrics = ensemble_metrics(probs[None], data.test.labels)  # an ensemble of one member
    assert np.isfinite(list(metrics.values())).all()


def test_a_batch_of_one_pixel_is_refused_by_name(tmp_path):
    data = load_data(write_npz(tmp_path, size=2), val_images=2)
    space = SearchSpace()
    fault = "a batch of 1 image of 2 x 2 pixels is too small"
    search = replace(TINY_SEARCH, batch_size=1)
    with pytest.raises(EdgenesError, match=fault):
        search_darts(data, space, search, 0)
    retraining = replace(TINY_RETRAINING, batch_size=1)
    genotype = random_genotype(space, 0)
    with pytest.raises(EdgenesError, match=fault):
        retrain(data, genotype, retraining, 0)


def test_one_candidate_and_one_member(tmp_path):
    profile = get_profile("smoke", candidates=1, members=1)
    workspace = open_workspace(profile, tmp_path, device="cpu")
    pipeline.run(workspace, quality.plans(workspace, 0), workers=1, progress=False)
    assert set(quality.frame(workspace.records)["system"]) == set(quality.SYSTEMS)


@pytest.mark.parametrize("lr", [1e38, float("nan"), float("inf")])
def test_a_loss_that_diverges_is_named(tmp_path, lr):
    data = load_data(write_npz(tmp_path, each=40))
    space = SearchSpace()
    genotype = random_genotype(space, 0)
    steps = WeightOptimiser(lr=lr)
    search = replace(TINY_SEARCH, epochs=3, batch_size=8, weights=steps)
    checkpoint = DiskCheckpoint(tmp_path / "c")
    with pytest.raises(EdgenesError, match="the search diverged in epoch"):
        search_darts(data, space, search, 0, checkpoint=checkpoint)
    retraining = replace(TINY_RETRAINING, epochs=3, batch_size=8, optimiser=steps)
    with pytest.raises(EdgenesError, match=r"the retraining of .* diverged"):
        retrain(data, genotype, retraining, 0)
    if lr == 1e38:
        return  # one step of this size still has finite weights
    one_step = replace(TINY_RETRAINING, optimiser=steps)
    with pytest.raises(EdgenesError, match="diverged in its last step"):
        retrain(data, genotype, one_step, 0)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("cannot hold 9 GB"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: "
            "you tried to allocate 9 bytes"
        ),
    ],
    ids=["of Python", "of torch"],
)
def test_a_want_of_memory(error, tmp_path, monkeypatch):
    def run(*_):
        raise error

    monkeypatch.setattr(searches.DartsSearch, "run", run)
    workspace = open_workspace(get_profile("smoke"), tmp_path, device="cpu")
    plan = (needs for needs in [[searches.DartsSearch(0)]])
    with in_time(), pytest.raises(EdgenesError) as refusal:
        pipeline.run(workspace, [plan], workers=1, progress=False)
    check_one_line(str(refusal.value))
