"""The short names of components, such as ``l3h2`` or ``l0 mlp``, and what they ask for."""

import re
from typing import NamedTuple

_PROJECTIONS = "qkvo"

FAMILIES: dict[str, tuple[str, ...]] = {
    "attn": tuple(f"attn.{letter}{bias}" for letter in _PROJECTIONS for bias in ("", "_b")),
    "mlp": ("mlp.*",),
    "norm": ("norm.*",),
    "qk_norm": ("attn.[qk]_norm", "attn.[qk]_norm_b"),
}
"""What may follow a layer, as patterns of leaf names. Norms are no part of ``attn``."""

OUTSIDE_LAYERS: dict[str, tuple[str, ...]] = {
    "embed": ("embed.tok",),
    "embed.pos": ("embed.pos",),
    "unembed": ("unembed", "unembed_b"),
    "final_norm": ("final_norm", "final_norm_b"),
}
"""Names of weights that belong to no layer. Positions are no part of ``embed``."""

_IN_LAYER = re.compile(r"l\s*(\d+)(?:\s*([hg])\s*(\d+))?(?:\s+(\S+))?", re.IGNORECASE)


class Term(NamedTuple):
    """A selection of leaves by name, cut along the axes of layers, heads or groups.

    ``leaves`` are shell-style patterns of leaf names; ``layer``, ``head`` and ``group`` are numbers
    from 0, or None for all. With a head or a group, leaves without such an axis drop out.
    """

    leaves: tuple[str, ...]
    layer: int | None = None
    head: int | None = None
    group: int | None = None


def parse(name: str) -> Term | None:
    """Read one short name; None if it is not of that form.

    ==================  ===========================================================================
    name                meaning
    ==================  ===========================================================================
    ``l3``              all of layer 3: attention, MLP and norms
    ``l3 attn``         its attention, biases included, norms of queries and keys excluded
    ``l3 mlp``          its MLP
    ``l3 norm``         its layer norms; ``l3 qk_norm`` those of queries and keys
    ``l3 attn.o_b``     one leaf, or a pattern of leaves, of layer 3
    ``l3h2``            head 2: queries, outputs, and the keys and values that it reads (which
                        other heads read as well if heads are grouped)
    ``l3g1``            key-value head 1 and all heads that read it
    ``l3h2 q``          a part of a head: any of the letters q, k, v, o, such as ``ov`` or ``qk``
    ``embed``           token embedding; ``embed.pos`` positions
    ``unembed``         unembedding, with its bias; ``final_norm`` the norm before it
    ==================  ===========================================================================

    Case and blanks between the parts do not matter.

    Raises:
        ValueError: a head or group followed by something other than q, k, v and o.

    >>> parse("L3H2 ov").leaves
    ('attn.o', 'attn.o_b', 'attn.v', 'attn.v_b')
    >>> parse("blocks.0.attn.W_Q") is None
    True
    """
    if name.lower() in OUTSIDE_LAYERS:
        return Term(OUTSIDE_LAYERS[name.lower()])
    match = _IN_LAYER.fullmatch(name)
    if match is None:
        return None
    layer, kind, number, part = match.groups()
    if kind is None:
        return Term(("*",) if part is None else _part(part), int(layer))
    if part is not None and not set(part.lower()) <= set(_PROJECTIONS):
        raise ValueError(
            f"component {name!r}: a head has the parts q, k, v and o, or several of them as in "
            f"'ov'; got {part!r}"
        )
    leaves = FAMILIES["attn"] if part is None else _part(part)
    if kind.lower() == "h":
        return Term(leaves, int(layer), head=int(number))
    return Term(leaves, int(layer), group=int(number))


def _part(part: str) -> tuple[str, ...]:
    lowered = part.lower()
    if lowered in FAMILIES:
        return FAMILIES[lowered]
    if set(lowered) <= set(_PROJECTIONS):
        letters = sorted(set(lowered))
        return tuple(f"attn.{letter}{bias}" for letter in letters for bias in ("", "_b"))
    return (part,)
