"""Adapters on a frozen base: wherever the base is kept, the adapters sample the same."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax._tree import path_table
from slt_jax.models import from_equinox, from_functions, from_hf, from_nnx
from tests.models.networks import DATA, cross_entropy, one_by_one
from tests.models.references import FIXTURES

nnx = pytest.importorskip("flax.nnx")

RANK = 2
KERNEL, LORA_A, LORA_B = (
    np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    for seed, shape in enumerate([(3, 2), (3, RANK), (RANK, 2)])
)
ADAPTERS = {"lora_a": LORA_A, "lora_b": LORA_B}
PATHS = sorted(ADAPTERS)


def _adapted(kernel, adapters, batch):
    def network(x):
        return x @ kernel + x @ adapters["lora_a"] @ adapters["lora_b"]

    return cross_entropy(network, batch)


def _whole(params, batch):
    return _adapted(params["kernel"], params, batch)


class EquinoxLora(eqx.Module):
    kernel: jax.Array
    lora_a: jax.Array
    lora_b: jax.Array

    def __call__(self, x):
        return x @ self.kernel + x @ self.lora_a @ self.lora_b


def _equinox():
    module = EquinoxLora(*map(jnp.asarray, (KERNEL, LORA_A, LORA_B)))
    moving = eqx.tree_at(lambda tree: tree.kernel, jax.tree.map(lambda leaf: True, module), False)
    return from_equinox(module, one_by_one, filter_spec=moving)


def _nnx():
    base = nnx.Linear(3, 2, use_bias=False, rngs=nnx.Rngs(0))
    module = nnx.LoRA(3, RANK, 2, base_module=base, rngs=nnx.Rngs(1))
    module.base_module.kernel[...] = jnp.asarray(KERNEL)
    module.lora_a[...], module.lora_b[...] = jnp.asarray(LORA_A), jnp.asarray(LORA_B)
    return from_nnx(module, cross_entropy, wrt=nnx.LoRAParam)


def _gradient(model):
    @jax.jit
    def gradient(params):
        return jax.grad(lambda params: jnp.mean(model.loss_fn(params, DATA)))(params)

    return path_table(gradient(model.params))


@pytest.mark.parametrize("make", [_equinox, _nnx], ids=["equinox", "nnx"])
def test_modules_with_a_frozen_base_have_the_gradients_of_plain_functions(make):
    plain = _gradient(from_functions(ADAPTERS, eqx.Partial(_adapted, jnp.asarray(KERNEL))))
    got = _gradient(make())
    assert sorted(got) == PATHS
    for path, leaf in got.items():
        np.testing.assert_allclose(leaf, plain[path], rtol=0, atol=1e-6, err_msg=path)


def _estimate(loss_fn, params, restriction=None):
    posterior = slt.LocalPosterior(loss_fn, params, 10.0, 10.0, restriction)
    run = slt.sample(
        posterior,
        slt.sgld(1e-3),
        slt.Batches(DATA, 8),
        jax.random.key(2),
        num_chains=2,
        num_draws=40,
        num_burnin_steps=10,
        progress=False,
    )
    return slt.llc_from(run, surroundings=False)


def test_learning_coefficient_of_adapters_is_that_of_the_whole_tree_restricted_to_them():
    """The base inside the loss, and the base as weights that do not move."""
    inside = from_functions(ADAPTERS, eqx.Partial(_adapted, jnp.asarray(KERNEL)))
    whole = from_functions({"kernel": KERNEL} | ADAPTERS, _whole)
    restriction = whole.components["lora_*"]
    assert restriction.labels == tuple(PATHS)
    one = _estimate(inside.loss_fn, inside.params)
    other = _estimate(whole.loss_fn, whole.params, restriction)
    assert np.isfinite(one.mean)
    assert one.num_params == other.num_params == 5 * RANK
    assert one.mean == pytest.approx(other.mean, rel=1e-5)
    np.testing.assert_allclose(one.per_chain, other.per_chain, rtol=1e-5)
    # With the base moving as well it is another quantity.
    assert abs(_estimate(whole.loss_fn, whole.params).mean / one.mean - 1) > 0.01


def _adapted_queries(decoder, base, adapters, tokens):
    change = jnp.einsum("ldr,lrhk->ldhk", adapters["lora_a"], adapters["lora_b"])
    queries = base["attn.q"].astype(jnp.float32) + change
    return decoder({**base, "attn.q": queries}, tokens)


def test_adapters_on_a_checkpoint():
    """A bfloat16 base that is never copied, adapters in float32, one program for every base."""
    base = from_hf(FIXTURES / "llama", dtype="bfloat16", compute_dtype="float32")
    layers, width, heads, size = base.params["attn.q"].shape
    generator = np.random.default_rng(0)
    adapters = {
        "lora_a": 0.1 * generator.normal(size=(layers, width, RANK)).astype(np.float32),
        "lora_b": np.zeros((layers, RANK, heads, size), np.float32),
    }
    tokens = jnp.asarray(generator.integers(0, 50, (4, 7)), jnp.int32)
    model = from_functions(adapters, eqx.Partial(_adapted_queries, base.loss_fn, base.params))
    frozen = model.loss_fn.args[1]
    assert all(frozen[path] is leaf for path, leaf in base.params.items())
    losses = eqx.filter_jit(eqx.debug.assert_max_traces(lambda fn, *args: fn(*args), max_traces=1))
    unchanged = losses(model.loss_fn, model.params, tokens)
    np.testing.assert_allclose(unchanged, base.loss_fn(base.params, tokens), rtol=0, atol=1e-5)
    halved = jax.tree.map(lambda leaf: leaf * leaf.dtype.type(0.5), base.params)
    other = eqx.Partial(_adapted_queries, base.loss_fn, halved)
    assert not np.allclose(losses(other, model.params, tokens), unchanged, atol=0.02)
    assert model.components["full"].num_params == sum(leaf.size for leaf in adapters.values())
    assert model.components["lora_a"].labels == ("lora_a",)
