"""The pipeline again and again in one process: memory stays flat, and nothing is left over.

By hand, for hours: python tests/test_soak.py PROFILE ROUNDS SECONDS WORKERS, such as demo 20 0 1:
20 rounds, however long they take, with all training in this process.
"""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import papermill
import psutil
import pytest
from project import ROOT

from edgenes.experiments.registry import EXPERIMENTS, build_report, experiment
from edgenes.study.pipeline import run
from edgenes.study.profiles import get_profile
from edgenes.study.workspace import open_workspace

PROFILE = os.environ.get("EDGENES_SOAK_PROFILE", "smoke")
SECONDS = float(os.environ.get("EDGENES_SOAK_SECONDS", 40))
ROUNDS = int(os.environ.get("EDGENES_SOAK_ROUNDS", 0))  # 0: as many as fit in SECONDS, at least 4
WARM_ROUNDS = 2  # in which libraries are loaded, and allocators find their size


def one_round(profile: str, results: Path, workers: int) -> None:
    """All experiments of a seed, tables, figures, report, and a notebook in a kernel of its own.

    Where several workers share the runs, those of quality are repeated in this process.
    """
    names = ("quality", "shift") if profile == "smoke" else EXPERIMENTS
    for processes in (workers, 1):  # a second start finds all done, and is this process alone
        workspace = open_workspace(get_profile(profile), results, device="cpu")
        plans = [plan for name in names for plan in experiment(name).plans(workspace, 0)]
        run(workspace, plans, workers=processes, progress=False)
    if workers > 1:
        shutil.rmtree(results / "runs")
        plans = experiment("quality").plans(workspace, 0)
        run(workspace, plans, workers=1, progress=False)
    build_report(results)
    notebook = ROOT / "nbs" / "experiments" / "space.ipynb"
    parameters = {"profile": profile, "results": str(results), "device": "cpu"}
    papermill.execute_notebook(
        str(notebook), str(results / "space.ipynb"), parameters, progress_bar=False
    )


def unfinished_files(results: Path) -> list[str]:
    """Files that no finished pipeline leaves."""
    return [str(path) for path in (*results.rglob("*.tmp"), *(results / "work").iterdir())]


def left_children() -> list[int]:
    """Processes that this one has started and that live on."""
    return [
        child.pid
        for child in psutil.Process().children(recursive=True)
        # multiprocessing's tracker of semaphores serves the process until its end
        if "resource_tracker" not in " ".join(child.cmdline())
    ]


def soak(profile: str, rounds: int, seconds: float, folder: Path, workers: int = 2):
    """Yields after every round what the process holds."""
    process = psutil.Process()
    start = time.monotonic()
    number = 0
    while True:
        elapsed = time.monotonic() - start
        enough = number >= WARM_ROUNDS + 2 and elapsed >= seconds
        if number >= rounds if rounds else enough:
            return
        number += 1
        results = folder / f"round{number}"
        one_round(profile, results, workers)
        unfinished = unfinished_files(results)
        shutil.rmtree(results)
        gc.collect()
        yield {
            "round": number,
            "seconds": round(time.monotonic() - start),
            "mib": process.memory_info().rss / 2**20,
            "files": process.num_fds(),
            "threads": threading.active_count(),
            "children": left_children(),
            "unfinished": unfinished,
        }


def rounds_in_own_process(profile: str, rounds: int, seconds: float) -> list[dict]:
    """What `soak` yields in a process of its own."""
    command = [sys.executable, __file__, profile, str(rounds), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_memory_is_flat_and_nothing_is_left():
    rounds = rounds_in_own_process(PROFILE, ROUNDS, SECONDS)
    print(*rounds, sep="\n")
    warm = rounds[WARM_ROUNDS - 1]
    last = rounds[-1]
    assert len(rounds) >= WARM_ROUNDS + 2
    assert all(not held["children"] and not held["unfinished"] for held in rounds)
    assert last["files"] <= warm["files"]
    assert last["threads"] <= warm["threads"]
    assert last["mib"] <= 1.05 * warm["mib"]


def wait_for_workers(process: subprocess.Popen, results: Path) -> list[psutil.Process]:
    """The processes of a command line that runs with two workers, when a run has begun."""
    parent = psutil.Process(process.pid)
    deadline = time.monotonic() + 120
    while True:
        workers = parent.children(recursive=True)
        if len(workers) >= 2 and list(results.glob("work/*/lock")):
            return workers
        assert process.poll() is None, "the command ended before a worker began a run"
        assert time.monotonic() < deadline, "no worker began a run"
        time.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=lambda how: how.name)
def test_workers_end_with_their_parent(how, tmp_path):
    command = [sys.executable, "-m", "edgenes", "run", "demo", "--results", str(tmp_path)]
    command += ["--seeds", "1", "--experiments", "deviation,quality", "--workers", "2"]
    command += ["--no-notebooks"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        workers = wait_for_workers(process, tmp_path)
        process.send_signal(how)
        start = time.monotonic()
        last_line = process.communicate(timeout=30)[1].splitlines()[-1]
        _, alive = psutil.wait_procs(workers, timeout=30)
        for worker in alive:
            worker.kill()
    assert not alive, f"{len(alive)} of {len(workers)} processes are left"
    assert time.monotonic() - start < 30
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert last_line.startswith(
            "edgenes: stopped; to go on from here: edgenes run demo --results"
        )


if __name__ == "__main__":
    given = sys.argv[1:]
    defaults = ["smoke", "0", "40", "2"]
    profile, rounds, seconds, workers = given + defaults[len(given) :]
    with tempfile.TemporaryDirectory() as folder:
        for held in soak(profile, int(rounds), float(seconds), Path(folder), int(workers)):
            print(json.dumps(held), flush=True)
