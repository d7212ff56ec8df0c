"""The progress bar of a run, on the host, with chain health and the running estimate."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from slt_jax.run import Run
    from slt_jax.sampling import Ledger


class ProgressBar:
    """A tqdm bar over steps that shows how many chains are finite and λ̂ so far."""

    def __init__(self, run: "Run", enabled: bool):
        self.run = run
        self.enabled = enabled
        self.bar: Any = None

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
        alive, gap = ledger.health.alive, ledger.gap()
        shown = {"chains": f"{int(alive.sum())}/{alive.size}"}
        if gap.shape[-1] and alive.any():
            estimate = float(self.run.posterior.n_beta) * float(np.mean(gap[alive]))
            shown["LLC"] = f"{estimate:.4g}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(ledger.step - self.bar.n)
