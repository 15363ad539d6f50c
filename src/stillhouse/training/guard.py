"""Numbers that are not finite never reach the weights: the step is skipped, counted, and its samples are named.

On a CPU the verdict is read at once. On an accelerator to read it would make the device wait at every step, so a fused
optimizer gets it as `found_inf` and skips by itself, and it is read with the next log line. An optimizer that cannot do
that is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from stillhouse.mistakes import Mistake, shorten
from stillhouse.training import processes

ADVICE = "look at these samples, or lower training.learning_rate"
SITES = ("loss", "gradient", "optimizer state")  # in the order in which one spoils the next


@dataclass(frozen=True)
class _MicroBatch:
    loss: Tensor
    sums: Mapping[str, Tensor]
    samples: Tensor  # [B]
    peaks: Sequence[tuple[Tensor, Tensor]]  # of rows, [N], and the example of each, [N]

    def culprits(self) -> list[int]:
        """The numbers of the samples whose hidden states are not finite, or of all where the fault came later."""
        places = {place for peaks, example in self.peaks for place in example[~torch.isfinite(peaks)].tolist()}
        numbers = self.samples.tolist()
        return [numbers[place] for place in sorted(places)] or numbers


@dataclass(frozen=True)
class Bad:
    """One step that was not taken.

    Attributes:
        step: its number, from 1.
        site: the first thing that was not finite: one of `SITES`; of a loss, with the terms that were not.
        samples: where its rows were read; of a loss, those whose hidden states are not finite (in a packed row
            attention carries that to neighbours), else those of the micro-batches that had it.
    """

    step: int
    site: str
    samples: list[str]

    def __str__(self) -> str:
        return f"step {self.step} skipped: {self.site} is not finite; samples {_listed(self.samples)}"


class Guard:
    """Watches every optimizer step of one run.

    Args:
        origins: where each sample was read, by the number that batches give it.
        stop_after: how many skipped steps in a row end the run.
    """

    def __init__(self, origins: Mapping[int, str], stop_after: int) -> None:
        self.origins, self.stop_after = origins, stop_after
        self.skipped, self._in_a_row = 0, 0
        self._seen: list[_MicroBatch] = []
        self._unread: list[tuple[int, Tensor, list[_MicroBatch]]] = []

    def saw(
        self,
        loss: Tensor,
        sums: Mapping[str, Tensor],
        samples: Tensor,
        peaks: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> None:
        """One micro-batch: its loss, the named sums taken with it, its samples' numbers [B], and `Distiller.peaks`."""
        detached = {name: value.detach() for name, value in sums.items()}
        self._seen.append(_MicroBatch(loss.detach(), detached, samples, peaks))

    def judge(
        self, step: int, norm: Tensor | float, optimizer: Optimizer, over_ranks: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Whether this step must not be taken, as a tensor on the device of its losses; `read` tells the rest.

        `over_ranks` adds up over processes: they skip together, or their weights part.
        """
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        losses = torch.stack([batch.loss for batch in self._seen])
        states = torch.ones((), dtype=torch.bool, device=losses.device)
        for group in optimizer.param_groups:
            states = states & _all_finite(_states(optimizer, group["params"]), losses.device)
        norms = torch.isfinite(torch.as_tensor(norm, device=losses.device)).all()
        finite = torch.stack([torch.isfinite(losses).all(), norms, states])  # of each of SITES
        bad = over_ranks((~finite).float()) > 0.0
        self._unread.append((step, bad, self._seen))
        self._seen = []
        return bad.any()

    def read(self) -> list[Bad]:
        """The skipped steps since the last look.

        Raises:
            Mistake: as many in a row as the run may have.
        """
        found = []
        for step, bad, batches in self._unread:
            sites = [site for site, is_bad in zip(SITES, bad.tolist(), strict=True) if is_bad]
            if not sites:
                self._in_a_row = 0
                continue
            self._in_a_row += 1
            self.skipped += 1
            culprits = [batch for batch in batches if not bool(torch.isfinite(batch.loss))]
            terms = processes.joined([name for batch in culprits for name in _not_finite(batch.sums)])
            site = sites[0] + (f" ({', '.join(dict.fromkeys(terms))})" if terms else "")
            named = processes.joined(self._named([number for batch in culprits for number in batch.culprits()]))
            everything = [number for batch in batches for number in batch.samples.tolist()]
            found.append(Bad(step, site, named or processes.joined(self._named(everything))))
        self._unread = []
        if self._in_a_row >= self.stop_after:
            last = found[-1]
            wrong = f"{self._in_a_row} steps in a row were not finite, the last one {last.step}"
            raise Mistake(shorten(_listed(last.samples), 60), wrong, ADVICE)
        return found

    def _named(self, numbers: list[int]) -> list[str]:
        return [self.origins[number] for number in dict.fromkeys(numbers)]  # paired, a sample is there twice


def skip(optimizer: Optimizer, bad: Tensor) -> None:
    """Make the next `optimizer.step()` change nothing where `bad` is true."""
    if bad.device.type != "cpu" and all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = bad.to(torch.float32)  # pyright: ignore[reportAttributeAccessIssue] - as GradScaler does
    elif bool(bad):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


def _not_finite(sums: Mapping[str, Tensor]) -> list[str]:
    return [name for name, value in sums.items() if not bool(torch.isfinite(value))]


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
