"""Whether a store was made from the same things as a call, and if not, from which others."""

import json
import math
import warnings
from collections.abc import Mapping
from typing import Any

from slt_jax.persistence import Identity, StoreMismatch

_LOSS_TOLERANCE = 1e-3
_DIGESTS = ("loss_arrays", "kernel_arrays")


def as_attributes(identity: Identity) -> dict[str, Any]:
    """Give an identity as values that survive JSON unchanged."""
    return json.loads(json.dumps(identity._asdict(), default=str))


def check_identity(path: Any, stored: Mapping[str, Any], identity: Identity) -> None:
    """Refuse a store that was made from something else; warn if by other versions.

    Raises:
        StoreMismatch: names what differs.
    """
    given = as_attributes(identity)
    found = [
        f"other {name}" for name in ("weights", "data") if stored[name] != given[name]
    ] + _other_settings(stored["settings"], given["settings"])
    there, here = stored["init_loss"], given["init_loss"]
    if not found and not math.isclose(there, here, rel_tol=_LOSS_TOLERANCE, abs_tol=1e-6):
        found.append(f"another loss function: at w* it gave {there:.6g}, this one gives {here:.6g}")
    if found:
        raise StoreMismatch(
            f"the store {path} was made with {'; '.join(found)}. Nothing of it is reused: choose "
            "another path for this call, or delete the store"
        )
    versions = _differences(stored["versions"], given["versions"])
    if versions:
        warnings.warn(
            f"the store {path} was made with other versions: {'; '.join(versions)}", stacklevel=2
        )


def _other_settings(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    differing = _differences(stored, given)
    # Digests say nothing to a reader, unless what they stand for prints alike.
    plain = [line for line in differing if not line.startswith(_DIGESTS)]
    if differing and not plain:
        return ["settings of the kernel or arrays of the loss that print alike but are others"]
    return plain


def _differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    absent = "nothing"
    return [
        f"{name} {stored.get(name, absent)}, not {given.get(name, absent)}"
        for name in dict.fromkeys((*stored, *given))
        if stored.get(name, absent) != given.get(name, absent)
    ]
