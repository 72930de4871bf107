"""How well every block of the denoiser aligns (Eq. 14): means over the samples since the log's last line."""

from __future__ import annotations

from torch import Tensor


class BlockAlignment:
    """Sums r = 1 - correlation per block where it is computed; nothing leaves the device before `figures`."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._samples = 0

    def add(self, per_block: Tensor) -> None:
        """Add r (L, B') of the B' samples that had targets; B' may be 0."""
        sums = per_block.double().sum(dim=1)
        self._sums = sums if self._sums is None else self._sums + sums
        self._samples += per_block.shape[1]

    def figures(self) -> dict[str, float]:
        """Return the mean r of each block since the last call; nothing if no sample had targets."""
        if not self._samples:
            return {}
        means = (self._sums / self._samples).tolist()
        self._sums, self._samples = None, 0
        return {f"alignment/block_{number:02d}": mean for number, mean in enumerate(means)}
