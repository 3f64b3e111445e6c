"""The grid as jobs: a real Slurm on loopback runs it, a job is killed and retried, and the records are those of a local run.

EDGENES_CLUSTER_PROFILE, _EXPERIMENTS and _SEEDS choose another grid, such as demo.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_pipeline import results_of

from edgenes.experiments.registry import EXPERIMENTS, experiment
from edgenes.study.pipeline import run
from edgenes.study.profiles import get_profile
from edgenes.study.workspace import open_workspace

ROOT = Path(__file__).resolve().parents[1]
PROFILE = os.environ.get("EDGENES_CLUSTER_PROFILE", "smoke")
NAMES = os.environ.get(
    "EDGENES_CLUSTER_EXPERIMENTS",
    "control,distance" if PROFILE == "smoke" else ",".join(EXPERIMENTS),
)
SEEDS = int(os.environ.get("EDGENES_CLUSTER_SEEDS", 2))
SECONDS = 1200 if PROFILE == "smoke" else 24 * 3600
LACKS = [
    name
    for name in ("munged", "slurmctld", "slurmd", "squeue", "srun")
    if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")
]

needs_snakemake = pytest.mark.skipif(
    not find_spec("snakemake"), reason="Snakemake is not installed: make venv EXTRAS=dev,scale"
)
needs_slurm = pytest.mark.skipif(
    bool(LACKS) or not find_spec("snakemake_executor_plugin_slurm"),
    reason=f"Slurm is not installed (lacks {', '.join(LACKS) or 'its plugin for Snakemake'}): apt-get install slurmctld slurmd slurm-client munge",
)


def snakemake(folder, profile, *options, config=(), **given):
    """Snakemake with a profile of the project, started in a folder of its own."""
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        ROOT / "Snakefile",
        "--directory",
        folder,
        "--profile",
        ROOT / "cluster" / profile,
        *options,
        "--config",
        *config,
    ]
    env = (
        os.environ
        | {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "OMP_NUM_THREADS": "1",
        }
        | given.pop("env", {})
    )
    return subprocess.Popen(
        [str(c) for c in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        **given,
    )


def jobs_of(text):
    """(experiment, seed) of the jobs that Snakemake names."""
    return sorted(
        {
            tuple(line.split("wildcards: experiment=")[1].strip().split(", seed="))
            for line in text.splitlines()
            if "wildcards: experiment=" in line
        }
    )


def free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


CONF = """ClusterName=edgenes
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={base}/run/munge.socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={ports[0]}
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd.%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MinJobAge=86400
KillWait=5
SlurmdTimeout=60
MessageTimeout=60
JobRequeue=0
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=1440 State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment that speaks to a Slurm of two nodes on this machine, which lives as long as the tests."""
    import getpass

    base, path = tmp_path_factory.mktemp("slurm"), os.environ["PATH"] + ":/usr/sbin"
    for name in ("run", "state", "spool/n1", "spool/n2", "bin"):
        (base / name).mkdir(parents=True)
    base.chmod(0o755)
    conf = base / "slurm.conf"
    conf.write_text(
        CONF.format(
            host=socket.gethostname(), user=getpass.getuser(), base=base, ports=free_ports(3)
        )
    )
    key = base / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    srun = base / "bin" / "srun"  # the job-step plugin drops SLURM_CONF before it calls srun
    srun.write_text(f'#!/bin/sh\nSLURM_CONF="{conf}" exec {shutil.which("srun", path=path)} "$@"\n')
    srun.chmod(0o755)
    env = os.environ | {"SLURM_CONF": str(conf), "PATH": f"{base}/bin:{path}"}
    munge = [
        "munged",
        "-F",
        "--force",
        *(
            f"--{k}={base}/{v}"
            for k, v in (
                ("key-file", "munge.key"),
                ("socket", "run/munge.socket"),
                ("pid-file", "run/munged.pid"),
                ("log-file", "run/munged.log"),
                ("seed-file", "run/munged.seed"),
            )
        ),
    ]
    started = []
    try:
        for command in (
            munge,
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", "n1"],
            ["slurmd", "-D", "-N", "n2"],
        ):
            log = (base / "run" / f"{command[0]}{len(started)}.out").open("w")
            started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
            if command is munge:
                until(lambda: (base / "run" / "munge.socket").exists(), 60, "munged did not start")
        until(
            lambda: said(env, "sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2",
            120,
            "the nodes did not come up",
            base / "run",
        )
        yield env
    finally:
        said(env, "scancel", "--full", "-u", getpass.getuser())
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def said(env, *command):
    return subprocess.run(command, env=env, capture_output=True, text=True).stdout


def until(holds, seconds, message, logs=None):
    """Waits; fails with the logs of a folder."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(
                "\n".join(
                    [
                        message,
                        *(p.read_text()[-1500:] for p in (logs.glob("*.out") if logs else ())),
                    ]
                )
            )
        time.sleep(0.1)


def jobs(env):
    """[(job id, what it makes, state)] of all jobs that Slurm remembers."""
    return [
        tuple(line.split("|"))
        for line in said(env, "squeue", "-h", "-t", "all", "-o", "%i|%k|%T").splitlines()
    ]


@needs_snakemake
@needs_slurm
def test_slurm_runs_the_grid_and_retries_a_killed_job(slurm, tmp_path):
    results = tmp_path / "results" / PROFILE
    config = [f"profile={PROFILE}", f"experiments={NAMES}", f"seeds={SEEDS}"]
    options = [
        "--slurm-status-command",
        "squeue",
        "--slurm-init-seconds-before-status-checks",
        "5",
        "--seconds-between-status-checks",
        "1",
        "--slurm-no-account",
        "--latency-wait",
        "5",
        "--set-resources",
        "run:gpu=0",
        "run:mem_mb=900",
        "report:mem_mb=900",
        "--default-resources",
        "slurm_partition=main",
        "runtime=600",
    ]
    process = snakemake(tmp_path, "slurm", *options, config=config, env=slurm)
    try:
        until(
            lambda: list(results.glob("work/*/lock")) or process.poll() is not None,
            SECONDS,
            "no job began a run",
        )
        killed = next(job for job in jobs(slurm) if job[2] == "RUNNING")
        said(slurm, "scancel", "--signal=KILL", "--full", killed[0])
        text = process.communicate(timeout=SECONDS)[0]
    finally:
        process.kill()
    print(text[-3000:], *jobs(slurm), sep="\n")
    assert process.returncode == 0
    ended = {number: state for number, _, state in jobs(slurm)}
    again = [
        number for number, what, state in jobs(slurm) if what == killed[1] and state == "COMPLETED"
    ]
    assert ended[killed[0]] in ("FAILED", "CANCELLED", "NODE_FAIL"), (
        "the job ended before it could be killed"
    )
    assert len(again) == 1 and again[0] != killed[0], "the killed job was not retried"

    workspace = open_workspace(get_profile(PROFILE), tmp_path / "local", device="cpu")
    run(
        workspace,
        [
            plan
            for name in NAMES.split(",")
            for seed in range(SEEDS)
            for plan in experiment(name).plans(workspace, seed)
        ],
        workers=1,
        progress=False,
    )
    assert results_of(results) == results_of(tmp_path / "local")
    assert (results / "report.html").is_file() and not [
        p for p in (results / "work").rglob("*") if p.is_file()
    ]


@needs_snakemake
def test_a_checkout_with_records_has_nothing_to_run_and_a_lost_record_is_named(tmp_path):
    """The committed records alone: no cache, no data, no memory of Snakemake's, and file times in any order."""
    folder = tmp_path / "results" / "cpu"
    shutil.copytree(
        ROOT / "results" / "cpu" / "runs", folder / "runs", copy_function=shutil.copyfile
    )
    shutil.copy(ROOT / "results" / "cpu" / "profile.json", folder)
    (folder / "report.html").touch()
    for path in folder.rglob("*.json"):
        os.utime(path, (time.time() + 10, time.time() + 10))
    env = {"EDGENES_DATA": ""}
    dry = lambda: snakemake(
        tmp_path, "local", "--dry-run", config=["profile=cpu", "seeds=0,"], env=env
    ).communicate(timeout=600)[0]
    text = dry()
    assert "Nothing to be done" in text, text
    lost = next(
        path for path in folder.glob("runs/shift-*.json") if '"seed": 0' in path.read_text()
    )
    lost.unlink()
    text = dry()
    assert jobs_of(text) == [("shift", "0")], text
    assert not (folder / "work").exists()


@needs_snakemake
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("results=5", "--results 5 "),
        ("data={b}/{config}$HOME", "'--data={b}/{config}$HOME'"),
        ("results={x}", "give a folder without braces"),
    ],
)
def test_what_a_configuration_holds_is_taken_as_it_is(config, said, tmp_path):
    """A number that is a folder, and braces, which Snakemake fills in elsewhere: the command of a job has them, or one line refuses them."""
    process = snakemake(
        tmp_path,
        "local",
        "--dry-run",
        "--printshellcmds",
        config=["profile=smoke", "seeds=0,", "experiments=control", config],
    )
    text = process.communicate(timeout=120)[0]
    assert said in text and "Traceback" not in text, text
    assert (process.returncode == 0) == ("without" not in said)
