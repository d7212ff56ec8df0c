"""``slt-jax susceptibilities``: which component of a checkpoint serves which data."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import slt_jax as slt
from slt_jax.commands import common
from slt_jax.models import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``slt-jax susceptibilities``."""
    common.add_model_arguments(parser)
    add = parser.add_argument
    add(
        "--probe",
        action="append",
        required=True,
        metavar="NAME=FILE",
        help="a data set whose susceptibility is measured, of the kinds of --data; may be repeated",
    )
    add(
        "--component",
        action="append",
        metavar="NAME",
        help="weights that move, such as l0h1 or 'l0 mlp'; may be repeated (default: every head)",
    )
    common.add_sampling_arguments(parser)
    add("--full-draws", type=common.count, metavar="N", help="of the full chain (default: 4 times)")
    add(
        "--tokens",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep every token, not only sequences and data sets",
    )
    add(
        "--control",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure the same without data as well",
    )
    common.add_result_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Load, sample all weights and every component, print and write the results.

    Returns:
        0, or 1 if chains diverged.

    Raises:
        ImportError, OSError, TypeError, ValueError: arguments or files that do not work.
    """
    common.check_output(arguments.out)
    model = common.load_model(arguments)
    components = _components(model, arguments.component)
    dataset = common.load_data(model, arguments.data, arguments)
    probes = {
        name: common.load_data(model, path, arguments)
        for name, path in named_files(arguments.probe).items()
    }
    options = common.chains_of(arguments) | common.store_of(arguments)
    try:
        chi = slt.susceptibilities(
            *common.problem_of(model, model.components["full"], dataset, arguments),
            components=components,
            probes={name: common.probe_of(probe) for name, probe in probes.items()},
            num_full_draws=arguments.full_draws,
            tokens=arguments.tokens,
            control=arguments.control,
            **options,
        )
    except slt.ChainsDiverged as error:
        return common.report_divergence("susceptibilities", error)
    print(chi, flush=True)
    if arguments.out is not None:
        common.write_dataset(arguments.out, chi.to_xarray(), arguments)
    return 0


def named_files(words: Iterable[str]) -> dict[str, Path]:
    """Read words such as ``code=code.npy``.

    Raises:
        ValueError: a word without a name, or two of the same name.

    >>> named_files(["code=a.npy"])["code"].name
    'a.npy'
    """
    files: dict[str, Path] = {}
    for word in words:
        name, equals, file = word.partition("=")
        if not (name and equals and file):
            raise ValueError(f"--probe {word}: write it as NAME=FILE")
        if name in files:
            raise ValueError(f"two probes are called {name!r}")
        files[name] = Path(file)
    return files


def _components(model: Model, names: list[str] | None) -> dict[str, Any]:
    if names is None:
        return dict(model.components.heads())
    return {name: model.components[name] for name in names}
