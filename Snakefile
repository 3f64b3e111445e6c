# The grid of experiments and seeds as the jobs of a cluster: one job per experiment and seed, then
# tables, figures and report.
#
#   snakemake --profile cluster/local --config profile=demo --dry-run      what is missing
#   snakemake --profile cluster/slurm --config profile=paper data=/shared/cifar100
#
# An experiment and seed is finished when its records are there (`edgenes status`). Content decides,
# not the times of files, so a checkout with records sends no job for them. The keys of --config are
# profile, seeds, experiments, results, data and device; they mean what the options of `edgenes run`
# do. The results folder is one that all nodes see.
import shlex
import sys
from pathlib import Path

PROFILE = str(config.get("profile", "demo"))
RESULTS = Path(str(config.get("results", f"results/{PROFILE}")))
if set("{}") & set(str(RESULTS)):  # Snakemake would take them for a wildcard
    raise WorkflowError(f"results is {RESULTS}: give a folder without braces")


def shell_words(*words):
    """Words of a shell command as they are: Snakemake fills in what single braces hold."""
    return shlex.join(map(str, words)).replace("{", "{{").replace("}", "}}")


EDGENES = shell_words(sys.executable, "-m", "edgenes")
PLACE = shell_words(PROFILE, "--results", RESULTS)
GIVEN = [name for name in ("data", "device") if name in config]
OPTIONS = shell_words(*(f"--{name}={config[name]}" for name in GIVEN))


def mark_of(experiment, seed):
    """An empty file: a job of this start has ended. It is removed after the report."""
    return f"{RESULTS}/work/done/{experiment}-{seed}"


LACKING = {}  # (experiment, seed) -> the runs that it needs next
MARKS = []
IS_MAIN = workflow.is_main_process  # a job reads this file again, and is told what to make
if IS_MAIN:
    from edgenes.cli.study import missing
    from edgenes.core import EdgenesError

    chosen = {name: str(config[name]) for name in ("seeds", "experiments") if name in config}
    try:
        LACKING = missing(PROFILE, RESULTS, **chosen)
    except EdgenesError as error:
        raise WorkflowError(str(error))
    MARKS = [mark_of(*pair) for pair in LACKING]
    for mark in MARKS:  # of a start that was killed, where a record was deleted since
        Path(mark).unlink(missing_ok=True)
    MARKS += map(str, sorted(RESULTS.glob("work/done/*")))  # of a start killed before its report


def first_with_same_run(wildcards):
    """The job that this one waits for: the first that asks for one of its runs.

    Both would hold a GPU otherwise, one of them only to wait for the run of the other.
    """
    pair = wildcards.experiment, int(wildcards.seed)
    runs = set(LACKING.get(pair, ()))
    first = next((other for other in LACKING if runs & set(LACKING[other])), pair)
    return [] if first == pair else mark_of(*first)


wildcard_constraints:
    experiment="[a-z]+",
    seed="[0-9]+",


rule all:
    input:
        # asked for here as well: what is absent does not make a rule run that only reads it
        local(MARKS),
        local(f"{RESULTS}/report.html"),


rule report:
    input:
        local(MARKS),
    output:
        local(update(f"{RESULTS}/report.html")),
    shell:
        f"{EDGENES} report {PLACE}"


rule run:
    input:
        local(first_with_same_run),
    output:
        local(touch(mark_of("{experiment}", "{seed}"))),
    threads: 1
    shell:
        f"{EDGENES} run {PLACE}"
        " --experiments {wildcards.experiment} --seeds {wildcards.seed}, --workers 1"
        f" --no-tables --no-notebooks {OPTIONS}"


onsuccess:
    written = Path(f"{RESULTS}/report.html").stat().st_mtime
    for mark in map(Path, MARKS):
        if mark.is_file() and mark.stat().st_mtime <= written:
            mark.unlink()
