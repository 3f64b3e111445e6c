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
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_pipeline import results_of

from edgenes.core import EdgenesError
from edgenes.experiments import quality
from edgenes.study import tasks
from edgenes.study.pipeline import run
from edgenes.study.profiles import PROFILES
from edgenes.study.workspace import open_workspace

KILLS = 50
# Too short for a clock to hit: predictions, what is written of them, selection, screening, records.
POINTS = (
    "write_record",
    "predict",
    "save_weights",
    "save_predictions",
    "select",
    "fit_temperature",
    "inherited_loss",
)  # in the order of the pipeline
smoke = PROFILES["smoke"]
# Long enough that a kill falls into every stage, short enough for a test.
PROFILE = replace(
    smoke,
    darts=replace(smoke.darts, epochs=8),
    hyper=replace(smoke.hyper, epochs=6),
    retrain=replace(smoke.retrain, epochs=4),
    candidates=3,
)


def pipeline(folder):
    """Search, hypernetwork, screening, retraining, prediction, selection."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    workspace = open_workspace(PROFILE, folder, device="cpu")
    run(
        workspace,
        quality.plans(workspace, 0, ("EdgeNES", "EdgeNES-screen")),
        workers=1,
        progress=False,
    )


def killed_at(folder, name, after):
    """The pipeline, killed when it first calls this function, or when that comes back."""
    real = getattr(tasks, name)

    def deadly(*args, **kwargs):
        if after:
            real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(tasks, name, deadly)
    pipeline(folder)


def stage(folder):
    """The task under way."""
    names = (
        sorted((p for p in (folder / "work").glob("*-*")), key=lambda p: p.stat().st_mtime)
        if (folder / "work").is_dir()
        else []
    )
    return names[-1].name.split("-")[0] if names else "between"


def test_fifty_kills_lose_nothing(tmp_path):
    """In an interpreter of its own: what other tests leave in autograd does not survive a fork."""
    done = subprocess.run(
        [sys.executable, __file__, tmp_path],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]


def kill_again_and_again(tmp_path):
    torch.set_num_threads(1)
    pipeline(tmp_path / "whole")
    expected, chance, context = (
        results_of(tmp_path / "whole"),
        random.Random(0),
        multiprocessing.get_context("fork"),
    )
    start = time.perf_counter()
    pipeline(tmp_path / "timed")  # what is loaded once is loaded by now
    whole_seconds, kills, where, rounds = time.perf_counter() - start, 0, {}, 0
    while kills < KILLS:
        folder, rounds = tmp_path / f"round{rounds}", rounds + 1
        while True:
            process = context.Process(target=pipeline, args=(folder,))
            process.start()
            process.join(chance.uniform(0.02, whole_seconds / 4))
            if process.exitcode is not None:
                break
            how = chance.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
            name = stage(folder)
            os.kill(process.pid, how)
            process.join()
            kills, where[name] = kills + 1, where.get(name, 0) + 1
            for path in folder.glob("runs/*.json"):
                json.loads(path.read_text())  # whole, at every moment
        assert process.exitcode == 0
        assert results_of(folder) == expected
        assert not list((folder / "work").iterdir())
    for name in POINTS:
        for after in (False, True):
            process = context.Process(target=killed_at, args=(tmp_path / "points", name, after))
            process.start()
            process.join()
            assert process.exitcode == -signal.SIGKILL, f"the pipeline ended without {name}"
            kills, where[name] = kills + 1, where.get(name, 0) + 1
            for path in (tmp_path / "points").glob("runs/*.json"):
                json.loads(path.read_text())
    pipeline(tmp_path / "points")
    assert results_of(tmp_path / "points") == expected and not list(
        (tmp_path / "points" / "work").iterdir()
    )
    print(f"{kills} kills in {rounds + 1} rounds: {where}")
    assert {"darts", "hypernetwork", "retraining"} <= set(where), where


def killer(folder, often, stop, killed):
    """Kills a worker that has begun a run, as a system short of memory does."""
    while len(killed) < often and not stop.is_set():
        time.sleep(0.02)
        workers = [p for p in multiprocessing.active_children() if p.pid not in killed]
        if len(workers) < 2 or not list(folder.glob("work/*/lock")):
            continue
        workers[0].kill()
        killed += [p.pid for p in workers]  # the rest of the pool ends with it


@pytest.mark.parametrize("often", [1, 2])
def test_a_killed_worker(often, tmp_path):
    """Once: the others and it go on in a second pool. Twice: one line that names the runs under way."""
    pipeline(tmp_path / "whole")
    workspace, stop, killed = (
        open_workspace(PROFILE, tmp_path / "r", device="cpu"),
        threading.Event(),
        [],
    )
    thread = threading.Thread(target=killer, args=(tmp_path / "r", 2 * often, stop, killed))
    thread.start()
    try:
        work = lambda: run(
            workspace,
            quality.plans(workspace, 0, ("EdgeNES", "EdgeNES-screen"))
            + quality.plans(workspace, 0, ("DARTS",)),
            workers=2,
            progress=False,
        )
        if often == 1:
            work()
        else:
            with pytest.raises(
                EdgenesError, match=r"a worker was killed a second time, during [a-z]+ seed \d+"
            ):
                work()
    finally:
        stop.set()
        thread.join()
    assert len(killed) == 2 * often and not multiprocessing.active_children()
    found, whole = results_of(tmp_path / "r"), results_of(tmp_path / "whole")
    assert all(found[name] == whole[name] for name in found if name in whole) and (
        often == 2 or set(whole) <= set(found)
    )


def test_a_kill_costs_at_most_one_epoch(tmp_path):
    """A search that is killed after an epoch goes on from the next one."""
    from edgenes.study.tasks import Task, run_task

    whole, workspace = (
        open_workspace(PROFILE, tmp_path / name, device="cpu") for name in ("whole", "killed")
    )
    run_task(Task("darts"), whole)
    process = multiprocessing.get_context("spawn").Process(
        target=run_task, args=(Task("darts"), workspace)
    )  # an interpreter of its own
    process.start()
    while not list((tmp_path / "killed").glob("work/darts-*/epoch-00002.safetensors")):
        assert process.exitcode is None, "the run ended before it could be killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    from edgenes import search

    trained, epoch = [], search.run_epoch
    search.run_epoch = lambda *args: trained.append(args[-1]) or epoch(*args)
    try:
        run_task(Task("darts"), workspace)
    finally:
        search.run_epoch = epoch
    assert trained and trained[0] >= 2 and trained[-1] == PROFILE.darts.epochs - 1
    assert results_of(tmp_path / "killed") == results_of(tmp_path / "whole")


if __name__ == "__main__":
    kill_again_and_again(Path(sys.argv[1]))
