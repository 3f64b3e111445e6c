# The grid of experiments and seeds as the jobs of a cluster: one job an experiment and seed, then tables, figures and report.
#
#   snakemake --profile cluster/local --config profile=demo --dry-run      what is missing
#   snakemake --profile cluster/slurm --config profile=paper data=/shared/cifar100
#
# A finished experiment and seed is one whose records are there (`edgenes status`): content decides, not the times of
# files, so a checkout with records sends no job for them. Keys of --config: profile, seeds, experiments, results,
# data, device; they mean what the options of `edgenes run` do. The results folder is one that all nodes see.
import shlex
import sys
from pathlib import Path

PROFILE = str(config.get("profile", "demo"))
RESULTS = Path(str(config.get("results", f"results/{PROFILE}")))
if set("{}") & set(str(RESULTS)): raise WorkflowError(f"results is {RESULTS}: give a folder without braces")  # Snakemake would take them for a wildcard
GIVEN = {name: str(config[name]) for name in ("seeds", "experiments") if name in config}


def told(*words):
    """Words of a shell command as they are: Snakemake fills in what stands between single braces."""
    return shlex.join(map(str, words)).replace("{", "{{").replace("}", "}}")


EDGENES = told(sys.executable, "-m", "edgenes")
OPTIONS = told(*(f"--{name}={config[name]}" for name in ("data", "device") if name in config))
OURS = workflow.is_main_process  # a job reads this file again, and is told what to make


def mark(pair):
    """An empty file that says that a job of this start has ended; it is removed when the report is made."""
    return f"{RESULTS}/work/done/{pair[0]}-{pair[1]}"


LACKING, MARKS = {}, []
if OURS:
    from edgenes.cli.study import missing
    from edgenes.core import EdgenesError

    try: LACKING = missing(PROFILE, RESULTS, **GIVEN)
    except EdgenesError as error: raise WorkflowError(str(error))
    for pair in LACKING: Path(mark(pair)).unlink(missing_ok=True)  # of a start that was killed; a record was deleted since
    MARKS = [*map(mark, LACKING), *map(str, sorted(RESULTS.glob("work/done/*")))]  # the latter: killed before its report


def before(wildcards):
    """A job waits for the first one that asks for the same run, rather than hold a GPU until that run is finished."""
    pair = wildcards.experiment, int(wildcards.seed)
    first = next((other for other in LACKING if not set(LACKING[other]).isdisjoint(LACKING.get(pair, ()))), pair)
    return [] if first == pair else mark(first)


wildcard_constraints:
    experiment="[a-z]+",
    seed="[0-9]+",


rule all:
    input:
        local(MARKS),  # asked for here as well: what is absent does not make a rule run that only reads it
        local(f"{RESULTS}/report.html"),


rule report:
    input:
        local(MARKS),
    output:
        local(update(f"{RESULTS}/report.html")),
    shell:
        f"{EDGENES} {told('report', PROFILE, '--results', RESULTS)}"


rule run:
    input:
        local(before),
    output:
        local(touch(mark(("{experiment}", "{seed}")))),
    threads: 1
    shell:
        f"{EDGENES} {told('run', PROFILE, '--results', RESULTS)} --experiments {{wildcards.experiment}} --seeds {{wildcards.seed}}, --workers 1 --no-tables --no-notebooks {OPTIONS}"


onsuccess:
    written = Path(f"{RESULTS}/report.html").stat().st_mtime
    for path in map(Path, MARKS if OURS else ()):
        if path.is_file() and path.stat().st_mtime <= written: path.unlink()
