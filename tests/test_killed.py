"""A pipeline that is killed again and again ends with the records of one that was not."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo  # the first optimiser loads it: seconds that are no training
from recorded import results_of

from edgenes import search
from edgenes.core import EdgenesError
from edgenes.experiments import quality
from edgenes.genotype import SearchSpace
from edgenes.neighbours import random_genotype
from edgenes.readers import load_data
from edgenes.retraining import DiscreteSettings, RetrainSettings, retrain
from edgenes.study import evaluation, retrainings, searches, tasks
from edgenes.study.pipeline import run
from edgenes.study.profiles import PROFILES
from edgenes.study.searches import DartsSearch
from edgenes.study.tasks import run_task
from edgenes.study.workspace import open_workspace
from edgenes.training import DiskCheckpoint, WeightOptimiser

KILLS = 50  # at moments by chance
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# Functions that take so little time that a kill by chance hardly ever falls into them, in the order
# in which the pipeline first calls them.
MOMENTS = (
    (tasks, "write_record"),
    (searches, "save_weights"),
    (retrainings, "predict"),
    (retrainings, "save_weights"),
    (retrainings, "save_predictions"),
    (evaluation, "select"),
    (evaluation, "fit_temperature"),
    (searches, "inherited_loss"),
)


def longer_smoke():
    """Long enough that a kill falls into every stage, short enough for a test."""
    smoke = PROFILES["smoke"]
    budget = replace(
        smoke.budget,
        darts=replace(smoke.budget.darts, epochs=8),
        hypernetwork=replace(smoke.budget.hypernetwork, epochs=6),
        retrain=replace(smoke.budget.retrain, epochs=4),
        candidates=3,
    )
    return replace(smoke, budget=budget)


PROFILE = longer_smoke()


def pipeline(folder):
    """Search, hypernetwork, screening, retraining, prediction, selection."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    workspace = open_workspace(PROFILE, folder, device="cpu")
    plans = quality.plans(workspace, 0, ("EdgeNES", "EdgeNES-screen"))
    run(workspace, plans, workers=1, progress=False)


def pipeline_killed_at(folder, module, name, after):
    """The pipeline, killed when a module first calls a function, or when that comes back."""
    real = getattr(module, name)

    def deadly(*args, **kwargs):
        if after:
            real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, name, deadly)
    pipeline(folder)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of a pipeline that was not killed."""
    folder = tmp_path_factory.mktemp("unbroken")
    pipeline(folder)
    return folder


def stage(folder):
    """The kind of the task under way."""
    begun = sorted((folder / "work").glob("*-*"), key=lambda path: path.stat().st_mtime)
    return begun[-1].name.split("-")[0] if begun else "between"


def assert_records_are_whole(folder):
    for path in folder.glob("runs/*.json"):
        json.loads(path.read_text())


def assert_finished(folder, expected):
    assert results_of(folder) == expected
    assert not list((folder / "work").iterdir())


def test_fifty_kills_lose_nothing(unbroken, tmp_path):
    """In an interpreter of its own: what other tests leave in autograd does not survive a fork."""
    command = [sys.executable, __file__, unbroken, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]


def kill_by_chance(folder, chance, seconds, kills):
    """Starts the pipeline in a folder and kills it, again and again, until it comes to its end."""
    context = multiprocessing.get_context("fork")
    while True:
        process = context.Process(target=pipeline, args=(folder,))
        process.start()
        process.join(chance.uniform(0.02, seconds / 8))
        if process.exitcode is not None:
            assert process.exitcode == 0
            return
        kills[stage(folder)] += 1
        os.kill(process.pid, chance.choice(SIGNALS))
        process.join()
        assert_records_are_whole(folder)


def kill_at_every_moment(folder):
    """Kills the pipeline before and after the first call at each of the short moments."""
    context = multiprocessing.get_context("fork")
    for module, name in MOMENTS:
        for after in (False, True):
            process = context.Process(target=pipeline_killed_at, args=(folder, module, name, after))
            process.start()
            process.join()
            assert process.exitcode == -signal.SIGKILL, f"the pipeline ended without {name}"
            assert_records_are_whole(folder)


def kill_again_and_again(unbroken, folder):
    torch.set_num_threads(1)
    expected = results_of(unbroken)
    start = time.perf_counter()
    pipeline(folder / "timed")
    seconds = time.perf_counter() - start
    assert_finished(folder / "timed", expected)
    chance = random.Random(0)
    kills = Counter()
    rounds = 0
    stages = {"darts", "hypernetwork", "retraining"}
    while rounds < 20 and (kills.total() < KILLS or not stages <= set(kills)):
        rounds += 1
        kill_by_chance(folder / f"round{rounds}", chance, seconds, kills)
        assert_finished(folder / f"round{rounds}", expected)
    print(f"{kills.total()} kills in {rounds} rounds: {dict(kills)}")
    assert kills.total() >= KILLS
    assert stages <= set(kills), kills
    kill_at_every_moment(folder / "moments")
    pipeline(folder / "moments")
    assert_finished(folder / "moments", expected)


def kill_workers(folder, times, stop, killed_pools):
    """Kills a worker that has begun a run, as a system short of memory does.

    A second worker is killed only when a record is there, which the end has to keep.
    """
    while len(killed_pools) < times and not stop.is_set():
        time.sleep(0.02)
        known = {pid for pool in killed_pools for pid in pool}
        workers = [p for p in multiprocessing.active_children() if p.pid not in known]
        has_begun = len(workers) >= 2 and any(folder.glob("work/*/lock"))
        has_records = not killed_pools or any(folder.glob("runs/*.json"))
        if has_begun and has_records:
            workers[0].kill()
            # The rest of the pool ends with it.
            killed_pools.append([process.pid for process in workers])


def run_with_killer(folder, times):
    """Runs the pipeline with two workers while a thread kills its pools."""
    workspace = open_workspace(PROFILE, folder, device="cpu")
    plans = quality.plans(workspace, 0, ("EdgeNES", "EdgeNES-screen", "DARTS"))
    stop = threading.Event()
    killed_pools = []
    thread = threading.Thread(target=kill_workers, args=(folder, times, stop, killed_pools))
    thread.start()
    try:
        run(workspace, plans, workers=2, progress=False)
    finally:
        stop.set()
        thread.join()
        assert len(killed_pools) == times
        assert not multiprocessing.active_children()


def test_after_a_killed_worker_all_runs_go_on_in_a_second_pool(unbroken, tmp_path):
    run_with_killer(tmp_path, 1)
    expected = results_of(unbroken)
    results = results_of(tmp_path)
    assert {name: results[name] for name in expected} == expected


def test_a_second_killed_worker_ends_the_pipeline_with_the_names_of_the_runs(unbroken, tmp_path):
    message = r"a worker was killed a second time, during [a-z]+ seed \d+"
    with pytest.raises(EdgenesError, match=message):
        run_with_killer(tmp_path, 2)
    expected = results_of(unbroken)
    results = results_of(tmp_path)
    of_both = results.keys() & expected.keys()  # the unbroken pipeline ran fewer systems
    assert of_both
    assert {name: results[name] for name in of_both} == {name: expected[name] for name in of_both}


def test_a_kill_costs_at_most_one_epoch(unbroken, tmp_path, monkeypatch):
    """A search that is killed after an epoch goes on from the next one."""
    workspace = open_workspace(PROFILE, tmp_path, device="cpu")
    context = multiprocessing.get_context("spawn")  # an interpreter of its own
    process = context.Process(target=run_task, args=(DartsSearch(0), workspace))
    process.start()
    while not list(tmp_path.glob("work/darts-*/epoch-00002.safetensors")):
        assert process.exitcode is None, "the run ended before it could be killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    epochs = []
    run_epoch = search.run_epoch

    def counted(*args):
        epochs.append(args[-1])
        return run_epoch(*args)

    monkeypatch.setattr(search, "run_epoch", counted)
    run_task(DartsSearch(0), workspace)
    assert epochs[0] >= 2
    assert epochs[-1] == PROFILE.budget.darts.epochs - 1
    [(name, result)] = results_of(tmp_path).items()
    assert result == results_of(unbroken)[name]


def test_a_retraining_that_averages_its_weights_resumes_from_the_disk(tmp_path):
    """The mean of the weights is part of a checkpoint: stopped at any epoch, the bits are equal."""
    data = load_data("digits")
    genotype = random_genotype(SearchSpace(), 0)
    settings = RetrainSettings(
        epochs=4,
        network=DiscreteSettings(channels=2, drop_path=0.2, auxiliary=True),
        optimiser=WeightOptimiser(lr=0.1, schedule="linear", nesterov=True),
        average_from=0.5,
    )
    unbroken, _ = retrain(data, genotype, settings, 0)
    for _ in range(settings.epochs):  # one epoch at a time
        checkpoint = DiskCheckpoint(tmp_path)
        resumed, _ = retrain(
            data, genotype, settings, 0, checkpoint=checkpoint, should_stop=lambda: True
        )
    pairs = zip(unbroken.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(value, other) for value, other in pairs)


if __name__ == "__main__":
    kill_again_and_again(Path(sys.argv[1]), Path(sys.argv[2]))
