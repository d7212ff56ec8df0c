"""Fixed examples of the sampled data on which an estimator measures L instead of on minibatches."""

from typing import Any

from slt_jax.data import Batches, Probe
from slt_jax.estimators.probes import check_losses, losses_at_center, structure_of
from slt_jax.examples import check_examples
from slt_jax.posterior import LocalPosterior


def check_evaluation(evaluation: Any, posterior: LocalPosterior, batches: Batches) -> None:
    """Raise unless L can be measured on an evaluation set; None stands for minibatches.

    Raises:
        TypeError: something else than a probe, or examples of another kind than the loss takes.
        ValueError: examples unlike those that are sampled, a loss at w* that is not finite, no
            weight.
    """
    if evaluation is None:
        return
    if not isinstance(evaluation, Probe):
        raise TypeError(
            "evaluation must be an slt.Probe of examples of the sampling data, such as "
            f"slt.Probe(examples, batch_size=32); got {type(evaluation).__name__}"
        )
    own, sampled = structure_of(evaluation.examples), structure_of(batches.example_structure)
    if own != sampled:
        raise ValueError(
            f"the evaluation set has examples of (dtype, shape) {own}, the sampling data "
            f"{sampled}: it stands for them, so give it examples of the same kind and length"
        )
    check_examples(posterior, evaluation.examples, "the evaluation set")
    check_losses("the evaluation set", *losses_at_center(posterior, evaluation))
