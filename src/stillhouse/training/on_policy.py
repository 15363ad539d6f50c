"""Optimizer steps on what the student writes itself: who writes is decided once a step, before its micro-batches.

    micro-batches of the data set -> decide -> write | take from the buffer -> items -> micro-batches of the same sizes

Everything that is drawn depends on (seed, step, example) and not on processes or micro-batches; buffer and threshold
are the same in all processes. So a step has the same gradient however it is split, and a resumed run goes on as it
would have. The number of scored tokens by which a loss is divided is counted after this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse import store
from stillhouse.adapters import is_adapted
from stillhouse.head import Predictions, Sampled
from stillhouse.methods import Clock
from stillhouse.mistakes import Mistake
from stillhouse.rollout import Engine, Response, Sampling, engine_of, respond
from stillhouse.rollout.deciding import Deciding, by_seed
from stillhouse.rollout.drawing import Seed
from stillhouse.rollout.replay import Replay, Rollout, from_arrays, to_arrays
from stillhouse.rollout.server import Server
from stillhouse.training import processes
from stillhouse.training.advantages import noted, whitened
from stillhouse.training.distiller import Distiller
from stillhouse.training.rewriting import Item, OwnTokens
from stillhouse.training.window import Window

Batch = dict[str, Any]
STATE, SAMPLES, SERVED = "rollout.safetensors", "samples.jsonl", "served"
SHOWN = 4  # responses of a look at what is written
_DRAW, _BUFFER = 1, 2  # what a seed is for, beside the writing of an example


@dataclass
class _Window:
    """What one process wrote for a step, cut into micro-batches, while further steps learn from it."""

    rollouts: list[list[Rollout]]
    left: int


class OnPolicy:
    """Who writes the responses of a run.

    Args:
        options: the recipe's `rollout`, settled, of a source in which the student writes.
        distiller: student, method and teacher.
        tokenizer: the student's.
        items: makes items of what is written.
        collate: makes batches of items.
        stop: ids of tokens that end a response, besides the end of a text.
        max_length: tokens of prompt and response.
        seed: of the run.
        folder: of the run.
        dev_loss: the loss on the dev rows, for a source that goes by it.
        said: what the student answered before training, by sample; None: it writes now.
        window: what is written at once for more than a step; None: every step's prompts are the data set's.

    Attributes:
        autocast: in which precision the student writes; the trainer's own.
    """

    def __init__(
        self,
        options: dict[str, Any],
        distiller: Distiller,
        tokenizer: PreTrainedTokenizerBase,
        items: OwnTokens,
        collate: Callable[[Sequence[Item]], Batch],
        *,
        stop: Sequence[int],
        max_length: int,
        seed: int,
        folder: Path,
        dev_loss: Callable[[torch.nn.Module, torch.device], float] | None = None,
        said: Mapping[int, Rollout] | None = None,
        window: Window | None = None,
    ) -> None:
        self.options, self.distiller, self.tokenizer = options, distiller, tokenizer
        self.items, self.collate, self.stop, self.max_length = items, collate, tuple(stop), max_length
        self.seed, self.folder, self._dev_loss, self._said = seed, folder, dev_loss, said
        self.deciding = Deciding(options, by_seed(int(np.random.SeedSequence([seed, _DRAW]).generate_state(1)[0])))
        self.replay = Replay(options.get("capacity", 1))
        self.autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._window: _Window | None = None
        self._at_once = window
        self._server = None if options["server"] == "none" else _server(options, distiller.student)
        self._counts = dict.fromkeys(
            ("steps", "on_policy", "written", "tokens", "unfinished", "empty", "unreadable"), 0
        )
        self._shown_at = -1
        longest = options["max_new_tokens"] or max_length
        self._sampling = Sampling(longest, options["temperature"], options["top_p"], options["top_k"])

    def begin(self, wrapped: torch.nn.Module, step: int) -> None:
        """Before the first step, or the one after a resume: the dev loss that later ones are compared with."""
        shown = self.folder / SAMPLES
        if processes.is_first() and shown.exists():  # what an interrupted run wrote past its checkpoint comes again
            store.rewrite_lines(shown, [line for line in store.read_lines(shown) if json.loads(line)["step"] < step])
        if self.deciding.source == "adaptive" and self.deciding.reference is None and self._dev_loss is not None:
            wrapped.eval()
            self.deciding.evaluated(self._dev_loss(wrapped, self.distiller.student.device))
            wrapped.train()

    def step(self, batches: list[Batch], clock: Clock) -> list[Batch]:
        """The micro-batches that the optimizer step learns from, in place of the data set's `batches`."""
        self._counts["steps"] += 1
        samples = [batch["sample"].tolist() for batch in batches]
        if self._at_once is not None:
            self._counts["on_policy"] += 1
            return self._from_window(self._at_once, [len(part) for part in samples], clock.step)
        window = self._window
        if window is not None and window.left and len(window.rollouts) == len(samples):
            window.left -= 1
            self._counts["on_policy"] += 1
            return self._collated(window.rollouts, samples)
        decision = self.deciding.decide(clock.step, clock.progress, full=self.replay.full)
        if not decision.on_policy:
            return [_with_notes(batch, []) for batch in batches]
        self._counts["on_policy"] += 1
        rollouts = self._written(samples, clock.step) if decision.write else []
        if decision.write and self.deciding.remembers:
            fresh = processes.joined([one for part in rollouts for one in part])
            self.replay.push(sorted(fresh, key=lambda one: one.sample))
        if decision.replay:
            rollouts = self._replayed(samples, clock.step)
        made = self._collated(rollouts, samples)
        if decision.write and self.distiller.method.appraises:
            made, rollouts = self._appraised(made, rollouts)
        self._window = _Window(rollouts, self.options.get("reuse", 1) - 1)
        return made

    def _from_window(self, window: Window, parts: list[int], step: int) -> list[Batch]:
        """The next micro-batches of a window, as large as `parts` says; where it is used up, of a new one."""
        if window.used:
            asked, turns = window.asked()
            written = self._answered(asked, step, turns)
            window.fill(self._valued(written, max(parts)) if self.distiller.method.appraises else written)
        taken = window.take(parts)
        return self._collated(taken, [[one.sample for one in part] for part in taken])

    def _valued(self, written: list[Rollout], batch: int) -> list[Rollout]:
        """`written` appraised, so many at a time: the teacher's predictions are not kept as long as a window lasts."""
        parts = [written[at : at + batch] for at in range(0, len(written), batch)]
        asked = (
            _to(one, self.distiller.student.device)
            for one in self._collated(parts, [[one.sample for one in part] for part in parts])
        )
        worths = [worth for one in asked for worth in self._worths([one])[1]]
        return [one for part in noted(parts, whitened(worths)) for one in part]

    def _written(self, samples: list[list[int]], step: int) -> list[list[Rollout]]:
        """What the student answers to the prompts of every micro-batch, or has answered before."""
        if self._said is not None:
            return [[self._said[sample] for sample in part] for part in samples]
        flat = [sample for part in samples for sample in part]
        places = iter(self._answered(flat, step, [()] * len(flat)))
        return [[next(places) for _ in part] for part in samples]

    def _answered(self, flat: list[int], step: int, turns: Sequence[Seed]) -> list[Rollout]:
        """What the student answers to prompts; `turns` goes into what each is drawn with."""
        prompts = [self.items.prompt(sample) for sample in flat]
        share = self.options.get("teacher_mix", 0.0)
        teacher = self.distiller.teacher
        with self.autocast(), torch.no_grad():
            responses = respond(
                self._author(),
                self.tokenizer,
                prompts,
                self._sampling,
                seed=[(self.seed, step, sample, *turn) for sample, turn in zip(flat, turns, strict=True)],
                batch_size=self.options["batch_size"],
                description=None,
                max_length=self.max_length,
                stop=self.stop,
                beside=teacher.model if share and teacher is not None else None,
                share=share,
            )
        self._count(responses)
        self._show(flat, prompts, responses, step)
        return [_rollout(*one) for one in zip(flat, prompts, responses, strict=True)]

    def _author(self) -> PreTrainedModel | Engine:
        """What writes with the student as it is now; a server is given its weights."""
        student, options = self.distiller.student, self.options
        if self._server is not None:
            processes.by_first(lambda: self._serve(student))
            return self._server
        if options["engine"] == "batches":
            return student  # in which a teacher may have a share
        return engine_of(student, options["engine"], options["batch_size"])

    def _serve(self, student: PreTrainedModel) -> None:
        assert self._server is not None
        with store.write_folder(self.folder / SERVED) as folder:
            student.save_pretrained(folder)
        self._server.take(self.folder / SERVED)
        store.remove_folder(self.folder / SERVED)

    def _replayed(self, samples: list[list[int]], step: int) -> list[list[Rollout]]:
        """This process's share of a sample of the buffer, as many as it has prompts."""
        mine = sum(len(part) for part in samples)
        everybody = processes.joined([mine])
        before = sum(everybody[: processes.rank()])
        drawn = iter(self.replay.sample(sum(everybody), [self.seed, _BUFFER, step, 0])[before : before + mine])
        return [[next(drawn) for _ in part] for part in samples]

    def _collated(self, rollouts: list[list[Rollout]], samples: list[list[int]]) -> list[Batch]:
        """A batch of each part; of text that leaves either tokenizer nothing to learn the data set's, if it is all."""
        made: list[Batch] = []
        for part, asked in zip(rollouts, samples, strict=True):
            items = [item for one in part if (item := self.items.item(one)) is not None]
            self._counts["unreadable"] += len(part) - len(items)
            if not items:
                items = [self.items.given(sample) for sample in asked]
            elif self.deciding.source == "paired":
                items = [*(self.items.beside(item["sample"]) for item in items), *items]
            made.append(_with_notes(self.collate(items), items))
        return made

    def _appraised(
        self, batches: list[Batch], rollouts: list[list[Rollout]]
    ) -> tuple[list[Batch], list[list[Rollout]]]:
        """With what the method thinks each token worth: mean 0 and variance 1 over the step's tokens of all ranks."""
        asked = [_to(batch, self.distiller.student.device) for batch in batches]
        predicted, worths = self._worths(asked)
        values = whitened(worths)
        for batch, said, value in zip(asked, predicted, values, strict=True):
            batch["sampled"]["advantage"] = value.float()
            batch["predicted"] = said
        return asked, noted(rollouts, values)

    def _worths(self, asked: list[Batch]) -> tuple[list[Predictions], list[Tensor]]:
        """What the teacher says of each batch, and what the method thinks each of its tokens worth, in fp64."""
        teacher, method = self.distiller.teacher, self.distiller.method
        assert teacher is not None
        predicted = teacher.predict_all(asked)
        return predicted, [
            method.appraise(said, Sampled(**batch["sampled"])).double()
            for said, batch in zip(predicted, asked, strict=True)
        ]

    def _count(self, responses: Sequence[Response]) -> None:
        self._counts["written"] += len(responses)
        self._counts["tokens"] += sum(len(said.ids) for said in responses)
        self._counts["unfinished"] += sum(not said.finished for said in responses)
        self._counts["empty"] += sum(not said.text.strip() for said in responses)

    def gauges(self) -> dict[str, float]:
        """What was written since the last call, over all processes; then start anew."""
        counts = dict(
            zip(self._counts, processes.summed([float(value) for value in self._counts.values()]), strict=True)
        )
        self._counts = dict.fromkeys(self._counts, 0)
        line = {"on_policy": counts["on_policy"] / max(counts["steps"], 1.0)}
        if self.deciding.source == "adaptive":
            line["threshold"] = self.deciding.threshold
        if self.deciding.remembers:
            line["replay"] = float(len(self.replay))
        if written := counts["written"]:
            line["written_tokens"] = counts["tokens"] / written
            line |= {name: counts[name] / written for name in ("unfinished", "empty")}
        return line | ({"unreadable": counts["unreadable"]} if counts["unreadable"] else {})

    def _show(self, samples: list[int], prompts: list[list[int]], responses: Sequence[Response], step: int) -> None:
        """Every so many steps the first responses, as a table of JSON lines in the run's folder."""
        every = int(self.options["show_every"])
        if not every or (self._shown_at >= 0 and step // every == self._shown_at // every):
            return
        self._shown_at = step
        if not processes.is_first():
            return
        for sample, prompt, said in list(zip(samples, prompts, responses, strict=True))[:SHOWN]:
            line = {
                "step": step,
                "sample": sample,
                "prompt": self.tokenizer.decode(prompt),
                "response": said.text,
                "tokens": len(said.ids),
                "finished": said.finished,
            }
            store.append_line(self.folder / SAMPLES, json.dumps(line, ensure_ascii=False))

    def save(self, folder: Path) -> None:
        """Write what the next process goes on with; every process takes part, the first one writes."""
        window = self._window if self._window is not None and self._window.left else None
        everybody = processes.joined([] if window is None else [(window.rollouts, window.left)])
        if not processes.is_first():
            return
        reference = self.deciding.reference
        state = {
            "shown_at": torch.tensor(self._shown_at),
            "threshold": torch.tensor(self.deciding.threshold, dtype=torch.float64),
            "reference": torch.tensor(float("nan") if reference is None else reference, dtype=torch.float64),
            **to_arrays(self.replay.as_list(), "replay"),
        }
        if self._at_once is not None:
            state |= self._at_once.state()
        if everybody:  # all processes are at the same place
            parts = [part for rollouts, _ in everybody for part in rollouts]
            state |= to_arrays([one for part in parts for one in part], "window")
            state["window.parts"] = torch.tensor([len(part) for part in parts])
            state["window.left"] = torch.tensor(everybody[0][1])
            state["window.processes"] = torch.tensor(len(everybody))
        save_file(state, folder / STATE)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote; a window of another number of processes is not taken up."""
        state = load_file(folder / STATE)
        reference = float(state["reference"])
        self._shown_at = int(state["shown_at"])
        self.deciding.threshold = float(state["threshold"])
        self.deciding.reference = None if np.isnan(reference) else reference
        self.replay.push(from_arrays(state, "replay"))
        if self._at_once is not None:
            self._at_once.load(state)
        if "window.left" in state and int(state["window.processes"]) == len(processes.joined([0])):
            rollouts = iter(from_arrays(state, "window"))
            parts = [[next(rollouts) for _ in range(size)] for size in state["window.parts"].tolist()]
            each = len(parts) // int(state["window.processes"])
            mine = processes.rank() * each
            self._window = _Window(parts[mine : mine + each], int(state["window.left"]))


def _server(options: dict[str, Any], student: PreTrainedModel) -> Server:
    """The server that will write as the student."""
    if is_adapted(student):
        raise Mistake(
            "student.model", "is an adapter, whose weights a server cannot take", "merge it: stillhouse export"
        )
    vocabulary = student.config.get_text_config().vocab_size
    return Server.at(options["server"], batch_size=options["batch_size"], vocabulary=vocabulary)


def _rollout(sample: int, prompt: list[int], said: Response) -> Rollout:
    notes = tuple(said.log_probability), tuple(said.importance), (0.0,) * len(said.ids)
    return Rollout(sample, tuple(prompt), tuple(said.ids), said.finished, *notes)


def _with_notes(batch: Batch, items: Sequence[Item]) -> Batch:
    """`batch` with "sampled", a `Sampled` as a dictionary; `items` are what it is of, none of the data set's own."""
    if not items:
        count = len(batch["scored_at"])
        by_student, notes = torch.zeros(count, dtype=torch.bool), _plain(count)
    else:
        counts = [int(item["scored"].sum()) for item in items]
        own = [bool(item.get("by_student")) for item in items]
        by_student = torch.tensor(own).repeat_interleave(torch.tensor(counts))
        of_each = [
            torch.from_numpy(item["notes"]).float() if "notes" in item else _plain(count)
            for item, count in zip(items, counts, strict=True)
        ]
        notes = torch.cat(of_each, -1)  # [3, N]
    names = ("log_probability", "importance", "advantage")
    sampled: dict[str, Tensor] = {"by_student": by_student, **dict(zip(names, notes, strict=True))}
    return {**batch, "sampled": {name: value.to(batch["labels"].device) for name, value in sampled.items()}}


def _plain(count: int) -> Tensor:
    """The notes [3, count] of tokens that nobody drew."""
    return torch.stack([torch.zeros(count), torch.ones(count), torch.zeros(count)])


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    return {name: _to(value, device) for name, value in batch.items()} if isinstance(batch, dict) else batch
