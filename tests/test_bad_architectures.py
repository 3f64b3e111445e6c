"""Bad architectures, as JSON of this package, of NNI and of DARTS: one line names the fault."""

import json

from hypothesis import given
from hypothesis import strategies as st
from refusals import Refusals, examples
from test_genotype import FULL_SPACES, VALUES, damaged, darts_fields, hub_export

from edgenes.genotype import Genotype
from edgenes.neighbours import random_genotype
from edgenes.nni import genotype_from_nni, genotype_to_nni

TRIED = Refusals(genotype=500, nni=500, darts=200)


@examples(150)
@given(damaged(Genotype.to_dict) | VALUES)
def test_genotype_documents(document):
    TRIED.attempt("genotype", Genotype.from_json, document)
    TRIED.attempt("genotype", Genotype.from_json, json.dumps(document))


@examples(50)
@given(FULL_SPACES, st.integers(0, 40), st.text(max_size=3))
def test_genotype_texts(space, first, noise):
    text = random_genotype(space, 1).to_json()
    for cut in range(first, len(text), 41):
        TRIED.refused("genotype", Genotype.from_json, text[:cut])
        TRIED.attempt("genotype", Genotype.from_json, text[:cut] + noise + text[cut + 1 :])


@examples(310)
@given(damaged(genotype_to_nni) | VALUES)
def test_nni_documents(mapping):
    TRIED.attempt("nni", genotype_from_nni, mapping)


@examples(210)
@given(damaged(hub_export))
def test_nni_documents_of_the_hub(mapping):
    TRIED.attempt("nni", genotype_from_nni, mapping)


@examples(210)
@given(damaged(darts_fields) | VALUES)
def test_darts_fields(fields):
    TRIED.attempt("darts", Genotype.from_darts, fields)


def test_enough_was_tried(request):
    TRIED.check_counts(request)
