"""The subcommands of ``slt-jax`` that take a model and data from files, one module each."""
