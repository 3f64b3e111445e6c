"""The grid as the jobs of a cluster.

A real Slurm on loopback runs it. A job is killed and retried, and the records are those of a local
run.
EDGENES_CLUSTER_PROFILE, _EXPERIMENTS and _SEEDS choose another grid, such as demo.
"""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
from project import ROOT
from recorded import results_of

from edgenes.experiments.registry import EXPERIMENTS, experiment
from edgenes.study.pipeline import run
from edgenes.study.profiles import get_profile
from edgenes.study.workspace import open_workspace

PROFILE = os.environ.get("EDGENES_CLUSTER_PROFILE", "smoke")
ALL_EXPERIMENTS = "control,distance" if PROFILE == "smoke" else ",".join(EXPERIMENTS)
NAMES = os.environ.get("EDGENES_CLUSTER_EXPERIMENTS", ALL_EXPERIMENTS)
SEEDS = int(os.environ.get("EDGENES_CLUSTER_SEEDS", 2))
SECONDS = 1200 if PROFILE == "smoke" else 24 * 3600
PATH = f"{os.environ['PATH']}:/usr/sbin"  # where the daemons are
COMMANDS = ("munged", "slurmctld", "slurmd", "squeue", "srun")
ABSENT = [name for name in COMMANDS if not shutil.which(name, path=PATH)]

needs_snakemake = pytest.mark.skipif(
    not find_spec("snakemake"), reason="Snakemake is not installed: make venv EXTRAS=dev,scale"
)
needs_slurm = pytest.mark.skipif(
    bool(ABSENT) or not find_spec("snakemake_executor_plugin_slurm"),
    reason=f"Slurm is not installed (lacks {', '.join(ABSENT) or 'its plugin for Snakemake'}): "
    "apt-get install slurmctld slurmd slurm-client munge",
)


# ---------------------------------------------------------------- Snakemake


def snakemake(folder, profile, *options, config=(), **environment):
    """Snakemake with a profile of the project, started in a folder of its own."""
    command = [sys.executable, "-m", "snakemake"]
    command += ["--snakefile", ROOT / "Snakefile", "--directory", folder]
    command += ["--profile", ROOT / "cluster" / profile, *options, "--config", *config]
    packages = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": packages, "OMP_NUM_THREADS": "1"} | environment,
    )


def jobs_of(text):
    """(experiment, seed) of the jobs that Snakemake names."""
    label = "wildcards: experiment="
    named = [line.split(label)[1] for line in text.splitlines() if label in line]
    return sorted({tuple(name.strip().split(", seed=")) for name in named})


def dry_run(folder):
    """What Snakemake would run for seed 0 of the profile cpu, without data."""
    config = ("profile=cpu", "seeds=0,")
    process = snakemake(folder, "local", "--dry-run", config=config, EDGENES_DATA="")
    return process.communicate(timeout=600)[0]


@needs_snakemake
def test_a_checkout_with_records_has_nothing_to_run_and_a_lost_record_is_named(tmp_path):
    """The committed records alone: no cache, no data, no memory of Snakemake's, any file times."""
    folder = tmp_path / "results" / "cpu"
    committed = ROOT / "results" / "cpu"
    shutil.copytree(committed / "runs", folder / "runs", copy_function=shutil.copyfile)
    shutil.copy(committed / "profile.json", folder)
    (folder / "report.html").touch()
    later = time.time() + 10
    for path in folder.rglob("*.json"):
        os.utime(path, (later, later))
    text = dry_run(tmp_path)
    assert "Nothing to be done" in text, text
    shifts = folder.glob("runs/shift-*.json")
    lost = next(path for path in shifts if '"seed": 0' in path.read_text())
    lost.unlink()
    text = dry_run(tmp_path)
    assert jobs_of(text) == [("shift", "0")], text
    assert not (folder / "work").exists()


def shell_commands(config, folder):
    """(what Snakemake prints for a job with this configuration, its exit code)."""
    given = ("profile=smoke", "seeds=0,", "experiments=control", config)
    process = snakemake(folder, "local", "--dry-run", "--printshellcmds", config=given)
    text = process.communicate(timeout=120)[0]
    assert "Traceback" not in text, text
    return text, process.returncode


@needs_snakemake
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("results=5", "--results 5 "),
        ("data={b}/{config}$HOME", "'--data={b}/{config}$HOME'"),
    ],
)
def test_what_a_configuration_holds_is_taken_as_it_is(config, words, tmp_path):
    """A number that is a folder, and braces, which Snakemake fills in elsewhere."""
    text, code = shell_commands(config, tmp_path)
    assert code == 0
    assert words in text, text


@needs_snakemake
def test_a_results_folder_with_braces_is_refused(tmp_path):
    text, code = shell_commands("results={x}", tmp_path)
    assert code != 0
    assert "give a folder without braces" in text, text


# ---------------------------------------------------------------- Slurm


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
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


def output_of(env, *command):
    """What a command prints; empty where it fails."""
    return subprocess.run(command, env=env, capture_output=True, text=True).stdout


def wait_until(holds, seconds, message, logs=None):
    """Waits until a condition holds; fails with the logs of a folder."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            ends = [path.read_text()[-1500:] for path in (logs.glob("*.out") if logs else ())]
            pytest.fail("\n".join([message, *ends]))
        time.sleep(0.1)


def write_configuration(base):
    """The files that a Slurm of two nodes reads, in a folder of its own."""
    for name in ("run", "state", "spool/n1", "spool/n2", "bin"):
        (base / name).mkdir(parents=True)
    base.chmod(0o755)
    host = socket.gethostname()
    conf = CONF.format(host=host, user=getpass.getuser(), base=base, ports=free_ports(3))
    (base / "slurm.conf").write_text(conf)
    key = base / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    srun = base / "bin" / "srun"  # the job-step plugin drops SLURM_CONF before it calls srun
    real = shutil.which("srun", path=PATH)
    srun.write_text(f'#!/bin/sh\nSLURM_CONF="{base / "slurm.conf"}" exec {real} "$@"\n')
    srun.chmod(0o755)


def daemons_of(base):
    """The commands of the daemons, in the order in which they start."""
    munge = ["munged", "-F", "--force"]
    munge += [f"--key-file={base}/munge.key", f"--socket={base}/run/munge.socket"]
    munge += [f"--{name}-file={base}/run/munged.{name}" for name in ("pid", "log", "seed")]
    nodes = [["slurmd", "-D", "-N", node] for node in ("n1", "n2")]
    return [munge, ["slurmctld", "-D"], *nodes]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment that speaks to a Slurm of two nodes on this machine."""
    base = tmp_path_factory.mktemp("slurm")
    write_configuration(base)
    env = os.environ | {"SLURM_CONF": str(base / "slurm.conf"), "PATH": f"{base}/bin:{PATH}"}
    started = []
    try:
        for command in daemons_of(base):
            log = (base / "run" / f"{command[0]}{len(started)}.out").open("w")
            started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
            if command[0] == "munged":
                munge_socket = base / "run" / "munge.socket"
                wait_until(munge_socket.exists, 60, "munged did not start")
        count_idle = ("sinfo", "-h", "-t", "idle", "-o", "%D")
        wait_until(
            lambda: output_of(env, *count_idle).strip() == "2",
            120,
            "the nodes did not come up",
            base / "run",
        )
        yield env
    finally:
        output_of(env, "scancel", "--full", "-u", getpass.getuser())
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def jobs(env):
    """(job id, what it makes, state) of all jobs that Slurm remembers."""
    lines = output_of(env, "squeue", "-h", "-t", "all", "-o", "%i|%k|%T").splitlines()
    return [tuple(line.split("|")) for line in lines]


SLURM_OPTIONS = """
--slurm-status-command squeue
--slurm-init-seconds-before-status-checks 5
--seconds-between-status-checks 1
--slurm-no-account
--latency-wait 5
--set-resources run:gpu=0 run:mem_mb=900 report:mem_mb=900
--default-resources slurm_partition=main runtime=600
"""


def run_and_kill_one_job(slurm, folder, results):
    """Runs the grid by Slurm and kills the first job that has begun a run; returns that job."""
    config = [f"profile={PROFILE}", f"experiments={NAMES}", f"seeds={SEEDS}"]
    process = snakemake(folder, "slurm", *SLURM_OPTIONS.split(), config=config, **slurm)
    try:
        wait_until(
            lambda: list(results.glob("work/*/lock")) or process.poll() is not None,
            SECONDS,
            "no job began a run",
        )
        killed = next(job for job in jobs(slurm) if job[2] == "RUNNING")
        output_of(slurm, "scancel", "--signal=KILL", "--full", killed[0])
        text = process.communicate(timeout=SECONDS)[0]
    finally:
        process.kill()
    print(text[-3000:], *jobs(slurm), sep="\n")
    assert process.returncode == 0
    return killed


@needs_snakemake
@needs_slurm
def test_slurm_runs_the_grid_and_retries_a_killed_job(slurm, tmp_path):
    results = tmp_path / "results" / PROFILE
    number, target, _ = run_and_kill_one_job(slurm, tmp_path, results)
    states = {job: state for job, _, state in jobs(slurm)}
    ends = ("FAILED", "CANCELLED", "NODE_FAIL")
    assert states[number] in ends, "the job ended before it could be killed"
    completed = [job for job, made, state in jobs(slurm) if made == target and state == "COMPLETED"]
    assert len(completed) == 1, "the killed job was not retried"
    assert completed[0] != number

    workspace = open_workspace(get_profile(PROFILE), tmp_path / "local", device="cpu")
    plans = [
        plan
        for name in NAMES.split(",")
        for seed in range(SEEDS)
        for plan in experiment(name).plans(workspace, seed)
    ]
    run(workspace, plans, workers=1, progress=False)
    assert results_of(results) == results_of(tmp_path / "local")
    assert (results / "report.html").is_file()
    assert not [path for path in (results / "work").rglob("*") if path.is_file()]
