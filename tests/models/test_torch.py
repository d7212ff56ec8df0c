"""The decoder against torch itself, where both are installed: new weights at every seed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slt_jax.models.hf import from_hf
from slt_jax.models.hf_config import FAMILIES, parse_config
from tests.models.reference_models import MODELS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry.name)
def test_logits_equal_those_of_torch(entry, tmp_path):
    from tests.models.make_reference import as_attention_only, build

    reference = build(entry, seed=1000)
    reference.save_pretrained(tmp_path)
    if entry.attention_only:
        as_attention_only(tmp_path)
    ids = np.random.default_rng(0).integers(0, reference.config.vocab_size, (3, 33))
    with torch.no_grad():
        expected = reference(torch.from_numpy(ids)).logits.numpy()
    model = from_hf(tmp_path)
    assert {leaf.dtype for leaf in model.params.values()} == {np.dtype(np.float32)}
    logits = jax.jit(model.loss_fn.logits)(model.params, jnp.asarray(ids, jnp.int32))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5)


MODERN = {
    "vocab_size": 90,
    "hidden_size": 64,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 8,
}
GPT2 = {"vocab_size": 90, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 16}


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name != "attention_only"])
def test_defaults_are_those_of_the_configuration_class(model_type):
    sizes = dict(GPT2 if model_type == "gpt2" else MODERN) | {"pad_token_id": 0}
    if model_type == "gpt_neox":
        sizes.pop("num_key_value_heads")
    written = transformers.AutoConfig.for_model(model_type, **sizes).to_dict()
    whole = parse_config(json.dumps(written))
    assert parse_config(json.dumps(sizes | {"model_type": model_type})) == whole
