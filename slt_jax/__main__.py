"""Run the command line as ``python -m slt_jax``."""

import sys

from slt_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
