"""The command line: one table of subcommands, each of which imports what it needs when it runs."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import slt_jax
from slt_jax.commands import bif, config, llc, quickstart, susceptibilities


class Command(NamedTuple):
    """A subcommand: its name, its help line, its arguments, and what it runs."""

    name: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS = (
    Command(
        "quickstart",
        "measure the bundled transformer, whole and head by head (a few minutes)",
        quickstart.add_arguments,
        quickstart.run,
    ),
    Command(
        "llc",
        "estimate the learning coefficient of a Hugging Face checkpoint, whole or by component",
        llc.add_arguments,
        llc.run,
    ),
    Command(
        "susceptibilities",
        "measure how each component of a checkpoint answers to each data set",
        susceptibilities.add_arguments,
        susceptibilities.run,
    ),
    Command(
        "bif",
        "rank training sequences by their Bayesian influence on others",
        bif.add_arguments,
        bif.run,
    ),
)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``slt-jax`` from the table of subcommands.

    Returns:
        The parser; the parsed arguments carry the chosen ``Command`` as ``command``.

    >>> build_parser().parse_args(["quickstart", "--seed", "3"]).seed
    3
    """
    parser = argparse.ArgumentParser(
        prog="slt-jax", description="Singular learning theory in JAX: how complex is a solution?"
    )
    parser.add_argument("--version", action="version", version=f"slt-jax {slt_jax.__version__}")
    subparsers = parser.add_subparsers(metavar="command", required=True)
    for command in COMMANDS:
        subparser = subparsers.add_parser(
            command.name, help=command.summary, description=command.summary
        )
        command.add_arguments(subparser)
        subparser.add_argument(
            "--traceback", action="store_true", help="on an error, show where it comes from"
        )
        subparser.set_defaults(command=command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand of ``slt-jax``.

    Args:
        argv: the words after the program's name. None for those of this process.

    Returns:
        The exit status: 0 for success, 1 for a result that is not what it should be, 2 for
        arguments or files that do not work and for a missing package.

    Raises:
        SystemExit: after ``--help`` and ``--version`` (status 0), or for words that do not parse
            (status 2), as argparse does.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = build_parser().parse_args(config.expand(words))
        return arguments.command.run(arguments)
    except (ImportError, OSError, TypeError, ValueError) as error:
        if "--traceback" in words:
            raise
        print(f"slt-jax {' '.join(words[:1])}: error: {error}", file=sys.stderr)
        return 2
