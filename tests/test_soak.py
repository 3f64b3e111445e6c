"""The pipeline again and again in one process: memory stays flat, and no process, file or kernel is left over.

By hand, for hours, with all training in this process: python tests/test_soak.py demo 20 0 1
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
PROFILE, SECONDS = (
    os.environ.get("EDGENES_SOAK_PROFILE", "smoke"),
    float(os.environ.get("EDGENES_SOAK_SECONDS", 40)),
)
ROUNDS = int(os.environ.get("EDGENES_SOAK_ROUNDS", 0))  # 0: as many as fit in SECONDS, at least 4
WARM = 2  # rounds in which libraries are loaded, and allocators find their size


def soak(profile: str, rounds: int, seconds: float, folder: Path, workers: int = 2):
    """Yields after every round what the process holds. A round: every experiment of a seed, tables, figures, report, and a notebook in a kernel of its own.

    Where `workers` of them share the work, the runs of quality are repeated in this process.
    """
    import gc
    import threading

    import papermill

    from edgenes.experiments.registry import EXPERIMENTS, experiment
    from edgenes.experiments.registry import build_report as build
    from edgenes.study.pipeline import run
    from edgenes.study.profiles import get_profile
    from edgenes.study.workspace import open_workspace

    me, start, number = psutil.Process(), time.monotonic(), 0
    while number < rounds or (
        not rounds and (number < WARM + 2 or time.monotonic() - start < seconds)
    ):
        results, number = folder / f"round{number}", number + 1
        chosen = ("quality", "shift") if profile == "smoke" else EXPERIMENTS
        for processes in (workers, 1):  # a second start finds all done, and is this process alone
            workspace = open_workspace(get_profile(profile), results, device="cpu")
            run(
                workspace,
                [plan for name in chosen for plan in experiment(name).plans(workspace, 0)],
                workers=processes,
                progress=False,
            )
        if workers > 1:
            shutil.rmtree(results / "runs")
            run(workspace, experiment("quality").plans(workspace, 0), workers=1, progress=False)
        build(results)
        papermill.execute_notebook(
            str(ROOT / "nbs/experiments/space.ipynb"),
            str(results / "space.ipynb"),
            {"profile": profile, "results": str(results), "device": "cpu"},
            progress_bar=False,
        )
        torn = [str(p) for p in results.rglob("*.tmp")] + [
            str(p) for p in (results / "work").iterdir()
        ]
        shutil.rmtree(results)
        gc.collect()
        # multiprocessing's tracker of semaphores serves the process until its end
        left = [
            c.pid
            for c in me.children(recursive=True)
            if "resource_tracker" not in " ".join(c.cmdline())
        ]
        yield {
            "round": number,
            "seconds": round(time.monotonic() - start),
            "mib": me.memory_info().rss / 2**20,
            "files": me.num_fds(),
            "threads": threading.active_count(),
            "children": left,
            "torn": torn,
        }


def rounds_of(profile: str, rounds: int, seconds: float) -> list[dict]:
    """The rounds of a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, profile, str(rounds), str(seconds)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_memory_is_flat_and_nothing_is_left():
    found = rounds_of(PROFILE, ROUNDS, SECONDS)
    for r in found:
        print(r)
    warm, last = found[WARM - 1], found[-1]
    assert len(found) >= WARM + 2
    assert all(not r["children"] and not r["torn"] for r in found)
    assert last["files"] <= warm["files"] and last["threads"] <= warm["threads"]
    assert last["mib"] <= 1.05 * warm["mib"]


@pytest.mark.parametrize(
    "how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name
)
def test_workers_end_with_their_parent(how, tmp_path):
    command = [
        sys.executable,
        "-m",
        "edgenes",
        "run",
        "demo",
        "--results",
        str(tmp_path),
        "--seeds",
        "1",
        "--experiments",
        "deviation,quality",
        "--workers",
        "2",
        "--no-notebooks",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        parent = psutil.Process(process.pid)
        deadline = time.monotonic() + 120
        while len(workers := parent.children(recursive=True)) < 2 or not list(
            tmp_path.glob("work/*/lock")
        ):
            assert process.poll() is None and time.monotonic() < deadline, "no worker began a run"
            time.sleep(0.05)
        process.send_signal(how)
        start = time.monotonic()
        line = process.communicate(timeout=30)[1].splitlines()[-1]
        gone, alive = psutil.wait_procs(workers, timeout=30)
        for worker in alive:
            worker.kill()
    assert not alive, f"{len(alive)} of {len(workers)} processes are left"
    assert time.monotonic() - start < 30
    if how == signal.SIGINT:
        assert line == "edgenes: stopped; start again to go on from here"


if __name__ == "__main__":
    given = sys.argv[1:]
    profile, rounds, seconds, workers = given + ["smoke", "0", "40", "2"][len(given) :]
    with tempfile.TemporaryDirectory() as folder:
        for line in soak(profile, int(rounds), float(seconds), Path(folder), int(workers)):
            print(json.dumps(line), flush=True)
