"""Genotypes under generated input: round trips and exact deviations."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from genotype_inputs import ANY_SPACES, FULL_SPACES, SEEDS, darts_fields, hub_export
from hypothesis import given, settings
from hypothesis import strategies as st

from edgenes.core import EdgenesError
from edgenes.genotype import Genotype, SearchSpace
from edgenes.neighbours import deviate, random_genotype
from edgenes.nni import genotype_from_nni, genotype_to_nni

QUICK = settings(max_examples=60, deadline=None)

# ---------------------------------------------------------------- round trips


@QUICK
@given(ANY_SPACES, SEEDS)
def test_json_round_trip(space: SearchSpace, seed: int) -> None:
    genotype = random_genotype(space, seed)
    for document in (genotype.to_json(), genotype.to_dict()):
        copy = Genotype.from_json(document)
        assert copy == genotype
        assert hash(copy) == hash(genotype)
        assert copy.key == genotype.key


@QUICK
@given(FULL_SPACES, SEEDS)
def test_nni_round_trip_keeps_the_dropped_edges(space: SearchSpace, seed: int) -> None:
    structure = np.random.default_rng(seed).normal(size=space.size)
    genotype = Genotype.from_structure(space, structure)
    assert len(genotype.edges) + len(genotype.dropped) == space.n_edges * len(space.cell_types)
    export = json.loads(json.dumps(genotype_to_nni(genotype)))
    copy = genotype_from_nni(export, space.inputs_per_node)
    assert copy == genotype
    assert copy.dropped == genotype.dropped
    assert genotype_to_nni(copy) == export


@QUICK
@given(FULL_SPACES, SEEDS)
def test_genotypes_of_others_are_read_as_they_are(space: SearchSpace, seed: int) -> None:
    genotype = random_genotype(space, seed)
    assert genotype_from_nni(hub_export(genotype), space.inputs_per_node) == genotype
    assert Genotype.from_darts(darts_fields(genotype), space.inputs_per_node) == genotype


# ---------------------------------------------------------------- deviations


@QUICK
@given(ANY_SPACES, SEEDS, st.data())
def test_deviation_shares_exactly_what_was_asked(
    space: SearchSpace,
    seed: int,
    data: st.DataObject,
) -> None:
    origin = random_genotype(space, seed)
    shared = data.draw(st.integers(0, space.max_shared))
    try:
        deviation = deviate(origin, shared, seed)
    except EdgenesError:
        # Only a node without a choice can make it impossible: it has to keep both of its sources,
        # and there is one operation.
        assert len(space.operations) == 1
        return
    assert deviation.space == space
    assert deviation.shared_edges(origin) == shared
    assert origin.shared_edges(deviation) == shared


@pytest.mark.parametrize("shared", [-1, 5, 1.0, True, None, "1"])
def test_deviation_refuses_other_counts(shared: Any) -> None:
    with pytest.raises(EdgenesError, match="shared is"):
        deviate(random_genotype(SearchSpace(), 0), shared, 0)
