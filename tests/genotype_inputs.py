"""Generated search spaces and genotypes, and the forms in which others keep a genotype."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from edgenes.genotype import CELL_TYPES, OPERATIONS, Genotype, SearchSpace

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
