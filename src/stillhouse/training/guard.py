"""Numbers that are not finite never reach the weights: the step is skipped, counted, and its samples are named.

On a CPU the verdict is read at once. On an accelerator to read it would make the device wait at every step, so a fused
optimizer gets it as `found_inf` and skips by itself, and it is read with the next log line. An optimizer that cannot do
that is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from stillhouse.mistakes import Mistake, shorten
from stillhouse.training import processes

ADVICE = "look at these samples, or lower training.learning_rate"


@dataclass(frozen=True)
class Bad:
    """One step that was not taken.

    Attributes:
        step: its number, from 1.
        samples: where its rows were read.
    """

    step: int
    samples: list[str]

    def __str__(self) -> str:
        return f"step {self.step} skipped: loss or gradient is not finite; samples {_listed(self.samples)}"


class Guard:
    """Watches every optimizer step of one run.

    Args:
        origins: where each sample was read, by the number that batches give it.
        stop_after: how many skipped steps in a row end the run.
    """

    def __init__(self, origins: Mapping[int, str], stop_after: int) -> None:
        self.origins, self.stop_after = origins, stop_after
        self.skipped, self._in_a_row = 0, 0
        self._losses: list[tuple[Tensor, Tensor]] = []
        self._unread: list[tuple[int, Tensor, list[tuple[Tensor, Tensor]]]] = []

    def saw(self, loss: Tensor, samples: Tensor) -> None:
        """One micro-batch: its loss, and the numbers of its samples [B]."""
        self._losses.append((loss.detach(), samples))

    def judge(
        self, step: int, norm: Tensor | float, optimizer: Optimizer, over_ranks: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Whether this step must not be taken, as a tensor on the device of its losses; `read` tells the rest.

        `over_ranks` adds up over processes: they skip together, or their weights part.
        """
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        losses = torch.stack([loss for loss, _ in self._losses])
        finite = torch.isfinite(losses).all() & torch.isfinite(torch.as_tensor(norm, device=losses.device))
        for group in optimizer.param_groups:
            finite = finite & _all_finite(_states(optimizer, group["params"]), losses.device)
        bad = over_ranks((~finite).float()) > 0.0
        self._unread.append((step, bad, self._losses))
        self._losses = []
        return bad

    def read(self) -> list[Bad]:
        """The skipped steps since the last look.

        Raises:
            Mistake: as many in a row as the run may have.
        """
        found = []
        for step, bad, losses in self._unread:
            if not bool(bad):
                self._in_a_row = 0
                continue
            self._in_a_row += 1
            self.skipped += 1
            culprits = [samples for loss, samples in losses if not bool(torch.isfinite(loss))]
            named = processes.joined(self._named(culprits))
            found.append(Bad(step, named or processes.joined(self._named([samples for _, samples in losses]))))
        self._unread = []
        if self._in_a_row >= self.stop_after:
            last = found[-1]
            wrong = f"{self._in_a_row} steps in a row were not finite, the last one {last.step}"
            raise Mistake(shorten(_listed(last.samples), 60), wrong, ADVICE)
        return found

    def _named(self, batches: list[Tensor]) -> list[str]:
        return [self.origins[number] for batch in batches for number in batch.tolist()]


def skip(optimizer: Optimizer, bad: Tensor) -> None:
    """Make the next `optimizer.step()` change nothing where `bad` is true."""
    if bad.device.type != "cpu" and all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = bad.to(torch.float32)  # pyright: ignore[reportAttributeAccessIssue] - as GradScaler does
    elif bool(bad):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


def _listed(samples: list[str]) -> str:
    """Every file once, with its lines: train.jsonl:3, 4, 9."""
    by_file: dict[str, list[str]] = {}
    for sample in samples:
        file, _, line = sample.rpartition(":")
        by_file.setdefault(file, []).append(line)
    return "; ".join(f"{file}:{shorten(', '.join(lines), 80)}" for file, lines in by_file.items())


def _states(optimizer: Optimizer, parameters: Iterable[Tensor]) -> list[Tensor]:
    kept = (value for parameter in parameters for value in optimizer.state.get(parameter, {}).values())
    tensors = (value for value in kept if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0)
    return [value.to_local() if isinstance(value, DTensor) else value for value in tensors]


def _all_finite(tensors: list[Tensor], device: torch.device) -> Tensor:
    # The highest absolute value is NaN or infinite where anything is; one pass, no copies.
    peaks = [torch.linalg.vector_norm(tensor, torch.inf).to(device) for tensor in tensors if tensor.numel()]
    return torch.isfinite(torch.stack(peaks)).all() if peaks else torch.ones((), dtype=torch.bool, device=device)
