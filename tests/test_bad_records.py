"""Bad records: damaged, edited, or sealed by somebody who knows how. One line names the fault."""

import contextlib
import errno
import json
import os
import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from project import ROOT
from refusals import Refusals, changed, examples, file_contents
from small_inputs import RUNS, sealed, write_results, write_runs

from edgenes.core import EdgenesError, read_json, write_atomic, write_json
from edgenes.experiments import control, quality, registry
from edgenes.genotype import SearchSpace
from edgenes.report.frames import calibration_errors, calibration_table, hypernetwork_records
from edgenes.study import searches, tasks
from edgenes.study.records import Records, all_records

TRIED = Refusals(record=300)
# A number that cannot be computed is refused or left out, not shown.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("bad")


@pytest.fixture(scope="module")
def sound_records(place):
    """Records of every kind. Results can be made of them, and say nothing of what is no number."""
    records = Records(place / "sound")
    written = write_runs(records)
    answers = registry.results(records, {})
    sentences = [sentence for answer in answers.values() for sentence in answer.sentences]
    assert sentences
    assert not [sentence for sentence in sentences if re.search(r"\bnan\b", sentence)]
    return written


def test_record_forms_are_those_of_the_pipeline(sound_records):
    committed = Records(ROOT / "results" / "cpu")
    for kind in RUNS:
        assert all_records(committed, kind)
    assert set(RUNS) == set(tasks.KINDS)


# ---------------------------------------------------------------- generated


def show_tables(kind, records):
    """Makes the tables of the records of one kind; some kinds have none of their own."""
    if kind == "system":
        quality.frame(records)
    elif kind == "hypernetwork":
        hypernetworks = hypernetwork_records(records)
        calibration_table(hypernetworks)
        calibration_errors(hypernetworks)
        control.learning_table(hypernetworks)


@examples(170)
@given(st.data())
def test_records(place, sound_records, data):
    record = data.draw(st.sampled_from(sound_records))
    document = data.draw(changed(record))
    sealed_anew = data.draw(st.booleans())
    if sealed_anew:
        sealed(document)
    folder = place / "records"
    shutil.rmtree(folder, ignore_errors=True)
    records = Records(folder)
    name = "x"
    if sealed_anew and isinstance(document.get("inputs"), dict):
        with contextlib.suppress(EdgenesError):  # inputs that cannot be hashed have no name
            name = f"{record['kind']}-{records.key(document['inputs'])}"
    path = folder / "runs" / f"{name}.json"
    path.parent.mkdir(parents=True)
    text = json.dumps(document)
    for cut in range(0, len(text) - 1, 1 + len(text) // 2):
        path.write_text(text[:cut])
        TRIED.refused("record", records.read, path)
    path.write_text(text)
    if not TRIED.attempt("record", records.read, path):  # a record that is taken can be shown
        TRIED.attempt("record", show_tables, record["kind"], records)


def show_everything(records):
    """Reads every record, then makes all results."""
    for path in records.paths():
        records.read(path)
    registry.results(records, {})


@examples(40)
@given(st.data())
def test_results_of_sealed_records(place, sound_records, data):
    folder = place / "sealed"
    shutil.rmtree(folder, ignore_errors=True)
    records = Records(folder)
    document = sealed(data.draw(changed(data.draw(st.sampled_from(sound_records)))))
    with contextlib.suppress(EdgenesError, KeyError, AttributeError):  # it may have no name
        name = f"{document['kind']}-{records.key(document['inputs'])}.json"
        write_json(folder / "runs" / name, document)
    TRIED.attempt("record", show_everything, records)


# ---------------------------------------------------------------- chosen


HYPERNETWORK_SETTINGS = ("inputs", "settings", "hypernetwork")
FAULTS = {  # kind of record, path of an entry, and what stands there instead
    "knots without end": ("hypernetwork", (*HYPERNETWORK_SETTINGS, "knots"), 10**12),
    "half a knot": ("hypernetwork", (*HYPERNETWORK_SETTINGS, "knots"), 2.5),
    "a point of letters": ("system", ("inputs", "point"), {"lambda": "<script>"}),
    "a point that is a list": ("system", ("inputs", "point"), {"lambda": [1]}),
    "a shift of letters": ("shift", ("results", "rows", 0, "nll_nats"), "<b>"),
    "a shift without rows": ("shift", ("results", "rows"), []),
    "no genotypes": ("darts", ("results", "log", 0, "genotypes"), []),
    "genotypes of numbers": ("darts", ("results", "log", 0, "genotypes"), [[5]]),
    "an edge of three": ("system", ("inputs", "pool"), [[[["reduce", 2, 0]], 0]]),
    "a pool of numbers": ("evolution", ("results", "pool"), [1]),
    "a judgement without a number": (
        "screening",
        ("results", "judged", 0, "val_loss_nats"),
        None,
    ),
    "no such member": ("system", ("results", "chosen"), [7]),
    "a point without lambda": ("system", ("inputs", "experiment"), "deviation"),
    "steps of letters": ("hypernetwork", ("results", "log", 0, "active_edges"), [["<b>"]]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_sealed_records_that_do_not_fit(fault, tmp_path, sound_records):
    """Tables are made of what is sealed, or one line says of what they cannot be made."""
    spoiled_kind, (*path, last), value = FAULTS[fault]
    for record in sound_records:
        document = json.loads(json.dumps(record))
        kind = document["kind"]
        if kind == spoiled_kind:
            container = document
            for key in path:
                container = container[key]
            assert last in container if isinstance(container, dict) else last < len(container)
            container[last] = value
        name = f"{kind}-{Records(tmp_path).key(document['inputs'])}.json"
        write_json(tmp_path / "runs" / name, sealed(document))
    TRIED.refused("record", registry.build_report, tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 10**5,
        b"9" * 5000,
        b'{"schema": 2, "hash": NaN}',
        b'{"schema": 2}',
    ],
    ids=lambda content: repr(content[:12]),
)
def test_contents_that_are_no_record(content, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    TRIED.refused("record", Records(tmp_path).read, path)


def test_paths_where_no_file_can_be(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")  # nobody writes: reading it would wait for ever
    for name in ("pipe.json", "none.json", "a\0b.json", "n" * 300, "."):
        TRIED.refused("record", read_json, tmp_path / name)


def test_a_hypernetwork_of_another_size():
    record = {
        "inputs": {
            "seed": 0,
            "settings": {"hypernetwork": {"knots": 5, "margin": 0.2}},
            "space": SearchSpace().to_dict(),
        },
        "results": {"structure": {"vectors": [[0.0]], "segments": [0.0]}},
    }
    TRIED.refused("record", searches.hypernetwork_of, record)


def test_published_figures_that_are_damaged(tmp_path):
    write_atomic(tmp_path / "results" / "published.json", "{")
    TRIED.refused("record", registry.published_figures, tmp_path)


# ---------------------------------------------------------------- out of sight


def test_records_that_cannot_be_listed_take_nothing_away(tmp_path, monkeypatch):
    """Tables of records that are out of sight for a moment are not tables of none."""
    registry.build_report(write_results(tmp_path))
    before = file_contents(tmp_path)
    runs = tmp_path / "runs"
    runs.rename(tmp_path / "away")
    write_atomic(runs, "")
    with pytest.raises(EdgenesError, match="cannot list"):
        registry.build_report(tmp_path)
    runs.unlink()
    (tmp_path / "away").rename(runs)

    def deny(folder):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "listdir", deny)
    with pytest.raises(EdgenesError, match=r"cannot list .*Permission denied"):
        registry.build_report(tmp_path)
    monkeypatch.undo()
    assert file_contents(tmp_path) == before


def test_enough_was_tried(request, place):
    assert not list(place.rglob("*.tmp"))
    TRIED.check_counts(request)
