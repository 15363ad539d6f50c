"""How far training is, as methods see it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """The place of one optimizer step in its run.

    Attributes:
        step: optimizer steps that are done; 0 while the first one is taken.
        steps: optimizer steps of the whole run.
        epoch: passes over the data that are done; 1.5 is the middle of the second.
    """

    step: int = 0
    steps: int = 1
    epoch: float = 0.0

    @property
    def progress(self) -> float:
        """The share of the run that is done, in [0, 1]."""
        return min(1.0, self.step / max(1, self.steps))
