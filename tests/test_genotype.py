"""Genotypes under generated input: round trips, exact deviations, clear errors for bad files."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgenes.core import EdgenesError
from edgenes.genotype import CELL_TYPES, OPERATIONS, Genotype, SearchSpace
from edgenes.neighbours import deviate, random_genotype
from edgenes.nni import genotype_from_nni, genotype_to_nni

QUICK = settings(max_examples=60, deadline=None)

# ---------------------------------------------------------------- what is generated

SEEDS = st.integers(0, 2**31)


def subsets(names: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(names), min_size=1, unique=True).map(tuple)


def spaces(operations: st.SearchStrategy[tuple[str, ...]]) -> st.SearchStrategy[SearchSpace]:
    return st.builds(
        SearchSpace,
        nodes=st.integers(1, 6),
        inputs_per_node=st.integers(1, 2),
        cell_types=subsets(CELL_TYPES),
        operations=operations,
    )


FULL_SPACES = spaces(st.just(OPERATIONS))  # the only ones that NNI can name
ANY_SPACES = spaces(subsets(OPERATIONS))

# Values that a JSON file could hold in place of the right one.
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(OPERATIONS)
)


def containers(values: st.SearchStrategy) -> st.SearchStrategy:
    lists = st.lists(values, max_size=4)
    mappings = st.dictionaries(st.text(max_size=5), values, max_size=3)
    return lists | mappings


VALUES = st.recursive(SCALARS, containers, max_leaves=8)


def entry_paths(value: object, path: tuple = ()) -> list[tuple]:
    """The paths of all entries of nested lists and dictionaries."""
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    else:
        entries = []
    paths = []
    for key, entry in entries:
        paths.append((*path, key))
        paths += entry_paths(entry, (*path, key))
    return paths


@st.composite
def damaged(draw: st.DrawFn, to_document: Callable[[Genotype], dict[str, Any]]) -> dict:
    """A valid document in which one entry is replaced, removed or added."""
    genotype = random_genotype(draw(FULL_SPACES), draw(SEEDS))
    document = json.loads(json.dumps(to_document(genotype)))
    *path, last = draw(st.sampled_from(entry_paths(document)))
    container: Any = document
    for key in path:
        container = container[key]
    damage = draw(st.sampled_from(("replace", "remove", "add")))
    if damage == "replace":
        container[last] = draw(VALUES)
    elif damage == "remove":
        del container[last]
    elif isinstance(container, dict):
        name = draw(st.text(max_size=6) | st.just("reduce_n99_p98"))
        container[name] = draw(VALUES)
    else:
        container.append(draw(VALUES))
    return document


def hub_export(genotype: Genotype) -> dict[str, Any]:
    """A genotype in the form of the model space hub of NNI 3."""
    export: dict[str, Any] = {}
    for edge in genotype.edges:
        number = sum(f"{edge.cell}/op_{edge.node}_{k}" in export for k in (0, 1))
        export[f"{edge.cell}/op_{edge.node}_{number}"] = edge.operation
        export[f"{edge.cell}/input_{edge.node}_{number}"] = [edge.source]
    return export


def darts_fields(genotype: Genotype) -> dict[str, Any]:
    """A genotype as the fields of the named tuple of public DARTS code."""
    fields: dict[str, Any] = {}
    for cell in genotype.space.cell_types:
        edges = [edge for edge in genotype.edges if edge.cell == cell]
        fields[cell] = [[edge.operation, edge.source] for edge in edges]
        fields[f"{cell}_concat"] = list(genotype.space.intermediate_nodes)
    return fields


def assert_read_or_refused(read: Callable[[Any], Genotype], source: object) -> None:
    """Reading gives a genotype that survives a round trip, or an error of one short line."""
    try:
        genotype = read(source)
    except EdgenesError as error:
        message = str(error)
    else:
        assert Genotype.from_json(genotype.to_json()) == genotype
        return
    assert "\n" not in message
    assert 10 < len(message) < 400


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


# ---------------------------------------------------------------- bad files


@QUICK
@given(damaged(Genotype.to_dict) | VALUES)
def test_damaged_documents(document: object) -> None:
    assert_read_or_refused(Genotype.from_json, document)
    assert_read_or_refused(Genotype.from_json, json.dumps(document))


@QUICK
@given(damaged(genotype_to_nni) | damaged(hub_export) | VALUES)
def test_damaged_nni_exports(export: object) -> None:
    assert_read_or_refused(genotype_from_nni, export)


@QUICK
@given(damaged(darts_fields) | VALUES)
def test_damaged_genotypes_of_darts(fields: object) -> None:
    assert_read_or_refused(Genotype.from_darts, fields)


@QUICK
@given(SEEDS, st.data())
def test_texts_that_are_cut_off_or_garbled(seed: int, data: st.DataObject) -> None:
    text = random_genotype(SearchSpace(), seed).to_json()
    cut = data.draw(st.integers(0, len(text)))
    noise = data.draw(st.text(max_size=3))
    assert_read_or_refused(Genotype.from_json, text[:cut])
    assert_read_or_refused(Genotype.from_json, text[:cut] + noise + text[cut + 1 :])


HUGE_SPACE = '{"nodes": 1e9, "inputs_per_node": 1, "cell_types": [], "operations": []}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        "9" * 5_000,
        '{"space": NaN}',
        "\x00",
        "null",
        f'{{"edges": [], "space": {HUGE_SPACE}}}',
    ],
)
def test_hostile_texts(text: str) -> None:
    with pytest.raises(EdgenesError):
        Genotype.from_json(text)
