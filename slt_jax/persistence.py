"""What the loop asks of a place that keeps runs, and the plain values that pass between them.

``slt.Store`` is such a place. The loop knows these two protocols and nothing of files; a place
knows arrays by name and nothing of kernels or posteriors.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np


class StoreMismatch(ValueError):
    """Raised when a store holds something else than what a call would put there."""


class StoreDamaged(ValueError):
    """Raised when a store cannot be read, and what was in it cannot be made out."""


class StoreIncomplete(ValueError):
    """Raised when a result is asked of a store whose runs have not come to their end."""


class Identity(NamedTuple):
    """What a run was made from: two runs of equal identity have equal numbers.

    ``weights`` and ``data`` are digests, ``settings`` plain values by name, the number of draws not
    among them. ``init_loss`` is L(w*) in nats, as measured: an edited loss function has another.
    ``versions`` and ``fingerprint`` are recorded, not compared.
    """

    weights: str
    data: str
    settings: Mapping[str, Any]
    init_loss: float
    versions: Mapping[str, str]
    fingerprint: str


class Saved(NamedTuple):
    """A run as a checkpoint holds it.

    ``arrays`` have a fixed shape each; ``series`` grow with the draws: ``[component, chain, draw,
    ...]``. ``ended_early`` says that a hook ended the run before all draws were made.
    """

    step: int
    ended_early: bool
    arrays: Mapping[str, Any]
    series: Mapping[str, np.ndarray]


class Contents(NamedTuple):
    """What a run will hold.

    ``placed`` are the arrays that live on devices, as they are before the first step: what is read
    from a checkpoint goes where these are. ``series`` gives the shape ``(component, chain, draw,
    ...)`` that every series has in the end.
    """

    placed: Mapping[str, Any]
    series: Mapping[str, tuple[int, ...]]
    components: tuple[str, ...]
    num_steps: int
    num_steps_bw_draws: int


class Place(NamedTuple):
    """Where a run is kept and what was found there, plain text for metadata and for printing.

    ``use`` is ``"sampled"``, ``"reused"`` or the like, which may be counted over several runs;
    ``note`` is what else there is to say of it.

    >>> str(Place("runs/llc", "reused", "complete since noon"))
    'runs/llc: reused, complete since noon'
    >>> Place("runs/llc").metadata
    {'store': 'runs/llc', 'store_use': 'sampled', 'store_note': ''}
    """

    path: str
    use: str = "sampled"
    note: str = ""

    @property
    def metadata(self) -> dict[str, str]:
        """The entries of a run's metadata."""
        return dict(zip(PLACE, self, strict=True))

    def __str__(self) -> str:
        if self.use == "sampled":
            return self.path
        return f"{self.path}: {self.use}" + (f", {self.note}" if self.note else "")


PLACE = ("store", "store_use", "store_note")
"""The entries of metadata that say where a run is kept, and not what it is."""


@runtime_checkable
class Recording(Protocol):
    """One run being kept."""

    @property
    def place(self) -> Place:
        """Where the run is kept, and what was found there."""
        ...

    @property
    def terminating(self) -> bool:
        """Whether the process was asked to end."""
        ...

    def resume(self) -> Saved | None:
        """Give the run as it was last saved, or None."""
        ...

    def is_due(self, step: int) -> bool:
        """Tell whether it is time for a checkpoint."""
        ...

    def append(self, series: Mapping[str, np.ndarray]) -> None:
        """Take in further draws, ``[component, chain, draw, ...]``."""
        ...

    def save(
        self, arrays: Mapping[str, Any], estimates: Mapping[str, np.ndarray], step: int
    ) -> None:
        """Make a checkpoint of the run at this step."""
        ...

    def complete(self, ended_early: bool) -> None:
        """Mark the run as complete: it was saved at its last step."""
        ...

    def stop(self) -> None:
        """End the process as it was asked to, saying how to go on."""
        ...


@runtime_checkable
class AbstractStore(Protocol):
    """A place that keeps runs."""

    def within(self, name: str) -> "AbstractStore":
        """Give the place for one of several runs."""
        ...

    def record(self, identity: Identity, contents: Contents) -> AbstractContextManager[Recording]:
        """Open the place for a run; refuse if it holds another."""
        ...

    def keep(self, kind: str, tree: Any) -> None:
        """Take in the result that rests on the runs: the name of its class and its tree."""
        ...
