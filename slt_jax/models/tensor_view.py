"""A parameter as a view of a tensor in a checkpoint: reshaped, cut and transposed, never copied."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TensorView:
    """Where one layer's slice of a parameter lies in the tensors of a checkpoint.

    The tensor's axes are written as letters, those that it merges in parentheses: a PyTorch linear
    map to heads is ``"(h k) d"``. One axis may be ``*``, of extent ``parts``, along which several
    parameters are stacked: GPT-NeoX's queries, keys and values are parts 0, 1, 2 of
    ``"(h * k) d"``. A part is a number, which removes the axis, or a range, which leaves it as the
    axis ``letter``.

    Args:
        names: the tensor's name in the file, ``{l}`` standing for the layer; further names are
            other spellings found in files.
        pattern: its axes.
        parts: extent of the axis ``*``.
        part: which of the parts: a number, or (start, stop).
        letter: the axis that a range of parts is.
    """

    names: tuple[str, ...]
    pattern: str
    parts: int = 0
    part: int | tuple[int, int] = 0
    letter: str = ""

    def axes(self) -> list[str]:
        """Give the tensor's axes, each as the letters that it merges.

        >>> TensorView(("w",), "(h * k) d", parts=3).axes()
        ['h*k', 'd']
        """
        axes: list[str] = []
        is_open = False
        for symbol in self.pattern.replace(" ", ""):
            if symbol in "()":
                is_open = symbol == "("
                axes += [""] if is_open else []
            elif is_open:
                axes[-1] += symbol
            else:
                axes.append(symbol)
        return axes

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Give the whole tensor's shape in the file."""
        extents = {**sizes, "*": self.parts}
        return tuple(math.prod(extents[letter] for letter in axis) for axis in self.axes())

    def of(self, tensor: np.ndarray, axes: str, sizes: Mapping[str, int]) -> np.ndarray:
        """Give the parameter's slice as a view of the tensor, with its axes in the order ``axes``.

        Writing into the view writes into the tensor.

        >>> fused = np.arange(12).reshape(6, 2)
        >>> view = TensorView(("w",), "(h * k) d", parts=3, part=1)
        >>> view.of(fused, "dhk", {"h": 2, "k": 1, "d": 2}).tolist()
        [[[2], [8]], [[3], [9]]]
        """
        extents = {**sizes, "*": self.parts}
        letters = "".join(self.axes())
        split = tensor.reshape(tuple(extents[letter] for letter in letters))
        if "*" in letters:
            index: list[int | slice] = [slice(None)] * len(letters)
            at = letters.index("*")
            index[at] = self.part if isinstance(self.part, int) else slice(*self.part)
            split = split[tuple(index)]
            letters = letters.replace("*", "" if isinstance(self.part, int) else self.letter)
        return split.transpose(tuple(letters.index(letter) for letter in axes))
