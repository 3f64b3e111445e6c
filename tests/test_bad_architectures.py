"""Bad architectures, as JSON of this package, of NNI and of DARTS: one line names the fault."""

import json

import pytest
from genotype_inputs import FULL_SPACES, SEEDS, darts_fields, hub_export
from hypothesis import given
from hypothesis import strategies as st
from refusals import JSON, NAMES, Refusals, changed, examples

from edgenes.genotype import OPERATIONS, Genotype
from edgenes.neighbours import random_genotype
from edgenes.nni import genotype_from_nni, genotype_to_nni

TRIED = Refusals(genotype=1000, nni=450, darts=180)

VALUES = JSON | st.sampled_from(OPERATIONS)
EDGE_NAMES = NAMES | st.just("reduce_n99_p98")


def damaged(to_document):
    """A valid document in which one entry is replaced, removed or added."""
    genotypes = st.builds(random_genotype, FULL_SPACES, SEEDS)
    documents = genotypes.map(to_document)
    return documents.flatmap(lambda document: changed(document, VALUES, EDGE_NAMES))


def try_to_read(kind, read, source):
    """What is not refused is a genotype that survives a round trip."""
    taken = []
    if not TRIED.attempt(kind, lambda: taken.append(read(source))):
        [genotype] = taken
        assert Genotype.from_json(genotype.to_json()) == genotype


@examples(150)
@given(damaged(Genotype.to_dict) | VALUES)
def test_genotype_documents(document):
    try_to_read("genotype", Genotype.from_json, document)
    try_to_read("genotype", Genotype.from_json, json.dumps(document))


@examples(50)
@given(FULL_SPACES, st.integers(0, 40), st.text(max_size=3))
def test_genotype_texts(space, first, noise):
    text = random_genotype(space, 1).to_json()
    for cut in range(first, len(text), 41):
        TRIED.refused("genotype", Genotype.from_json, text[:cut])
        try_to_read("genotype", Genotype.from_json, text[:cut] + noise + text[cut + 1 :])


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
    ids=lambda text: text[:12],
)
def test_hostile_texts(text):
    TRIED.refused("genotype", Genotype.from_json, text)


@examples(310)
@given(damaged(genotype_to_nni) | VALUES)
def test_nni_documents(mapping):
    try_to_read("nni", genotype_from_nni, mapping)


@examples(210)
@given(damaged(hub_export))
def test_nni_documents_of_the_hub(mapping):
    try_to_read("nni", genotype_from_nni, mapping)


@examples(210)
@given(damaged(darts_fields) | VALUES)
def test_darts_fields(fields):
    try_to_read("darts", Genotype.from_darts, fields)


def test_enough_was_tried(request):
    TRIED.check_counts(request)
