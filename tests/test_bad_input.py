"""What cannot be sampled is refused with a message that helps, before the sampler is compiled.

What data sets, restrictions, posteriors and probes refuse by themselves is tested beside them; here
it is what only shows when they are put together. Every loss is a function of its own, so that a
program compiled before cannot hide one that should not have been compiled.
"""

import contextlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.validation import check_loss
from tests.helpers import (
    BATCHES,
    DATA,
    KERNEL,
    KEY,
    NUM_EXAMPLES,
    PARAMS,
    POSTERIOR,
    compiled_programs,
    head,
    make_posterior,
    network_loss,
    unchecked_annotations,
)

LARGE = np.ones((600, 600), np.float32)


@contextlib.contextmanager
def refused(error, message, programs=()):
    """Expect an error with a message, and no programs compiled but those named."""
    with compiled_programs() as names, unchecked_annotations(), pytest.raises(error, match=message):
        yield
    assert set(names) <= {f"jit({name})" for name in programs}


def fresh_loss():
    """The network's loss as a function for which nothing was ever compiled."""

    def loss(params, batch):
        return network_loss(params, batch)

    return loss


def try_sampling(
    posterior=None, kernel=KERNEL, batches=BATCHES, key=KEY, estimate=False, **options
):
    posterior = make_posterior(fresh_loss()) if posterior is None else posterior
    call = slt.llc if estimate else slt.sample
    return call(posterior, kernel, batches, key, **({"progress": False} | options))


# -- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (jnp.mean, ValueError, r"unreduced losses \[batch, \*pos\].*got shape \(\).*the mean"),
        (lambda x: x[None], ValueError, r"with batch = 8, got shape \(1, 8\)"),
        (lambda x: x[:4], ValueError, r"with batch = 8, got shape \(4,\)"),
        (lambda x: (x, x), TypeError, r"one array \[batch, \*pos\] or slt.Losses, got tuple"),
        (lambda x: {"loss": x}, TypeError, "or slt.Losses, got dict"),
        (lambda x: x.astype(jnp.bfloat16), TypeError, "float32 nats, got bfloat16"),
        (lambda x: x.astype(jnp.int32), TypeError, "float32 nats, got int32"),
        (lambda x: x > 0, TypeError, "float32 nats, got bool"),
        (lambda x: slt.Losses(x, jnp.ones(3)), ValueError, r"weights \(3,\) do not fit"),
        (lambda x: slt.Losses(x, jnp.ones((8, 2))), ValueError, r"weights \(8, 2\) do not fit"),
    ],
    ids=[
        "scalar",
        "leading axis",
        "too few",
        "tuple",
        "dict",
        "bfloat16",
        "int32",
        "bool",
        "weights",
        "weight positions",
    ],
)
@pytest.mark.parametrize("estimate", [False, True], ids=["sample", "llc"])
def test_what_a_loss_returns(change, error, message, estimate):
    def loss(params, batch):
        return change(network_loss(params, batch))

    with refused(error, message):
        try_sampling(make_posterior(loss), estimate=estimate)


def test_weights_must_fit_the_losses():
    batches = slt.Batches(DATA, 8, weights=np.ones((NUM_EXAMPLES, 5), np.float32))
    with refused(ValueError, r"weights of a batch have shape \(8, 5\).*losses \(8,\)"):
        try_sampling(batches=batches)


def test_a_loss_that_is_not_finite_is_found_by_the_survey():
    inputs = DATA[0].copy()
    inputs[40, 1] = np.nan
    with refused(ValueError, r"not finite for example 40", programs=["_add"]):
        try_sampling(batches=slt.Batches((inputs, DATA[1]), 8))


def _numpy_capture(params, batch):
    return network_loss(params, batch) + LARGE[0, 0] * jnp.asarray(LARGE)[1, 1]


LARGE_ON_DEVICE = jax.device_put(LARGE)


def _jax_capture(params, batch):
    return network_loss(params, batch) + LARGE_ON_DEVICE[0, 0]


def _capture_in_jit(params, batch):
    return jax.jit(lambda x: x + LARGE_ON_DEVICE[0, 0])(network_loss(params, batch))


def _capture_in_scan(params, batch):
    def body(carry, _):
        return carry + LARGE_ON_DEVICE[0, 0], None

    return jax.lax.scan(body, network_loss(params, batch), None, length=2)[0]


def _capture_in_remat(params, batch):
    return jax.checkpoint(lambda x: x * LARGE_ON_DEVICE[0, 0])(network_loss(params, batch))


def _capture_in_cond(params, batch):
    losses = network_loss(params, batch)
    return jax.lax.cond(losses[0] > 0, lambda x: x + LARGE_ON_DEVICE[0, 0], lambda x: x, losses)


@pytest.mark.parametrize(
    "loss",
    [
        _numpy_capture,
        _jax_capture,
        _capture_in_jit,
        _capture_in_scan,
        _capture_in_remat,
        _capture_in_cond,
    ],
)
def test_large_arrays_in_a_closure(loss):
    with refused(ValueError, r"over 1 MB.*float32\[600, 600\].*equinox.Partial\(loss, arrays\)"):
        try_sampling(make_posterior(loss))


def test_large_arrays_passed_as_the_message_says_are_accepted():
    def loss(arrays, params, batch):
        return network_loss(params, batch) + 0.0 * arrays[0, 0]

    check_loss(make_posterior(eqx.Partial(loss, LARGE)), BATCHES)


# -- weights and restrictions --------------------------------------------------------------------


def test_leaves_that_are_no_weights():
    for leaf in (np.arange(3), jax.random.key(0)):
        with refused(TypeError, "only floating-point weights can be sampled.*equinox.Partial"):
            try_sampling(make_posterior(params=PARAMS | {"buffer": leaf}))


def test_weights_that_are_not_finite():
    with refused(ValueError, "leaf 'output' has 12 non-finite entries"):
        try_sampling(make_posterior(params=PARAMS | {"output": np.full(12, np.nan, np.float32)}))


def test_restrictions_that_do_not_fit():
    with refused(ValueError, "unknown path 'mlp'"):
        try_sampling(POSTERIOR.restrict(slt.Restriction([slt.Block("mlp", (3,))])))
    with refused(ValueError, "overlap"):
        try_sampling(POSTERIOR.restrict(slt.Restriction([*head(0).blocks, *head(0).blocks])))
    with refused(ValueError, "unknown path 'mlp'"):
        block = slt.Block("mlp", (3,))
        try_sampling(components={"one": slt.Restriction([block])})


# -- data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: slt.Batches((DATA[0][:0], DATA[1][:0]), 8), ValueError, "empty"),
        (lambda: slt.Batches((DATA[0], DATA[1][:5]), 8), ValueError, "ragged"),
        (lambda: slt.Batches(DATA, NUM_EXAMPLES + 1), ValueError, "between 1 and the 64 examples"),
        (lambda: slt.Batches([[1.0, 2.0], [3.0]], 1), ValueError, "example 1 has .* pad them"),
        (lambda: slt.Batches(["to be", "or not"], 1), TypeError, "tokenize text"),
        (lambda: slt.Batches(DATA, 2.5), TypeError, "batch_size must be an integer"),  # pyright: ignore
        (lambda: slt.Batches((row for row in DATA[0]), 8), TypeError, "read only once"),
    ],
    ids=[
        "empty",
        "ragged",
        "ragged rows",
        "text",
        "batch too large",
        "fractional batch",
        "generator",
    ],
)
def test_data(make, error, message):
    with refused(error, message):
        try_sampling(batches=make())


class Fetched:
    """Rows that are read one by one, the last of which is short."""

    def __len__(self):
        return NUM_EXAMPLES

    def __getitem__(self, number):
        inputs, targets = (column[number] for column in DATA)
        return inputs[: 2 if number == NUM_EXAMPLES - 1 else None], targets


def test_ragged_rows_are_found_by_the_survey():
    with refused(ValueError, r"example 63 has .*pad them", programs=["_add"]):
        try_sampling(batches=slt.Batches(Fetched(), 8))


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_chains": 0}, ValueError, "num_chains must be at least 1, got 0"),
        ({"num_draws": -1}, ValueError, "num_draws must be at least 1, got -1"),
        ({"num_draws": 0}, ValueError, "num_draws must be at least 1, got 0"),
        ({"num_draws": 1e3}, TypeError, "num_draws must be an integer, got 1000.0"),
        ({"num_burnin_steps": -5}, ValueError, "num_burnin_steps must be at least 0"),
        ({"num_steps_bw_draws": 0}, ValueError, "num_steps_bw_draws must be at least 1"),
        ({"num_chains": True}, TypeError, "num_chains must be an integer"),
        ({"num_draws": 2**31}, ValueError, "do not fit a 32-bit step counter"),
        ({"num_chain": 3}, TypeError, r"unknown options \['num_chain'\].*num_chains"),
        ({"survey_examples": 0}, ValueError, "survey_examples must be at least 1"),
    ],
)
@pytest.mark.parametrize("estimate", [False, True], ids=["sample", "llc"])
def test_options(options, error, message, estimate):
    with refused(error, message):
        try_sampling(estimate=estimate, **options)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_settings_of_the_posterior(value):
    for name in ("n_beta", "localization"):
        with refused(ValueError, f"{name} must be finite and at least 0"):
            try_sampling(make_posterior(fresh_loss(), **{name: value}))


@pytest.mark.parametrize("value", [-1e-3, 0.0, np.nan, np.inf])
def test_step_sizes(value):
    makers = (slt.sgld, lambda size: slt.sghmc(size, 1.0), slt.sgnht, slt.mala, slt.hmc, slt.nuts)
    for make in makers:
        with refused(ValueError, "step_size must be positive and finite"):
            try_sampling(kernel=make(value))


SETTINGS = {
    "n_beta": lambda value: make_posterior(n_beta=value),
    "localization": lambda value: make_posterior(localization=value),
    "weight_decay": lambda value: make_posterior(weight_decay=value),
    "bounding_box": lambda value: make_posterior(bounding_box=value),
    "step_size": slt.sgld,
    "friction": lambda value: slt.sghmc(1e-3, value),
    "diffusion": lambda value: slt.sgnht(1e-3, value),
    "thermostat_mass": lambda value: slt.sgnht(1e-3, 1.0, value),
    "decay": slt.rms,
    "eps": lambda value: slt.adam(eps=value),
    "initial": lambda value: slt.rms(initial=value),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_one_number(name):
    for several in (np.ones(4, np.float32), [1.0, 2.0], jax.device_put(np.ones((1, 1)))):
        message = f"{name} must be one number, got an array of shape .* one call per value"
        with refused(ValueError, message):
            SETTINGS[name](several)
    with refused(TypeError, f"{name} must be a number, got 'high'"):
        SETTINGS[name]("high")


def test_several_settings_under_vmap_are_one_in_each():
    sizes = np.asarray([1e-3, 2e-3], np.float32)
    assert jax.vmap(lambda size: slt.sgld(size).step_size)(sizes).shape == (2,)


# -- keys and the order of arguments -------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: jax.random.PRNGKey(0), TypeError, r"typed key, as from jax.random.key\(0\)"),
        (lambda: jax.random.key(0, impl="rbg"), ValueError, "threefry.*every chain the same"),
        (lambda: jax.random.key(0, impl="unsafe_rbg"), ValueError, "threefry generator"),
        (lambda: jax.random.split(KEY, 3), ValueError, r"single key, .* of shape \(3,\)"),
        (lambda: 0, TypeError, "typed key.*got int"),
        (lambda: None, TypeError, "typed key.*got NoneType"),
    ],
    ids=["legacy", "rbg", "unsafe rbg", "several", "seed", "none"],
)
@pytest.mark.parametrize("rows", ["vmap", "map"])
def test_keys(make, error, message, rows):
    key = make()
    with refused(error, message):
        try_sampling(key=key, execution=slt.Execution(rows=rows))


@pytest.mark.parametrize("estimate", [False, True], ids=["sample", "llc"])
def test_arguments_in_the_wrong_order(estimate):
    with refused(TypeError, "batches and key are swapped.*posterior, kernel, batches, key"):
        try_sampling(batches=KEY, key=BATCHES, estimate=estimate)
    with refused(TypeError, "posterior must be an slt.LocalPosterior, got Sgld"):
        try_sampling(posterior=KERNEL, kernel=POSTERIOR, estimate=estimate)
    with refused(TypeError, "kernel must be a kernel such as slt.sgld.*got function"):
        try_sampling(kernel=slt.sgld, estimate=estimate)
    with refused(TypeError, r"batches must be an slt.Batches, got ndarray of shape \(64, 3\)"):
        try_sampling(batches=DATA[0], estimate=estimate)
