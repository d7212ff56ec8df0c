"""Sample stores of devinterp 2: what its ``sample`` writes, as plain arrays."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slt_jax.persistence import StoreIncomplete, StoreMismatch
from slt_jax.storage.files import require

_STEPS = "sampling_loss_micro"


class Samples(NamedTuple):
    """A sample store.

    ``settings`` are those of devinterp's sampler, under its names. ``init_loss`` is the mean of
    what it measured at w*, and ``step_loss`` ``[chain, step]`` the mean loss of every step's
    minibatch before the step, burn-in included, both in nats per token; NaN where a chain had died.
    ``losses`` ``[chain, draw, example, position]`` are those on the probes, after the step, and
    ``input_ids`` ``[example, token]`` the probes. ``sampled_ids`` are the sequences that occur in
    minibatches, each once.
    """

    settings: dict[str, Any]
    init_loss: float
    step_loss: np.ndarray
    losses: dict[str, np.ndarray]
    input_ids: dict[str, np.ndarray]
    sampled_ids: np.ndarray


def read_samples(path: Path, probes: Sequence[str] | None = None) -> Samples:
    """Read a sample store of devinterp 2.

    Args:
        path: its ``output_path``.
        probes: whose losses to read, by the names of the observables; None for all.

    Raises:
        StoreMismatch: it is none, or has no such probe.
        StoreIncomplete: devinterp did not come to its end.
    """
    require("zarr")
    import xarray

    if not (path / "zarr.json").is_file():
        raise StoreMismatch(f"there is no sample store of devinterp at {path}: no zarr.json")
    with xarray.open_datatree(path, engine="zarr", consolidated=False) as tree:
        data = tree.to_dataset()
        if _STEPS not in data:
            raise StoreMismatch(f"{path} is not a sample store of devinterp 2: it lacks {_STEPS!r}")
        settings = data.attrs["metadata"]["config"]["sampler"]
        if data.attrs.get("completed") != 1:
            raise StoreIncomplete(
                f"devinterp did not complete the sample store {path}: sample again"
            )
        names = _names(data, probes, path)
        return Samples(
            settings,
            float(data["init_loss"].values.mean()),
            # Chain by chain: these arrays hold every token of every step.
            np.stack([_mean(chain) for chain in data[_STEPS]]),
            {name: data[f"loss_{name}"].values for name in names},
            {name: data[f"input_ids_{name}"].values for name in names},
            _distinct(data["sampling_input_ids_micro"], settings),
        )


def _names(data: Any, probes: Sequence[str] | None, path: Path) -> list[str]:
    # In the order in which they were asked for; that of the variables is the file system's.
    there = [str(one["obs_id"]) for one in data.attrs["metadata"]["config"]["observables"]]
    # As devinterp names its variables.
    asked = there if probes is None else [identifier(name) for name in probes]
    missing = [name for name in asked if name not in there]
    if missing:
        raise StoreMismatch(f"the sample store {path} has the probes {there}, not {missing}")
    return list(dict.fromkeys(asked))


def identifier(name: str) -> str:
    """Give the name under which devinterp keeps an observable."""
    kept = "".join(letter if letter.isalnum() or letter == "_" else "_" for letter in name) or "_"
    return f"_{kept}" if kept[0].isdigit() else kept


def _mean(losses: Any) -> np.ndarray:
    """Give the mean over batch and positions of losses ``[step, batch, position]``."""
    return losses.values.mean(axis=(1, 2), dtype=np.float64)


def _distinct(ids: Any, settings: dict[str, Any]) -> np.ndarray:
    # Where chains share their minibatches, one chain has seen what all have.
    shared = settings["match_sampling_input_ids_across_chains"]
    seen = [
        np.unique(chain.values.reshape(-1, chain.shape[-1]), axis=0)
        for chain in (ids[:1] if shared else ids)
    ]
    return np.unique(np.concatenate(seen), axis=0)
