"""``slt-jax bif``: which training sequence shapes which query."""

import argparse
from pathlib import Path

import slt_jax as slt
from slt_jax.commands import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``slt-jax bif``."""
    common.add_model_arguments(parser)
    add = parser.add_argument
    add(
        "--query",
        required=True,
        type=Path,
        metavar="FILE",
        help="the sequences whose losses are explained, of the kinds of --data",
    )
    add(
        "--train",
        type=Path,
        metavar="FILE",
        help="the sequences whose influence is asked for (default: all of --data)",
    )
    add("--component", metavar="NAME", default="full", help="weights that move (default: full)")
    common.add_sampling_arguments(parser)
    add("--per-token", action="store_true", help="influence between tokens, not sequences")
    add(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="correlations instead of covariances",
    )
    add("--top", type=common.count, default=5, metavar="N", help="shown per query")
    common.add_result_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Load, sample, print the most influential sequences and write the results.

    Returns:
        0, or 1 if chains diverged.

    Raises:
        ImportError, OSError, TypeError, ValueError: arguments or files that do not work.
    """
    common.check_output(arguments.out)
    model = common.load_model(arguments)
    restriction = model.components[arguments.component]
    dataset = common.load_data(model, arguments.data, arguments)
    query = common.load_data(model, arguments.query, arguments)
    train = arguments.train and common.load_data(model, arguments.train, arguments)
    options = common.chains_of(arguments) | common.store_of(arguments)
    try:
        influence = slt.bif(
            *common.problem_of(model, restriction, dataset, arguments),
            query=common.probe_of(query),
            train=None if train is None else common.probe_of(train),
            normalize=arguments.normalize,
            per_token=arguments.per_token,
            **options,
        )
    except slt.ChainsDiverged as error:
        return common.report_divergence("bif", error)
    print(influence)
    print("\n".join(_ranking(influence, arguments.top)), flush=True)
    if arguments.out is not None:
        common.write_dataset(arguments.out, influence.to_xarray(), arguments)
    return 0


def _ranking(influence: slt.BIFResult, k: int) -> list[str]:
    """Write the training rows that help each query the most."""
    lines = []
    for number in range(influence.covariance.shape[1]):
        lines.append(f"query {_place(influence, 'query', number)}")
        lines += [
            f"  train {_place(influence, 'train', entry.train)}: "
            f"{entry.influence:+.3g} ± {entry.standard_error:.2g}"
            for entry in influence.top(number, k)
        ]
    return lines


def _place(influence: slt.BIFResult, axis: str, number: int) -> str:
    sequence = getattr(influence, f"{axis}_sequence")[number]
    position = getattr(influence, f"{axis}_position")[number]
    return f"sequence {sequence}" + (f", position {position}" if position >= 0 else "")
