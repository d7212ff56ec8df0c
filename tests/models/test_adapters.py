"""Models of four libraries are the same model, and what cannot be sampled is refused or named."""

import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")

from flax import errors, linen, nnx

import slt_jax as slt
from slt_jax._tree import path_table
from slt_jax.models import (
    Components,
    from_equinox,
    from_functions,
    from_linen,
    from_nnx,
    from_torch,
)
from tests.helpers import unchecked_annotations
from tests.models.networks import (
    DATA,
    INPUTS,
    WEIGHTS,
    LinenNetwork,
    cross_entropy,
    make_models,
    make_nnx,
    one_by_one,
)

KEY = jax.random.key(1)
MODELS = make_models()
LIBRARIES = [name for name in MODELS if name != "plain"]
EXAMPLES = tuple(column[:8] for column in DATA)


def gradients(model, batch=DATA):
    """The gradient of the mean loss by path, in float64."""
    gradient = jax.grad(lambda params: jnp.mean(model.loss_fn(params, batch)))(model.params)
    return {path: np.asarray(leaf, np.float64) for path, leaf in path_table(gradient).items()}


@pytest.mark.parametrize("library", LIBRARIES)
def test_losses_and_first_gradients_are_those_of_plain_functions(library):
    plain, model = MODELS["plain"], MODELS[library]
    expected = plain.loss_fn(plain.params, DATA)
    np.testing.assert_allclose(model.loss_fn(model.params, DATA), expected, atol=1e-6)
    expected, got = gradients(plain), gradients(model)
    assert got.keys() == expected.keys()
    for path, gradient in expected.items():
        np.testing.assert_allclose(got[path], gradient, atol=1e-6, err_msg=path)


@pytest.fixture(scope="module")
def estimates():
    """λ̂ of each version with one key: equal paths, hence the same noise and batches."""
    found = {}
    for name, model in MODELS.items():
        posterior = slt.LocalPosterior(model.loss_fn, model.params, 10.0, 10.0)
        run = slt.sample(
            posterior,
            slt.sgld(1e-3),
            slt.Batches(DATA, 8),
            KEY,
            num_chains=2,
            num_draws=60,
            num_burnin_steps=20,
            progress=False,
        )
        found[name] = slt.llc_from(run, surroundings=False).mean
    return found


@pytest.mark.parametrize("library", LIBRARIES)
def test_learning_coefficients_are_those_of_plain_functions(library, estimates):
    assert np.isfinite(estimates["plain"])
    assert estimates[library] == pytest.approx(estimates["plain"], rel=1e-5)


@pytest.mark.parametrize("library", list(MODELS))
def test_components_are_paths(library):
    components = MODELS[library].components
    assert components["hidden"].num_params == 20
    assert components["*/bias"].num_params == 7
    assert set(components.leaves()) == {f"{a}/{b}" for a in WEIGHTS for b in ("kernel", "bias")}


def test_equinox_layers_keep_their_own_layout():
    layers = {
        name: eqx.tree_at(
            lambda layer: (layer.weight, layer.bias),
            eqx.nn.Linear(*leaves["kernel"].shape, key=KEY),
            (jnp.asarray(leaves["kernel"].T), jnp.asarray(leaves["bias"])),
        )
        for name, leaves in WEIGHTS.items()
    }
    network = eqx.nn.Sequential([layers["hidden"], eqx.nn.Lambda(jnp.tanh), layers["out"]])
    got, expected = gradients(from_equinox(network, one_by_one)), gradients(MODELS["plain"])
    np.testing.assert_allclose(
        got["layers/0/weight"].T, expected["hidden/kernel"], rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(got["layers/2/bias"], expected["out/bias"], rtol=0, atol=1e-6)


def test_what_does_not_move_is_traced_not_baked_in():
    """Other running averages are other arrays of the same program."""
    losses = eqx.filter_jit(eqx.debug.assert_max_traces(_call, max_traces=1))
    values = []
    for shift in (0.0, 1.0):
        variables = _batch_norm_variables()
        variables["batch_stats"] = jax.tree.map(lambda x, s=shift: x + s, variables["batch_stats"])
        model = from_linen(_BATCH_NORM, variables, _evaluated)
        values.append(losses(model.loss_fn, model.params, DATA))
    assert not np.allclose(values[0], values[1])


def _call(loss_fn, params, batch):
    return loss_fn(params, batch)


class ListOfLayers(linen.Module):
    features: list[int]

    @linen.compact
    def __call__(self, x):
        for number, width in enumerate(self.features):
            x = linen.Dense(width, name=f"layer{number}")(x)
        return x


def test_two_models_of_one_linen_module_are_one_program():
    """A list among the fields of the module, which has no hash, does not matter."""
    module = ListOfLayers([4, 2])
    losses = eqx.filter_jit(eqx.debug.assert_max_traces(_call, max_traces=1))
    for seed in (0, 1):
        variables = module.init(jax.random.key(seed), INPUTS)
        model = from_linen(module, variables, cross_entropy)
        assert losses(model.loss_fn, model.params, DATA).shape == (32,)


class BatchNormNetwork(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        x = linen.BatchNorm(use_running_average=not train, name="norm")(x)
        return linen.Dense(2, name="out")(x)


class DropoutNetwork(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        return linen.Dense(2, name="out")(linen.Dropout(0.5, deterministic=not train)(x))


_BATCH_NORM = BatchNormNetwork()


def _batch_norm_variables():
    return _BATCH_NORM.init(KEY, INPUTS)


def _evaluated(network, batch):
    return cross_entropy(network, batch)


def _trained_batch_norm(network, batch):
    return cross_entropy(lambda x: network(x, train=True, mutable=["batch_stats"])[0], batch)


def _trained(network, batch):
    return cross_entropy(lambda x: network(x, train=True), batch)


def _masked(network, batch):
    rngs = {"dropout": jax.random.key(0)}
    return cross_entropy(lambda x: network(x, train=True, rngs=rngs), batch)


def test_linen_batch_normalisation_uses_running_averages():
    variables = _batch_norm_variables()
    model = from_linen(_BATCH_NORM, variables, _evaluated, examples=EXAMPLES)
    assert sorted(model.components.leaves()) == [
        "norm/bias",
        "norm/scale",
        "out/bias",
        "out/kernel",
    ]
    with pytest.raises(ValueError, match="depends on the other examples"):
        from_linen(_BATCH_NORM, variables, _trained_batch_norm, examples=EXAMPLES)
    forgotten = {"params": variables["params"]}
    with pytest.raises(errors.ScopeCollectionNotFound):
        from_linen(_BATCH_NORM, forgotten, _evaluated, examples=EXAMPLES)


def test_linen_dropout_is_caught():
    module = DropoutNetwork()
    variables = module.init(KEY, INPUTS)
    with pytest.raises(errors.InvalidRngError):
        from_linen(module, variables, _trained, examples=EXAMPLES)
    with pytest.raises(ValueError, match="put the model in evaluation mode"):
        from_linen(module, variables, _masked, examples=EXAMPLES)


def test_linen_boxes_are_opened_and_name_the_axes():
    kernel = linen.with_partitioning(linen.initializers.lecun_normal(), ("embed", None))
    module = linen.Dense(2, kernel_init=kernel)
    model = from_linen(module, module.init(KEY, INPUTS), cross_entropy)
    assert model.axes == {"kernel": "embed _"}
    assert sorted(model.components.leaves()) == ["bias", "kernel"]
    assert model.loss_fn(model.params, DATA).shape == (32,)


class NnxBatchNorm(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.buffer = nnx.Variable(jnp.ones(2))

    def __call__(self, x):
        x = self.dropout(self.norm(self.layers[0](x)))
        return self.layers[1](x) * self.buffer


def _in_training(network, batch):
    network.train()
    network.norm.use_running_average = True
    return cross_entropy(network, batch)


def _batch_norm_in_training(network, batch):
    network.norm.use_running_average = False
    return cross_entropy(network, batch)


def test_nnx_keeps_buffers_and_keys_out_and_the_module_as_it_is():
    module = NnxBatchNorm()
    model = from_nnx(module, cross_entropy, examples=EXAMPLES)
    leaves = [f"layers/{i}/{name}" for i in (0, 1) for name in ("bias", "kernel")]
    assert sorted(model.components.leaves()) == [*leaves, "norm/bias", "norm/scale"]
    assert not module.dropout.deterministic
    assert not module.norm.use_running_average
    assert model.params["norm"]["scale"] is module.norm.scale.get_raw_value()
    with pytest.raises(ValueError, match="put the model in evaluation mode"):
        from_nnx(module, _in_training, examples=EXAMPLES)
    with pytest.raises(ValueError, match="depends on the other examples"):
        from_nnx(module, _batch_norm_in_training, examples=EXAMPLES)
    with pytest.raises(TypeError, match=r"'dropout/rngs/count' has dtype uint32"):
        from_nnx(module, cross_entropy, wrt=nnx.Variable)
    with pytest.raises(TypeError, match=r"'dropout/rngs/key' is a PRNG key"):
        from_nnx(module, cross_entropy, wrt=nnx.Any(nnx.Param, nnx.RngKey))


def test_nnx_base_stays_frozen_when_only_its_adapters_move():
    base = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    module = nnx.LoRA(3, 1, 2, base_module=base, rngs=nnx.Rngs(1))
    adapters = from_nnx(module, cross_entropy, wrt=nnx.LoRAParam)
    assert sorted(adapters.components.leaves()) == ["lora_a", "lora_b"]
    assert "base_module/kernel" in from_nnx(module, cross_entropy).components.leaves()
    np.testing.assert_allclose(
        adapters.loss_fn(adapters.params, DATA), cross_entropy(module, DATA), atol=1e-6
    )


class NnxTied(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(3, 3, use_bias=False, rngs=nnx.Rngs(0))
        self.second = nnx.Linear(3, 3, use_bias=False, rngs=nnx.Rngs(1))
        self.second.kernel = self.first.kernel


def test_tied_weights_are_one_leaf_or_warned_about():
    model = from_nnx(NnxTied(), cross_entropy)
    assert list(model.components.leaves()) == ["first/kernel"]
    linear = eqx.nn.Linear(3, 3, use_bias=False, key=KEY)
    twice = eqx.nn.Sequential([linear, linear])
    with pytest.warns(UserWarning, match="'layers/0/weight' and 'layers/1/weight' hold the same"):
        from_equinox(twice, one_by_one)
    shared = eqx.nn.Shared(twice, lambda s: s.layers[1].weight, lambda s: s.layers[0].weight)
    assert len(from_equinox(shared, one_by_one).components.leaves()) == 1
    kernel = np.asarray(jax.random.normal(KEY, (3, 4)))
    with pytest.warns(UserWarning, match="'embed' and 'head' hold the same"):
        from_functions({"embed": kernel, "head": kernel.T.copy()}, cross_entropy)


class EquinoxDropout(eqx.Module):
    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    counts: jax.Array
    mask: jax.Array
    table: jax.Array

    def __call__(self, x):
        x = jnp.where(self.mask, x, jnp.zeros_like(x)) + jax.lax.stop_gradient(self.table)
        return self.linear(self.dropout(x))


def test_equinox_is_put_in_inference_mode_and_buffers_are_named():
    linear, dropout = eqx.nn.Linear(3, 2, key=KEY), eqx.nn.Dropout(0.5)
    module = EquinoxDropout(linear, dropout, jnp.arange(3), jnp.ones(3, bool), jnp.ones(3))
    model = from_equinox(module, one_by_one)
    assert sorted(model.components.leaves()) == ["linear/bias", "linear/weight", "table"]
    with (
        pytest.warns(UserWarning, match="no loss depends on 'table'"),
        pytest.raises(ValueError, match="does not follow its own gradient"),
    ):
        model.check(EXAMPLES)
    moving = jax.tree.map(eqx.is_inexact_array, module)
    moving = eqx.tree_at(lambda tree: tree.table, moving, False)
    model = from_equinox(module, one_by_one, filter_spec=moving, examples=EXAMPLES)
    assert sorted(model.components.leaves()) == ["linear/bias", "linear/weight"]


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (jnp.arange(3), "has dtype int32"),
        (jax.random.key(0), "is a PRNG key"),
        (1.0, "is not an array: got float"),
        (jnp.ones(2, jnp.complex64), "has dtype complex64"),
    ],
)
def test_leaves_that_cannot_be_sampled_are_refused(leaf, message):
    with pytest.raises(TypeError, match=f"params leaf 'odd' {message}"):
        from_functions({"w": jnp.ones(3), "odd": leaf}, cross_entropy)


def test_arguments_that_are_no_models_are_refused():
    with pytest.raises(TypeError, match="no leaves"):
        from_functions({}, cross_entropy)
    with unchecked_annotations(), pytest.raises(TypeError, match="loss_fn must be callable"):
        from_functions(WEIGHTS, 3.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"flax\.linen\.Module"):
        from_linen(make_nnx(), {}, cross_entropy)
    with pytest.raises(ValueError, match="collection 'params', got \\['hidden', 'out'\\]"):
        from_linen(LinenNetwork(), WEIGHTS, cross_entropy)
    with pytest.raises(TypeError, match=r"flax\.nnx\.Module"):
        from_nnx(LinenNetwork(), cross_entropy)


def test_a_perfect_fit_is_no_buffer():
    data = (np.eye(4, 3, dtype=np.float32), np.zeros(4, np.float32))

    def loss(params, batch):
        inputs, targets = batch
        return (inputs @ (params["b"] * params["a"]) - targets) ** 2

    params = {"a": np.ones(3, np.float32), "b": np.zeros(3, np.float32)}
    from_functions(params, loss, examples=data)


def test_components_may_be_given():
    mine = Components(WEIGHTS, named={"half": slt.Restriction.from_paths(WEIGHTS, ["hidden/*"])})
    loss_fn = MODELS["plain"].loss_fn
    assert from_functions(WEIGHTS, loss_fn, components=mine).components is mine
    named = from_functions(WEIGHTS, loss_fn, components=mine.named)
    assert named.components["half"].num_params == 20
    abstract = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, WEIGHTS))
    axes = {"hidden/kernel": "l d"}
    assert from_functions(abstract, loss_fn, axes).components["l2"].num_params == 5


def test_no_library_is_imported_before_it_is_needed(monkeypatch):
    code = "import sys, slt_jax.models; assert not {'flax', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"torch and torchax: pip install 'slt-jax\[to"):
        from_torch(None, cross_entropy)
