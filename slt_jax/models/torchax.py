"""Models written in PyTorch, run in JAX by torchax: experimental, for what nothing else reads."""

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax

from slt_jax._tree import on_device
from slt_jax._types import Examples, Params
from slt_jax.models.base import Model, from_functions
from slt_jax.models.components import Components
from slt_jax.restriction import Restriction


def from_torch(
    module: Any,
    loss: Callable[[Any, Any], Any],
    *,
    axes: Mapping[str, str] | None = None,
    components: Components | Mapping[str, Restriction] | None = None,
    examples: Examples | None = None,
) -> Model:
    """Make a model of a PyTorch module, as torchax translates it to JAX. Experimental.

    For architectures that ``from_hf`` does not know. Every layer is compiled on its own and nothing
    is sharded, so that it suits models of up to one or two billion weights. The parameters that
    require a gradient may move, under the module's own names; frozen ones and buffers stay as they
    are, inside the loss. A parameter used twice is one leaf. Compile the loss: torchax does not
    have all operations otherwise. Indices out of range are not caught.

    Args:
        module: the trained ``torch.nn.Module``, in evaluation mode. It is kept, with its weights.
        loss: ``loss(network, batch) -> [batch, *pos]``, float32 nats, not reduced, in JAX;
            ``network(x, …)`` is ``module(x, …)`` with the weights of the chain, on JAX arrays.
        axes: path → names of the axes, as for ``from_functions``.
        components: as for ``from_functions``.
        examples: a few examples on which to run ``Model.check``; None leaves that out.

    Raises:
        ImportError: torch or torchax is not installed.
        TypeError, ValueError: a module in training mode, or one that cannot be sampled.
    """
    torchax = _torchax()
    torch = importlib.import_module("torch")
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    training = [name or "the module" for name, part in module.named_modules() if part.training]
    if training:
        raise ValueError(
            f"{training[0]} is in training mode, where dropout and batch normalisation make the "
            "loss another function at every call: call module.eval() first"
        )
    whole = importlib.import_module("torchax.interop").JittableModule(module)
    moving, rest = torchax.default_env().t2j_copy((dict(whole.params), dict(whole.buffers)))
    loss_fn = eqx.Partial(_loss_of_weights, loss, whole.functional_call, rest)
    return from_functions(moving, loss_fn, axes, components, examples)


def _loss_of_weights(loss: Any, functional_call: Any, rest: Any, params: Params, batch: Any) -> Any:
    environment = _torchax().default_env()

    def network(*arguments: Any, **keywords: Any) -> Any:
        arrays = on_device((dict(params), dict(rest), arguments, keywords))
        weights, fixed, arguments, keywords = environment.j2t_iso(arrays)
        # torch mixes dtypes by rules of its own, which torchax follows.
        with environment, jax.numpy_dtype_promotion("standard"):
            outputs = functional_call("forward", weights, fixed, *arguments, **keywords)
        return environment.t2j_iso(outputs)

    return loss(network, batch)


def _torchax() -> Any:
    missing = [name for name in ("torch", "torchax") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"from_torch needs {' and '.join(missing)}: pip install 'slt-jax[torch]'"
        )
    with _overloads_of_named_tensors():
        torchax = importlib.import_module("torchax")
        torchax.default_env()
    return torchax


@contextlib.contextmanager
def _overloads_of_named_tensors() -> Iterator[None]:
    """Let torchax list operations on named tensors that torch no longer has.

    torchax 0.0.13 builds tables of operations when it is imported, and fails at the first one that
    torch 2.13 has removed. An entry for an operation that nothing can call has no effect, whatever
    stands for it.
    """
    packet = importlib.import_module("torch._ops").OpOverloadPacket
    original = packet.__getattr__

    def find(self: Any, name: str) -> Any:
        try:
            return original(self, name)
        except AttributeError:
            if "dimname" in name.lower() or "names" in name.split("_"):
                return (str(self), name)
            raise

    packet.__getattr__ = find
    try:
        yield
    finally:
        packet.__getattr__ = original
