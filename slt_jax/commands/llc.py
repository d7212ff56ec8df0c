"""``slt-jax llc``: the learning coefficient of a checkpoint, whole or by component."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import slt_jax as slt
from slt_jax.commands import common

_FORMATS = (".json", ".nc")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``slt-jax llc``."""
    common.add_model_arguments(parser)
    add = parser.add_argument
    add(
        "--component",
        action="append",
        metavar="NAME",
        help="weights that move, such as l0h1, 'l0 mlp' or embed; may be repeated (default: full)",
    )
    common.add_sampling_arguments(parser)
    common.add_result_arguments(parser, ".json or .nc (NetCDF)")
    add(
        "--surroundings",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure the control without data and the biases as well",
    )


def run(arguments: argparse.Namespace) -> int:
    """Load, estimate every component, print and write the results.

    Returns:
        0, or 1 if chains of some component diverged.

    Raises:
        ImportError, OSError, TypeError, ValueError: arguments or files that do not work.
    """
    common.check_output(arguments.out, _FORMATS)
    model = common.load_model(arguments)
    components = {name: model.components[name] for name in arguments.component or ["full"]}
    dataset = common.load_data(model, arguments.data, arguments)
    num_rows = common.count_rows(dataset)
    results: dict[str, slt.LLCResult] = {}
    for name, restriction in components.items():
        print(f"{name}: {restriction.num_params:,} weights, {num_rows:,} sequences")
        try:
            results[name] = slt.llc(
                *common.problem_of(model, restriction, dataset, arguments),
                surroundings=arguments.surroundings,
                **common.chains_of(arguments),
                **common.store_of(arguments, name),
            )
        except slt.ChainsDiverged as error:
            print(f"slt-jax llc: {name}: {error}", file=sys.stderr)
        else:
            print(results[name], flush=True)
    if arguments.out is not None and results:
        with common.written(arguments.out) as place:
            write_results(place, results, common.plain_settings(arguments))
    return int(len(results) < len(components))


def write_results(path: Path, results: dict[str, slt.LLCResult], settings: dict[str, Any]) -> None:
    """Write the results of all components to a ``.json`` or ``.nc`` file.

    Args:
        path: with the suffix that says which.
        results: component → result.
        settings: what was asked for, as numbers and texts.
    """
    if path.suffix == ".json":
        table = {name: result.to_dict() for name, result in results.items()}
        text = json.dumps({"settings": settings, "components": table}, indent=2)
        path.write_text(text + "\n", encoding="utf-8")
        return
    import xarray

    names = xarray.DataArray(list(results), dims="component", name="component")
    tables = [result.to_xarray() for result in results.values()]
    whole = xarray.concat(tables, names, combine_attrs="drop_conflicts")
    whole["verdict"] = ("component", [str(result.verdict) for result in results.values()])
    whole.attrs |= {name: str(value) for name, value in settings.items()}
    whole.to_netcdf(path)
