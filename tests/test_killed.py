"""A pipeline that is killed again and again ends with the records of one that was not."""
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from edgenes.experiments import quality
from edgenes.pipeline import run
from edgenes.profiles import PROFILES, open_shop
from test_pipeline import results_of

KILLS = 50
smoke = PROFILES["smoke"]
# Long enough that a kill falls into every stage, short enough for a test.
PROFILE = replace(smoke, darts=replace(smoke.darts, epochs=8), hyper=replace(smoke.hyper, epochs=6), retrain=replace(smoke.retrain, epochs=4), candidates=3)


def pipeline(folder):
    """Search, hypernetwork, screening, retraining, prediction, selection."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    shop = open_shop(PROFILE, folder, device="cpu")
    run(shop, quality.plans(shop, 0, ("EdgeNES", "EdgeNES-screen")), workers=1, progress=False)


def stage(folder):
    """The task under way."""
    names = sorted((p for p in (folder / "work").glob("*-*")), key=lambda p: p.stat().st_mtime) if (folder / "work").is_dir() else []
    return names[-1].name.split("-")[0] if names else "between"


def test_fifty_kills_lose_nothing(tmp_path):
    """In an interpreter of its own: what other tests leave in autograd does not survive a fork."""
    done = subprocess.run([sys.executable, __file__, tmp_path], capture_output=True, text=True, cwd=Path(__file__).parent)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]


def kill_again_and_again(tmp_path):
    torch.set_num_threads(1)
    pipeline(tmp_path / "whole")
    expected, chance, context = results_of(tmp_path / "whole"), random.Random(0), multiprocessing.get_context("fork")
    start = time.perf_counter()
    pipeline(tmp_path / "timed")  # what is loaded once is loaded by now
    whole_seconds, kills, where, rounds = time.perf_counter() - start, 0, {}, 0
    while kills < KILLS:
        folder, rounds = tmp_path / f"round{rounds}", rounds + 1
        while True:
            process = context.Process(target=pipeline, args=(folder,))
            process.start()
            process.join(chance.uniform(0.02, whole_seconds / 4))
            if process.exitcode is not None: break
            how = chance.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
            name = stage(folder)
            os.kill(process.pid, how)
            process.join()
            kills, where[name] = kills + 1, where.get(name, 0) + 1
            for path in folder.glob("runs/*.json"): json.loads(path.read_text())  # whole, at every moment
        assert process.exitcode == 0
        assert results_of(folder) == expected
        assert not list((folder / "work").iterdir())
    print(f"{kills} kills in {rounds} rounds: {where}")
    assert {"darts", "hypernetwork", "retraining"} <= set(where), where


def test_a_kill_costs_at_most_one_epoch(tmp_path):
    """A search that is killed after an epoch goes on from the next one."""
    from edgenes.tasks import Task, run_task
    whole, shop = (open_shop(PROFILE, tmp_path / name, device="cpu") for name in ("whole", "killed"))
    run_task(Task("darts"), whole)
    process = multiprocessing.get_context("spawn").Process(target=run_task, args=(Task("darts"), shop))  # an interpreter of its own
    process.start()
    while not list((tmp_path / "killed").glob("work/darts-*/epoch-00002.safetensors")):
        assert process.exitcode is None, "the run ended before it could be killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    from edgenes import search
    trained, epoch = [], search.run_epoch
    search.run_epoch = lambda *args: trained.append(args[-1]) or epoch(*args)
    try: run_task(Task("darts"), shop)
    finally: search.run_epoch = epoch
    assert trained and trained[0] >= 2 and trained[-1] == PROFILE.darts.epochs - 1
    assert results_of(tmp_path / "killed") == results_of(tmp_path / "whole")


if __name__ == "__main__": kill_again_and_again(Path(sys.argv[1]))
