"""PyTorch modules through torchax: the losses and gradients of torch itself."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.models import from_torch

torch = pytest.importorskip("torch")
if importlib.util.find_spec("torchax") is None:
    pytest.skip("needs torchax: slt-jax[torch]", allow_module_level=True)
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default")]

INPUTS = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
TARGETS = np.random.default_rng(1).integers(0, 3, 16).astype(np.int32)
DATA = (INPUTS, TARGETS)


def cross_entropy(network, batch):
    inputs, targets = batch
    scores = jax.nn.log_softmax(network(inputs))
    return -jnp.take_along_axis(scores, targets[:, None], axis=1)[:, 0]


def make_module():
    """A network with a tied and a frozen weight, a buffer, running averages and dropout."""

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
            self.second.weight = self.first.weight
            self.norm, self.dropout = torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.5)
            self.out = torch.nn.Linear(6, 3)
            self.out.bias.requires_grad_(False)
            self.register_buffer("scale", torch.linspace(0.5, 2, 6))

        def forward(self, x):
            x = torch.nn.functional.gelu(self.first(x)) * self.scale
            return self.out(self.dropout(self.norm(torch.tanh(self.second(x)))))

    torch.manual_seed(0)
    return Network()


def test_losses_and_gradients_are_those_of_torch():
    module = make_module().eval()
    model = from_torch(module, cross_entropy, examples=DATA)
    assert sorted(model.components.leaves()) == [
        *("first.bias", "first.weight", "norm.bias", "norm.weight", "out.weight"),
        "second.bias",
    ]
    targets = torch.from_numpy(TARGETS.astype(np.int64))
    expected = torch.nn.functional.cross_entropy(
        module(torch.from_numpy(INPUTS)), targets, reduction="none"
    )
    expected.mean().backward()

    def mean_loss(params):
        losses = model.loss_fn(params, DATA)
        return losses.mean(), losses

    gradient, losses = jax.jit(jax.grad(mean_loss, has_aux=True))(model.params)
    np.testing.assert_allclose(losses, expected.detach().numpy(), rtol=0, atol=1e-6)
    parameters = dict(module.named_parameters())
    for name, leaf in gradient.items():
        torch_gradient = parameters[name].grad.numpy()
        assert np.any(torch_gradient)
        np.testing.assert_allclose(leaf, torch_gradient, rtol=0, atol=1e-6, err_msg=name)


def test_it_is_sampled():
    model = from_torch(make_module().eval(), cross_entropy)
    posterior = slt.LocalPosterior(model.loss_fn, model.params, 5.0, 10.0)
    run = slt.sample(
        posterior.restrict(model.components["out.*"]),
        slt.sgld(1e-3),
        slt.Batches(DATA, 8),
        jax.random.key(0),
        num_chains=2,
        num_draws=8,
        num_burnin_steps=0,
        progress=False,
    )
    assert np.isfinite(run.traces["gap"]).all()
    assert run.traces["distance"].min() > 0


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"training mode.*module\.eval\(\)"):
        from_torch(make_module(), cross_entropy)
    module = make_module().eval()
    module.dropout.train()
    with pytest.raises(ValueError, match="dropout is in training mode"):
        from_torch(module, cross_entropy)
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got int"):
        from_torch(3, cross_entropy)


@pytest.mark.parametrize("name", ["opt", "bloom"])
def test_an_architecture_that_from_hf_does_not_know(name):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "opt": {"ffn_dim": 16, "word_embed_proj_dim": 8, "max_position_embeddings": 16},
        "bloom": {"n_head": 2, "n_layer": 2},
    }[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        name,
        vocab_size=17,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        attn_implementation="eager",
        **sizes,
    )
    module = transformers.AutoModelForCausalLM.from_config(config).eval()
    ids = np.random.default_rng(0).integers(3, 17, (3, 7)).astype(np.int32)

    def loss(network, ids):
        scores = jax.nn.log_softmax(network(ids).logits[:, :-1])
        return -jnp.take_along_axis(scores, ids[:, 1:, None], axis=-1)[..., 0]

    model = from_torch(module, loss)
    with torch.no_grad():
        logits = module(torch.from_numpy(ids.astype(np.int64))).logits
    scores = torch.log_softmax(logits[:, :-1], dim=-1).numpy()
    expected = -np.take_along_axis(scores, ids[:, 1:, None].astype(np.int64), axis=-1)[..., 0]
    losses = jax.jit(lambda params: model.loss_fn(params, ids))(model.params)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=2e-5)
