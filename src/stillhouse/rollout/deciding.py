"""Who writes the responses of a step: drawn anew every time, in one source by a threshold that follows the dev loss.

The draw of a step depends on (seed, step) alone, so all processes make the same one, and a resumed run makes it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillhouse import schedule

RISE = 0.1  # of the threshold, each time that the dev loss has risen
Uniform = Callable[[int], float]  # of an optimizer step, in [0, 1)


@dataclass(frozen=True)
class Decision:
    """What a step does.

    Attributes:
        write: the student answers the step's prompts.
        replay: the step learns from a sample of the replay buffer, after what was written now has joined it.
    """

    write: bool = False
    replay: bool = False

    @property
    def on_policy(self) -> bool:
        """Whether the step learns from what the student wrote, now or before."""
        return self.write or self.replay


class Deciding:
    """The decisions of a run; `threshold` and `reference` are what it remembers.

    Args:
        options: the recipe's `rollout`, settled.
        uniform: the number that a step draws.

    Attributes:
        threshold: how likely a step is on-policy (phi in DistiLLM), where the source is adaptive.
        reference: the dev loss at the last rise; None before the first one is known.
        insists: every step writes, whatever is drawn; for a rehearsal.
    """

    insists: bool = False

    def __init__(self, options: Mapping[str, Any], uniform: Uniform) -> None:
        self.options, self.source, self._uniform = options, options["source"], uniform
        self.threshold, self.reference = float(options.get("threshold", 0.0)), None

    @property
    def remembers(self) -> bool:
        """Whether what is written goes into a replay buffer."""
        return self.source == "adaptive" or (self.source == "mixed" and self.options["replay"])

    def decide(self, step: int, progress: float, *, full: bool) -> Decision:
        """What step `step` does, with `progress` of the run done.

        Args:
            full: whether the replay buffer is.
        """
        if self.source in ("student", "paired"):
            return Decision(write=True)
        if self.insists:
            return Decision(write=True, replay=self.source == "mixed" and self.options["replay"])
        drawn = self._uniform(step)
        if self.source == "mixed":
            on_policy = drawn < schedule.value_at(self.options["share"], progress)
            return Decision(write=on_policy, replay=on_policy and self.options["replay"])
        if self.source == "adaptive" and drawn < self.threshold:
            anew = drawn < self.threshold * self._anew(progress) or not full
            return Decision(write=anew, replay=not anew)
        return Decision()

    def _anew(self, progress: float) -> float:
        """The share of on-policy steps that write anew."""
        return {"decreasing": 1.0 - progress, "increasing": progress, "constant": 0.5}[self.options["replay_ratio"]]

    def evaluated(self, loss: float) -> None:
        """A dev loss has come: the threshold rises where the loss has, and does not fall where it has not."""
        if self.source != "adaptive" or not math.isfinite(loss):
            return
        if self.reference is None:
            self.reference = loss
        elif loss >= self.reference + self.options["loss_eps"]:
            self.threshold, self.reference = min(self.threshold + RISE, 1.0), loss


def by_seed(seed: int) -> Uniform:
    """The number that each step draws, of one seed."""
    return lambda step: float(np.random.default_rng([seed, step]).random())
