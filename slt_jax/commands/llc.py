"""``slt-jax llc``: the learning coefficient of a checkpoint, whole or by component."""

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax

import slt_jax as slt
from slt_jax.commands.tokens import Limits, load_tokenizer, load_tokens
from slt_jax.models import Model, hub
from slt_jax.models.decoder import Decoder

_PRECONDITIONERS = {"identity": slt.identity, "rms": slt.rms, "adam": slt.adam}
_FORMATS = (".json", ".nc")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``slt-jax llc``."""
    add = parser.add_argument
    add("--model", required=True, metavar="PATH", help="checkpoint folder or hub id, as from_hf")
    add("--revision", help="branch, tag or commit of a hub id")
    add("--dtype", help="dtype in which the weights are kept (default: that of the files)")
    add(
        "--data",
        required=True,
        type=Path,
        metavar="FILE",
        help="token ids as .npy or .npz [n, pos] or .jsonl with input_ids; or .txt, tokenized by "
        "the model's tokenizer",
    )
    add("--sequence-length", type=_count, metavar="N", help="cut sequences to N tokens")
    add(
        "--component",
        action="append",
        metavar="NAME",
        help="weights that move, such as l0h1, 'l0 mlp' or embed; may be repeated (default: full)",
    )
    _add_sampling_arguments(parser)
    add("--out", type=Path, metavar="FILE", help="write the results, as .json or .nc (NetCDF)")
    add = functools.partial(add, action=argparse.BooleanOptionalAction, default=True)
    add("--surroundings", help="measure the control without data and the biases as well")
    add("--progress", help="show a progress bar")


def _add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
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
    add = functools.partial(parser.add_argument, metavar="N", type=_count)
    add("--chains", default=4, help="chains per component (default: %(default)s)")
    add("--draws", default=500, help="draws per chain (default: %(default)s)")
    add("--steps-between-draws", default=1, help="steps per draw (default: %(default)s)")
    add("--batch-size", help="sequences per step (default: 32, or all if there are fewer)")
    add("--burn-in", type=int, default=200, help="steps before the draws (default: %(default)s)")
    add("--seed", type=int, default=0, help="random seed (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Load, estimate every component, print and write the results.

    Returns:
        0, or 1 if chains of some component diverged.

    Raises:
        ImportError, OSError, TypeError, ValueError: arguments or files that do not work.
    """
    check_output(arguments.out)
    model = slt.models.from_hf(arguments.model, revision=arguments.revision, dtype=arguments.dtype)
    components = {name: model.components[name] for name in arguments.component or ["full"]}
    dataset = _dataset(model, arguments)
    results: dict[str, slt.LLCResult] = {}
    for name, restriction in components.items():
        print(f"{name}: {restriction.num_params:,} weights, {_count_rows(dataset):,} sequences")
        try:
            results[name] = _estimate(model, restriction, dataset, arguments)
        except slt.ChainsDiverged as error:
            print(f"slt-jax llc: {name}: {error}", file=sys.stderr)
        else:
            print(results[name], flush=True)
    if arguments.out is not None and results:
        write_results(arguments.out, results, vars(arguments))
        print(f"Results: {arguments.out}")
    return int(len(results) < len(components))


def _estimate(
    model: Model, restriction: slt.Restriction, dataset: Any, arguments: argparse.Namespace
) -> slt.LLCResult:
    num_sequences, n_beta = _count_rows(dataset), arguments.n_beta
    posterior = slt.LocalPosterior(
        model.loss_fn,
        model.params,
        slt.default_n_beta(num_sequences) if n_beta is None else n_beta,
        arguments.localization,
        restriction,
    )
    preconditioner = _PRECONDITIONERS[arguments.preconditioner]()
    return slt.llc(
        posterior,
        slt.sgld(arguments.step_size, preconditioner=preconditioner),
        slt.Batches(dataset, arguments.batch_size or min(32, num_sequences)),
        jax.random.key(arguments.seed),
        surroundings=arguments.surroundings,
        num_chains=arguments.chains,
        num_draws=arguments.draws,
        num_burnin_steps=arguments.burn_in,
        num_steps_bw_draws=arguments.steps_between_draws,
        progress=arguments.progress,
    )


def _dataset(model: Model, arguments: argparse.Namespace) -> Any:
    decoder = model.loss_fn
    assert isinstance(decoder, Decoder)
    return load_tokens(
        arguments.data,
        Limits(decoder.config.vocab_size, decoder.config.num_positions),
        length=arguments.sequence_length,
        encode=lambda text: load_tokenizer(_tokenizer_folder(arguments))(text),
    )


def _tokenizer_folder(arguments: argparse.Namespace) -> Path:
    folder = Path(arguments.model)
    return folder if folder.is_dir() else hub.fetch_tokenizer(arguments.model, arguments.revision)


def _count_rows(dataset: Any) -> int:
    return len(jax.tree.leaves(dataset)[0])


def check_output(path: Path | None) -> None:
    """Raise ValueError or FileNotFoundError unless results can be written to this file."""
    if path is None:
        return
    if path.suffix not in _FORMATS:
        raise ValueError(f"--out {path}: results are written as {' or '.join(_FORMATS)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--out {path}: there is no folder {path.parent}")


def write_results(path: Path, results: dict[str, slt.LLCResult], settings: dict[str, Any]) -> None:
    """Write the results of all components to a ``.json`` or ``.nc`` file.

    Args:
        path: with the suffix that says which.
        results: component → result.
        settings: what was asked for; numbers, texts and paths are kept.
    """
    kept = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in settings.items()
        if isinstance(value, (int, float, str, Path))
    }
    if path.suffix == ".json":
        table = {name: result.to_dict() for name, result in results.items()}
        text = json.dumps({"settings": kept, "components": table}, indent=2)
        path.write_text(text + "\n", encoding="utf-8")
        return
    import xarray

    names = xarray.DataArray(list(results), dims="component", name="component")
    tables = [result.to_xarray() for result in results.values()]
    whole = xarray.concat(tables, names, combine_attrs="drop_conflicts")
    whole["verdict"] = ("component", [str(result.verdict) for result in results.values()])
    whole.attrs |= {name: str(value) for name, value in kept.items()}
    whole.to_netcdf(path)


def _count(text: str) -> int:
    """Read a positive whole number from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return int(text)
