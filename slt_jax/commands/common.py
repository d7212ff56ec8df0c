"""What the subcommands share that sample around a checkpoint: its options, model, data, kernel."""

import argparse
import contextlib
import functools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

import slt_jax as slt
from slt_jax.commands.tokens import Limits, load_tokenizer, load_tokens
from slt_jax.models import Model, hub
from slt_jax.models.decoder import Decoder

_PRECONDITIONERS = {"identity": slt.identity, "rms": slt.rms, "adam": slt.adam}
_KINDS = "token ids as .npy or .npz [n, pos] or .jsonl with input_ids; or .txt, tokenized by the"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say which model, which data, and where more options are."""
    add = parser.add_argument
    # Read before the others, by ``commands.config``: it stands here for the help.
    add("--config", metavar="FILE", help="options from a .toml or .yaml file; typed ones win")
    add("--model", required=True, metavar="PATH", help="checkpoint folder or hub id, as from_hf")
    add("--revision", help="branch, tag or commit of a hub id")
    add("--dtype", help="dtype in which the weights are kept (default: that of the files)")
    add("--data", required=True, type=Path, metavar="FILE", help=f"{_KINDS} model's tokenizer")
    add("--sequence-length", type=count, metavar="N", help="cut sequences to N tokens")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the posterior, the kernel and the chains."""
    add = functools.partial(parser.add_argument, metavar="X")
    add("--n-beta", type=float, help="nβ, dimensionless (default: n / log n for n sequences)")
    add("--localization", type=float, default=100.0, help="γ, 1/weight² (default: %(default)s)")
    add("--step-size", type=float, default=1e-4, help="ε of SGLD (default: %(default)s)")
    parser.add_argument(
        "--preconditioner",
        choices=_PRECONDITIONERS,
        default="identity",
        help="of SGLD (default: %(default)s)",
    )
    add = functools.partial(parser.add_argument, metavar="N", type=count)
    add("--chains", default=4, help="chains per component (default: %(default)s)")
    add("--draws", default=500, help="draws per chain (default: %(default)s)")
    add("--steps-between-draws", default=1, help="steps per draw (default: %(default)s)")
    add("--batch-size", help="sequences per step (default: 32, or all if there are fewer)")
    add("--devices", default=1, help="spread the chains over N devices (default: %(default)s)")
    add("--burn-in", type=int, default=200, help="steps before the draws (default: %(default)s)")
    add("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show a progress bar",
    )


def add_result_arguments(parser: argparse.ArgumentParser, formats: str = ".nc (NetCDF)") -> None:
    """Declare where the runs are kept and the results are written, in which formats."""
    add = parser.add_argument
    add("--store", type=Path, metavar="DIR", help="keep the run here; the same command goes on")
    add("--out", type=Path, metavar="FILE", help=f"write the results, as {formats}")


def split_processor(devices: int) -> None:
    """Let JAX see the processor as so many devices, unless it is in use already."""
    if devices > 1:
        # Where it is, a layout is checked against the devices that there are.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", devices)


def load_model(arguments: argparse.Namespace) -> Model:
    """Load the checkpoint that the options name, after splitting the processor if asked to."""
    split_processor(arguments.devices)
    return slt.models.from_hf(arguments.model, revision=arguments.revision, dtype=arguments.dtype)


def load_data(model: Model, path: Path, arguments: argparse.Namespace) -> Any:
    """Read token sequences that the model can take."""
    decoder = model.loss_fn
    assert isinstance(decoder, Decoder)
    return load_tokens(
        path,
        Limits(decoder.config.vocab_size, decoder.config.max_length),
        length=arguments.sequence_length,
        encode=lambda text: load_tokenizer(_tokenizer_folder(arguments))(text),
    )


def problem_of(
    model: Model, restriction: slt.Restriction, dataset: Any, arguments: argparse.Namespace
) -> tuple[slt.LocalPosterior, slt.AbstractKernel, slt.Batches, jax.Array]:
    """Give what every estimator takes first, as the options describe it.

    nβ is by the number of sequences if it is not given, a batch 32 of them or all.
    """
    size, n_beta = count_rows(dataset), arguments.n_beta
    posterior = slt.LocalPosterior(
        model.loss_fn,
        model.params,
        slt.default_n_beta(size) if n_beta is None else n_beta,
        arguments.localization,
        restriction,
    )
    preconditioner = _PRECONDITIONERS[arguments.preconditioner]()
    return (
        posterior,
        slt.sgld(arguments.step_size, preconditioner=preconditioner),
        slt.Batches(dataset, arguments.batch_size or min(32, size)),
        jax.random.key(arguments.seed),
    )


def chains_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Give the numbers of chains, draws and steps as options of ``slt.sample``."""
    return {
        "num_chains": arguments.chains,
        "num_draws": arguments.draws,
        "num_burnin_steps": arguments.burn_in,
        "num_steps_bw_draws": arguments.steps_between_draws,
        "execution": slt.Execution(layout=_layout(arguments)),
        "progress": arguments.progress,
    }


def _layout(arguments: argparse.Namespace) -> slt.Layout | None:
    return slt.Layout(chain=arguments.devices) if arguments.devices > 1 else None


def count_rows(dataset: Any) -> int:
    """Give the number of sequences in a data set."""
    return len(jax.tree.leaves(dataset)[0])


def check_output(path: Path | None, formats: Iterable[str] = (".nc",)) -> None:
    """Raise ValueError or FileNotFoundError unless results can be written to this file."""
    if path is None:
        return
    if path.suffix not in formats:
        raise ValueError(f"--out {path}: results are written as {' or '.join(formats)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--out {path}: there is no folder {path.parent}")


def plain_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Give what was asked for, as numbers and texts."""
    kept = {name: value for name, value in vars(arguments).items() if value is not None}
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in kept.items()
        if isinstance(value, (int, float, str, Path))
    }


def count(text: str) -> int:
    """Read a positive whole number from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return int(text)


def _tokenizer_folder(arguments: argparse.Namespace) -> Path:
    folder = Path(arguments.model)
    return folder if folder.is_dir() else hub.fetch_tokenizer(arguments.model, arguments.revision)


def probe_of(dataset: Any) -> slt.Probe:
    """Give a data set as a probe, read 32 sequences at a time."""
    return slt.Probe(dataset, batch_size=min(32, count_rows(dataset)))


def store_of(arguments: argparse.Namespace, name: str | None = None) -> dict[str, Any]:
    """Give the store as an option of ``slt.sample``, if one is asked for.

    Args:
        arguments: what was asked for.
        name: of one of several runs, each with a place of its own; None if there is one.
    """
    if arguments.store is None:
        return {}
    store = slt.Store(arguments.store)
    return {"store": store if name is None else store.within(name)}


def report_divergence(command: str, error: slt.ChainsDiverged) -> int:
    """Say on the standard error that chains diverged, and give the exit status for that."""
    print(f"slt-jax {command}: {error}", file=sys.stderr)
    return 1


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """Give a place for a file that takes its own place once it is whole, and say that it did.

    Raises:
        OSError: it could not be written.
    """
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # some libraries for NetCDF raise the latter
        partial.unlink(missing_ok=True)
        raise OSError(
            f"{path} could not be written, and what was there before still is ({error}). With "
            "--store the same command reads its runs back and writes them without sampling anew"
        ) from error
    print(f"Results: {path}")


def write_dataset(path: Path, dataset: Any, arguments: argparse.Namespace) -> None:
    """Write an ``xarray.Dataset`` with what was asked for in its attributes."""
    asked = {f"option_{name}": str(value) for name, value in plain_settings(arguments).items()}
    with written(path) as place:
        dataset.assign_attrs(asked).to_netcdf(place)
