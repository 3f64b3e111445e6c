"""What the commands for a saved ensemble print and write is what the ensemble answers."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from commands import run_command
from estimator_inputs import FEW, IMAGES, LABELS, TINY, write_pictures

from edgenes import EdgeNES
from edgenes.estimator.card import picture_of_genotype
from edgenes.genotype import Genotype

COUNT = 40  # pictures that are judged


class Saved(NamedTuple):
    """An ensemble of two members, its folder, and pictures that it has not seen."""

    model: EdgeNES
    folder: Path
    pictures: Path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    model = EdgeNES(**TINY).fit(*FEW)
    pictures = write_pictures(root / "pictures", IMAGES[-COUNT:], LABELS[-COUNT:])
    return Saved(model, model.save(root / "ensemble"), pictures)


def table_of(*command):
    """The rows of the table that a command prints."""
    return list(csv.DictReader(io.StringIO(run_command(*command).stdout)))


def test_the_table_of_predict(saved):
    rows = table_of("predict", saved.folder, saved.pictures)
    assert len(rows) == COUNT
    images = saved.model.read([row["file"] for row in rows]).images
    assert [row["label"] for row in rows] == saved.model.predict(images).astype(str).tolist()
    probability = saved.model.predict_proba(images).max(1)
    total, aleatoric, epistemic = saved.model.predict_uncertainty(images)
    assert min(aleatoric.max(), epistemic.max()) > 0.001  # the table has more than zeros
    for name, expected in (
        ("probability", probability),
        ("total_nats", total),
        ("aleatoric_nats", aleatoric),
        ("epistemic_nats", epistemic),
    ):
        numbers = [float(row[name]) for row in rows]
        assert np.allclose(numbers, expected, atol=1e-4), name  # it has four decimals


def test_predict_leaves_out_the_labels_of_unsure_answers(saved):
    rows = table_of("predict", saved.folder, saved.pictures, "--reject", 0.3)
    images = saved.model.read([row["file"] for row in rows]).images
    answers = saved.model.predict(images, reject=0.3)
    assert 0 < answers.mask.sum() < COUNT
    assert [row["label"] for row in rows] == answers.astype(str).filled("").tolist()
    assert all(row["probability"] for row in rows)


@pytest.mark.parametrize("lam", [0, 2, 4])
def test_sample_prints_the_architecture(saved, lam):
    result = run_command("sample", saved.folder, "--lambda", lam)
    genotype = Genotype.from_json(result.stdout)
    assert genotype == saved.model.sample(lam)
    shared = genotype.shared_edges(saved.model.optimum_)
    edges = genotype.space.max_shared
    words = f"asked for {lam}, shares {shared} of {edges} edges with the optimum\n"
    assert result.stderr == words


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_draw_draws_a_genotype(saved, tmp_path, kind):
    source = tmp_path / "genotype.json"
    source.write_text(saved.model.optimum_.to_json())
    out = tmp_path / f"cell.{kind}"
    assert run_command("draw", source, "--out", out).stdout == f"wrote {out}\n"
    expected = picture_of_genotype(saved.model.optimum_, None, "cell", kind)
    assert out.read_bytes() == expected


def test_draw_draws_each_member_beside_the_optimum(saved, tmp_path):
    run_command("draw", saved.folder, "--out", tmp_path, "--kind", "png")
    names = ("optimum", "member-0", "member-1")
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png" for name in names}
    for name in names:
        genotype = Genotype.from_json((saved.folder / f"{name}.json").read_text())
        expected = picture_of_genotype(genotype, saved.model.optimum_, name, "png")
        assert (tmp_path / f"{name}.png").read_bytes() == expected


def test_export_writes_one_member(saved, tmp_path):
    out = tmp_path / "member.pt2"
    printed = run_command("export", saved.folder, "--out", out, "--member", 1).stdout
    assert printed == f'wrote {out}; torch.export.load("member.pt2").module() runs it\n'
    images = torch.from_numpy(IMAGES[:5])[:, None].float() / 255
    answers = torch.export.load(out).module()(images).detach().numpy()
    expected = saved.model.member_proba(IMAGES[:5])
    assert np.allclose(answers, expected[1], atol=1e-5)
    assert not np.allclose(answers, expected[0], atol=1e-3)
