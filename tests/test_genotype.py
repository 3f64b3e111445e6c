"""Genotypes under generated input: round trips, exact deviations, and no error but EdgenesError on bad files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgenes.core import EdgenesError
from edgenes.genotype import CELL_TYPES, OPERATIONS, Genotype, SearchSpace
from edgenes.neighbours import deviate, random_genotype
from edgenes.nni import genotype_from_nni, genotype_to_nni

SEEDS = st.integers(0, 2**31)
QUICK = settings(max_examples=60, deadline=None)


def subsets(names: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(names), min_size=1, unique=True).map(tuple)


def spaces(
    operations: st.SearchStrategy[tuple[str, ...]] = st.just(OPERATIONS),
) -> st.SearchStrategy[SearchSpace]:  # noqa: B008
    return st.builds(
        SearchSpace, st.integers(1, 6), st.integers(1, 2), subsets(CELL_TYPES), operations
    )


@QUICK
@given(spaces(subsets(OPERATIONS)), SEEDS)
def test_json_round_trip(space: SearchSpace, seed: int) -> None:
    genotype = random_genotype(space, seed)
    for copy in (Genotype.from_json(genotype.to_json()), Genotype.from_json(genotype.to_dict())):
        assert copy == genotype and hash(copy) == hash(genotype) and copy.key == genotype.key


@QUICK
@given(spaces(), SEEDS)
def test_nni_round_trip_keeps_the_edges_that_are_not_kept(space: SearchSpace, seed: int) -> None:
    structure = np.random.default_rng(seed).normal(size=space.size)
    genotype = Genotype.from_structure(space, structure)
    assert len(genotype.edges) + len(genotype.dropped) == space.n_edges * len(space.cell_types)
    mapping = json.loads(json.dumps(genotype_to_nni(genotype)))
    copy = genotype_from_nni(mapping, space.inputs_per_node)
    assert (
        copy == genotype and copy.dropped == genotype.dropped and genotype_to_nni(copy) == mapping
    )


@QUICK
@given(spaces(subsets(OPERATIONS)), SEEDS, st.data())
def test_deviation_shares_exactly_what_was_asked(
    space: SearchSpace, seed: int, data: st.DataObject
) -> None:
    origin, shared = random_genotype(space, seed), data.draw(st.integers(0, space.max_shared))
    try:
        deviation = deviate(origin, shared, seed)
    except EdgenesError:  # only a node that has to keep both sources, or to keep one operation, can make it impossible
        assert len(space.operations) == 1
        return
    assert deviation.space == space and deviation.shared_edges(
        origin
    ) == shared == origin.shared_edges(deviation)


@pytest.mark.parametrize("shared", [-1, 5, 1.0, True, None, "1"])
def test_deviation_refuses_other_counts(shared: object) -> None:
    with pytest.raises(EdgenesError, match="shared is"):
        deviate(random_genotype(SearchSpace(), 0), shared, 0)  # type: ignore[arg-type]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(OPERATIONS),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def places(value: object, path: tuple = ()) -> list[tuple]:
    "Paths of all entries of nested lists and dicts."
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [q for k, v in items for q in [(*path, k), *places(v, (*path, k))]]


@st.composite
def damaged(draw: st.DrawFn, nni: bool = False) -> dict:
    "A valid file with one entry replaced, removed or added."
    genotype = random_genotype(draw(spaces()), draw(SEEDS))
    document = json.loads(json.dumps(genotype_to_nni(genotype) if nni else genotype.to_dict()))
    *path, last = draw(st.sampled_from(places(document)))
    holder: list | dict = document
    for step in path:
        holder = holder[step]
    what = draw(st.sampled_from(("replace", "remove", "add")))
    if what == "replace":
        holder[last] = draw(VALUES)
    elif what == "remove":
        del holder[last]
    elif isinstance(holder, dict):
        holder[draw(st.text(max_size=6) | st.just("reduce_n99_p98"))] = draw(VALUES)
    else:
        holder.append(draw(VALUES))
    return document


def one_line_or_genotype(read, source: object) -> None:
    "The reader returns a genotype that survives a round trip, or raises EdgenesError with one short line."
    try:
        genotype = read(source)
    except EdgenesError as error:
        assert "\n" not in str(error) and 10 < len(str(error)) < 400
    else:
        assert Genotype.from_json(genotype.to_json()) == genotype


@QUICK
@given(damaged() | VALUES)
def test_a_damaged_document_never_raises_anything_else(document: object) -> None:
    one_line_or_genotype(Genotype.from_json, document)
    one_line_or_genotype(Genotype.from_json, json.dumps(document))


@QUICK
@given(damaged(nni=True) | VALUES)
def test_a_damaged_nni_export_never_raises_anything_else(mapping: object) -> None:
    one_line_or_genotype(Genotype.from_nni, mapping)


@QUICK
@given(SEEDS, st.data())
def test_a_truncated_or_garbled_text_never_raises_anything_else(
    seed: int, data: st.DataObject
) -> None:
    text = random_genotype(SearchSpace(), seed).to_json()
    cut = data.draw(st.integers(0, len(text)))
    one_line_or_genotype(Genotype.from_json, text[:cut])
    one_line_or_genotype(
        Genotype.from_json, text[:cut] + data.draw(st.text(max_size=3)) + text[cut + 1 :]
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        "9" * 5_000,
        '{"space": NaN}',
        "\x00",
        "null",
        '{"edges": [], "space": {"nodes": 1e9, "inputs_per_node": 1, "cell_types": [], "operations": []}}',
    ],
)
def test_hostile_texts(text: str) -> None:
    with pytest.raises(EdgenesError):
        Genotype.from_json(text)
