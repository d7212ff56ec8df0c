"""The progress bar of a run, on the host, with chain health and the running estimate."""

from typing import TYPE_CHECKING, Any

import numpy as np

from slt_jax._types import host_float

if TYPE_CHECKING:
    from slt_jax.run import Run
    from slt_jax.sampling import Ledger


class ProgressBar:
    """A tqdm bar over steps that shows how many chains are finite and λ̂ so far."""

    def __init__(self, run: "Run", enabled: bool):
        self.run = run
        self.enabled = enabled
        self.bar: Any = None
        self._num_parts, self._num_draws = 0, 0
        self._sums: Any = 0.0

    def __enter__(self) -> "ProgressBar":
        if self.enabled:
            from tqdm.auto import tqdm

            self.bar = tqdm(
                total=self.run.settings.num_steps, initial=self.run.step, unit="step", leave=False
            )
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            # A short run is over before tqdm's next redraw: show where it ended.
            self.bar.refresh()
            self.bar.close()

    def show(self, ledger: "Ledger") -> None:
        """Move the bar to where the run is."""
        if self.bar is None:
            return
        alive = ledger.health.alive
        # Only what is new is read: a look at all draws after every chunk adds up.
        for part in ledger.traces["gap"][self._num_parts :]:
            self._sums = self._sums + part.sum(axis=-1, dtype=np.float64)
            self._num_draws += part.shape[-1]
        self._num_parts = len(ledger.traces["gap"])
        shown = {"chains": f"{int(alive.sum())}/{alive.size}"}
        if self._num_draws and alive.any():
            gap = float(np.mean(self._sums[alive])) / self._num_draws
            shown["LLC"] = f"{host_float(self.run.posterior.n_beta) * gap:.4g}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(ledger.step - self.bar.n)
