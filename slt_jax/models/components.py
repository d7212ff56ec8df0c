"""Components by name: from ``"l3h2"`` or ``"layers/*"`` to the weights that move."""

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from slt_jax._types import Params
from slt_jax.models.component_grammar import FAMILIES, OUTSIDE_LAYERS, parse
from slt_jax.models.component_layout import Layout
from slt_jax.models.component_names import translate
from slt_jax.restriction import Block, Restriction

Selection: TypeAlias = str | Sequence[str] | Callable[[str], bool]
"""A name, several names for their union, or a function of the path that says yes or no."""

_SHOWN = 12


class Components:
    """The components of a model, each a ``slt.Restriction`` made of rectangles of its leaves.

    ``components["l3h2"]`` understands, in this order:

    1. the names given in ``named``, and ``full`` for all weights;
    2. the short names of ``component_grammar.parse``: ``l3h2``, ``l3g1``, ``l3 attn``, ``embed``, …
       (for leaves whose axes are named);
    3. a path, or the beginning of paths (``"hidden"`` for ``hidden/kernel`` and ``hidden/bias``);
    4. names of TransformerLens and Hugging Face for the same weights;
    5. shell-style patterns of paths, such as ``"layers/*/kernel"``.

    Names joined by ``+``, or a list of names, stand for their union, in which equal rectangles
    count once and partial overlaps are an error; a function of the path selects whole leaves.

    Laws: every way of naming the same weights has the same ``selection_hash``; all heads have one
    ``signature``, and so have all layers, groups and MLPs.

    Args:
        params: pytree of arrays or of ``jax.ShapeDtypeStruct``; only shapes are read.
        axes: path → names of the axes, such as ``{"attn.q": "l d h k"}``; None where they have
            none. The axes ``l``, ``h`` and ``g`` count layers, heads and key-value heads.
        tied: name → path of weights that have no leaf of their own. None finds a token embedding
            without an unembedding: ``{"unembed": "embed.tok"}``.
        named: restrictions with names of your own.

    Raises:
        ValueError: axes that do not fit the parameters.

    >>> weights = {"attn.q": np.zeros((2, 8, 4, 3)), "attn.k": np.zeros((2, 8, 2, 3))}
    >>> components = Components(weights, {"attn.q": "l d h k", "attn.k": "l d g k"})
    >>> components["l1h3"].num_params, len(components.heads()), len(components.groups())
    (48, 8, 4)
    """

    def __init__(
        self,
        params: Params,
        axes: Mapping[str, str] | None = None,
        *,
        tied: Mapping[str, str] | None = None,
        named: Mapping[str, Restriction] | None = None,
    ):
        self.layout = Layout(params, axes or {})
        if tied is None:
            names = self.layout.paths
            is_tied = "embed.tok" in names and "unembed" not in names
            tied = {"unembed": names["embed.tok"]} if is_tied else {}
        self.tied = dict(tied)
        self.named = dict(named or {})
        for restriction in self.named.values():
            restriction.check(params)

    def __getitem__(self, selection: Selection) -> Restriction:
        """Give the restriction to a component.

        Raises:
            ValueError: nothing is called that, a number out of range, tied weights that have no
                leaf of their own, or a union with partial overlaps.
            TypeError: a selection that is neither text, list nor function.
        """
        if callable(selection):
            blocks = [self.layout.whole(path) for path in self.layout.shapes if selection(path)]
            if not blocks:
                raise ValueError(f"no path satisfies {selection!r}; {self._advice()}")
            return Restriction(blocks)
        if isinstance(selection, str):
            is_path = selection in self.layout.shapes or selection in self.named
            names = [selection] if is_path else selection.split("+")
        elif isinstance(selection, Sequence) and all(isinstance(name, str) for name in selection):
            names = [part for name in selection for part in name.split("+")]
        else:
            raise TypeError(
                f"a component is selected by a name, a list of names or a function of the path, "
                f"got {selection!r}"
            )
        return self._union([block for name in names for block in self._blocks(name.strip())])

    def heads(self, *, kv: bool = True) -> dict[str, Restriction]:
        """Give every attention head by name, ``l0h0`` first.

        Args:
            kv: whether a head includes the keys and values that it reads. Heads that share them
                then overlap. False leaves queries and outputs, named ``l0h0 qo``.
        """
        part = "" if kv else " qo"
        layout = self.layout
        self._require(layout.num_layers * layout.num_heads, "heads", "'l' and 'h'")
        return self._by_name(
            f"l{layer}h{head}{part}"
            for layer in range(layout.num_layers)
            for head in range(layout.num_heads)
        )

    def groups(self) -> dict[str, Restriction]:
        """Give every key-value head with the heads that read it, ``l0g0`` first."""
        layout = self.layout
        self._require(layout.num_layers * layout.num_groups, "groups", "'l' and 'g'")
        return self._by_name(
            f"l{layer}g{group}"
            for layer in range(layout.num_layers)
            for group in range(layout.num_groups)
        )

    def layers(self) -> dict[str, Restriction]:
        """Give every layer by name, ``l0`` first."""
        self._require(self.layout.num_layers, "layers", "'l'")
        return self._by_name(f"l{layer}" for layer in range(self.layout.num_layers))

    def mlps(self) -> dict[str, Restriction]:
        """Give the MLP of every layer by name, ``l0 mlp`` first."""
        self._require(self.layout.num_layers, "layers", "'l'")
        return self._by_name(f"l{layer} mlp" for layer in range(self.layout.num_layers))

    def leaves(self) -> dict[str, Restriction]:
        """Give every whole leaf by its path."""
        return {path: Restriction([self.layout.whole(path)]) for path in self.layout.shapes}

    def preview(self, selection: Selection) -> None:
        """Print which rectangles a component consists of, and how many weights they hold.

        >>> weights = {"attn.q": np.zeros((2, 8, 4, 3))}
        >>> Components(weights, {"attn.q": "l d h k"}).preview("l1h3")
        'l1h3': 24 of 192 weights (12.5 %) in 1 block
          attn.q  [1, :, 3, :] of [l d h k = 2 8 4 3]  24
        """
        restriction = self[selection]
        total = sum(math.prod(shape) for shape in self.layout.shapes.values())
        count, plural = len(restriction.blocks), "" if len(restriction.blocks) == 1 else "s"
        print(
            f"{selection!r}: {restriction.num_params:,} of {total:,} weights "
            f"({100 * restriction.num_params / total:.3g} %) in {count} block{plural}"
        )
        width = max(len(block.path) for block in restriction.blocks)
        for block in restriction.blocks:
            print(f"  {block.path:{width}}  {self._cut_text(block)}  {block.num_params:,}")

    def __repr__(self) -> str:
        return f"Components({self._advice()})"

    def _blocks(self, name: str) -> list[Block]:
        if name in self.named:
            return list(self.named[name].blocks)
        shapes = self.layout.shapes
        if name.lower() == "full":
            return [self.layout.whole(path) for path in shapes]
        own, foreign = parse(name), translate(name, self.layout.paths)
        for term in (own, foreign):
            if term is not None and (alias := next((n for n in term.leaves if n in self.tied), "")):
                raise ValueError(
                    f"component {name!r}: the {alias!r} of this model is tied to "
                    f"{self.tied[alias]!r}, one leaf for both. Restrict to {self.tied[alias]!r}, "
                    "which moves both; the unembedding alone cannot move"
                )
        found = [] if own is None else self.layout.cut(own)
        found = found or [
            self.layout.whole(path)
            for path in shapes
            if path == name or path.startswith(f"{name.rstrip('/')}/")
        ]
        if not found and foreign is not None:
            found = self.layout.cut(foreign)
        found = found or [
            self.layout.whole(path) for path in shapes if fnmatch.fnmatchcase(path, name)
        ]
        if not found:
            raise ValueError(f"no weights are called {name!r}; {self._advice()}")
        return found

    def _union(self, blocks: list[Block]) -> Restriction:
        order = list(self.layout.shapes)
        distinct = {block.canonical(): block for block in blocks}
        return Restriction(
            sorted(
                distinct.values(),
                key=lambda block: (order.index(block.path), np.asarray(block.start).tolist()),
            )
        )

    def _by_name(self, names: Iterable[str]) -> dict[str, Restriction]:
        return {name: self[name] for name in names}

    def _require(self, count: int, noun: str, letters: str) -> None:
        if count == 0:
            raise ValueError(
                f"the model has no {noun} that are known by name: that takes leaves with the axes "
                f"{letters}, given as axes={{path: 'l d h k', …}}; {self._advice()}"
            )

    def _cut_text(self, block: Block) -> str:
        parts = (
            ":" if size == extent else str(start) if size == 1 else f"{start}:{start + size}"
            for extent, start, size in zip(
                block.view, np.asarray(block.start).tolist(), block.size, strict=True
            )
        )
        letters = self.layout.axes.get(block.path)
        names = "" if letters is None else f"{' '.join(letters)} = "
        return f"[{', '.join(parts)}] of [{names}{' '.join(map(str, block.view))}]"

    def _advice(self) -> str:
        layout, known = self.layout, ["'full'"]
        if layout.num_layers:
            last = layout.num_layers - 1
            known.append(f"'l0' to 'l{last}', alone or with {', '.join(FAMILIES)}")
            if layout.num_heads:
                known.append(f"'l0h0' to 'l{last}h{layout.num_heads - 1}'")
                known.append(f"'l0g0' to 'l{last}g{layout.num_groups - 1}'")
        known += [
            f"{name!r}" for name, leaves in OUTSIDE_LAYERS.items() if leaves[0] in layout.paths
        ]
        known += [f"{name!r}" for name in self.named]
        paths = list(layout.shapes)
        more = f", … ({len(paths)} in all)" if len(paths) > _SHOWN else ""
        return f"there are {', '.join(known)}, and the paths {', '.join(paths[:_SHOWN])}{more}"
