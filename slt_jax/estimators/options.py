"""What estimators that make several runs do with the options of ``sample``."""

from collections.abc import Mapping
from typing import Any

from slt_jax.restriction import Restriction


def needed_components(components: Any) -> dict[str, Restriction]:
    """Give the components, or raise if there are none.

    Raises:
        ValueError: no components.
        TypeError: something else than restrictions.
    """
    if not components or not isinstance(components, Mapping):
        raise ValueError(
            "name the components to measure: components={name: slt.Restriction(...)}, such as "
            "model.components.heads()"
        )
    for name, restriction in components.items():
        if not isinstance(restriction, Restriction):
            raise TypeError(f"component {name!r} must be an slt.Restriction, got {restriction!r}")
    return dict(components)


def of_run(options: Mapping[str, Any], name: str, **own: Any) -> dict[str, Any]:
    """Give the options of one run out of several: its own, and a place of its own in the store.

    Args:
        options: those that all runs share.
        name: of this run.
        **own: what differs.
    """
    merged = dict(options) | own
    if merged.get("store") is not None:
        merged["store"] = merged["store"].within(name)
    return merged
