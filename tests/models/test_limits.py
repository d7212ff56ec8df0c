"""What a model cannot read, in whatever part it is given, is refused before anything compiles."""

import json

import jax
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.models.hf import from_hf
from slt_jax.models.hf_config import parse_config
from slt_jax.models.tokens import IGNORED_LABEL
from tests.helpers import compiled_programs
from tests.models.references import FIXTURES

KERNEL, KEY, VOCABULARY = slt.sgld(1e-4), jax.random.key(0), 53
GOOD = np.zeros((6, 5), np.int32)
FOREIGN = np.full((6, 5), VOCABULARY, np.int32)


def batches(examples):
    return slt.Batches(examples, 2)


@pytest.fixture(scope="module", params=["attention_only", "llama"])
def posterior(request):
    """Around a model with learned positions, and one with rotary ones."""
    model = from_hf(FIXTURES / request.param, dtype="float32")
    return slt.LocalPosterior(model.loss_fn, model.params, 1.0, 1.0, model.components["l0h0"])


def susceptibilities(posterior, data=GOOD, probe=GOOD, **options):
    probes, components = {"far": probe}, {"l0h0": posterior.restriction}
    own = posterior, KERNEL, batches(data), KEY
    return slt.susceptibilities(*own, components=components, probes=probes, **options)


def observables(posterior, probe=GOOD, **options):
    probes = {"far": probe}
    return slt.susceptibility_observables(posterior, batches(GOOD), probes, 100, **options)


def bif(posterior, data=GOOD, query=GOOD, **options):
    return slt.bif(posterior, KERNEL, batches(data), KEY, query=query, **options)


def loss_kernel(posterior, data=GOOD, **options):
    return slt.loss_kernel(posterior, KERNEL, batches(data), KEY, **options)


def llc(posterior, data=GOOD, **options):
    return slt.llc(posterior, KERNEL, batches(data), KEY, **options)


def refined_llc(posterior, data):
    datasets = {"near": batches(GOOD), "far": batches(data)}
    components = {"l0h0": posterior.restriction}
    return slt.refined_llc(posterior, KERNEL, datasets, KEY, components=components)


def sample(posterior, data=GOOD, probe=GOOD):
    watched = {
        "near": slt.LossValues(probe=slt.Probe(GOOD)),
        "far": slt.LossValues(probe=slt.Probe(probe)),
    }
    return slt.sample(posterior, KERNEL, batches(data), KEY, observables=watched)


# Each puts examples in one place of a call, and the error says in which.
PLACES = {
    "data of susceptibilities": (susceptibilities, "sampling data"),
    "probe": (lambda p, x: susceptibilities(p, probe=x), "probe 'far'"),
    "evaluation": (lambda p, x: susceptibilities(p, evaluation=slt.Probe(x)), "evaluation set"),
    "probe of a run": (lambda p, x: observables(p, x), "probe 'far'"),
    "evaluation of a run": (
        lambda p, x: observables(p, evaluation=slt.Probe(x)),
        "evaluation set",
    ),
    "data of bif": (bif, "sampling data"),
    "query": (lambda p, x: bif(p, query=x), "query"),
    "train": (lambda p, x: bif(p, train=slt.Probe(x)), "train"),
    "data of a loss kernel": (loss_kernel, "sampling data"),
    "examples": (lambda p, x: loss_kernel(p, examples=x), "train"),
    "data of an llc": (llc, "sampling data"),
    "evaluation of an llc": (lambda p, x: llc(p, evaluation=slt.Probe(x)), "evaluation set"),
    "data of a refined llc": (refined_llc, "data set 'far'"),
    "data of a run": (sample, "sampling data"),
    "observable": (lambda p, x: sample(p, probe=x), "far"),
}


@pytest.mark.parametrize(("call", "place"), PLACES.values(), ids=PLACES)
def test_sequences_that_are_too_long(posterior, call, place):
    length = posterior.loss_fn.config.max_length + 1
    message = f"{place}.*(tokens do not fit|are longer than|same kind and length)"
    with compiled_programs() as names, pytest.raises(ValueError, match=message):
        call(posterior, np.zeros((6, length), np.int32))
    assert names == []


@pytest.mark.parametrize(("call", "place"), PLACES.values(), ids=PLACES)
def test_tokens_of_another_vocabulary(posterior, call, place):
    message = rf"{place}.*id 53 \(sequence 0, position 0\) is outside the vocabulary of 53"
    with compiled_programs() as names, pytest.raises(ValueError, match=message):
        call(posterior, FOREIGN)
    assert names == []


def test_labels_of_another_vocabulary(posterior):
    labels = GOOD.copy()
    labels[1, 2] = IGNORED_LABEL
    posterior.loss_fn.check_examples({"input_ids": GOOD, "labels": labels})
    labels[1, 3] = -1
    with pytest.raises(ValueError, match=r"label -1 \(sequence 1, position 3\) is outside"):
        posterior.loss_fn.check_examples({"input_ids": GOOD, "labels": labels})


def longest(name, **changes):
    raw = json.loads((FIXTURES / name / "config.json").read_text())
    return parse_config(json.dumps(raw | changes)).max_length


def test_the_longest_sequence_is_what_the_config_says():
    assert longest("gpt2") == json.loads((FIXTURES / "gpt2/config.json").read_text())["n_positions"]
    assert longest("llama") == 64
    assert longest("llama", max_position_embeddings=None) is None
    assert longest("attention_only", rope_parameters={"rope_type": "default"}) == 40
    # Linear scaling multiplies the number, and every layer has to reach as far; Llama 3's does not.
    assert longest("llama", rope_parameters={"rope_type": "linear", "factor": 4.0}) == 256
    assert longest("gemma3_scaled") == 64
    assert longest("llama3_scaled") == 64
