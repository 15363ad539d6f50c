"""A thin `transformers.Trainer`: one global reduction, our evaluation, checkpoints through the store.

The loss of an optimizer step is the sum over its scored tokens divided by their number over all micro-batches and
ranks, so it does not depend on how the batch is split. (TAID's loop takes the mean of every micro-batch's own mean;
`parity="taid"` does so too.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME

from stillhouse.data.dataset import EncodedDataset
from stillhouse.methods import Clock
from stillhouse.mistakes import Mistake
from stillhouse.model_folders import epoch_name
from stillhouse.training import processes
from stillhouse.training.budget import TokenBudget
from stillhouse.training.checkpoints import LAST, keep_best, load_sharded, load_weights, save_weights
from stillhouse.training.corpus import Corpus
from stillhouse.training.distiller import Distiller
from stillhouse.training.guard import ADVICE, Guard, skip
from stillhouse.training.log import logger
from stillhouse.training.meters import Means, Meters, peak_memory
from stillhouse.training.on_policy import OnPolicy
from stillhouse.training.optimizer import dskd_groups, dskd_schedule, give_named_groups, give_own_groups, taid_groups
from stillhouse.training.sampling import LengthGrouped

Evaluate = Callable[[nn.Module, Distiller], dict[str, float]]
Parity = Literal[False, "dskd", "taid"]
# What of a batch a distiller is given.
_FED = (
    "input_ids", "attention_mask", "labels", "scored_at", "packed", "predicted", "teacher", "pairing", "sampled",
    "corpus",
)  # fmt: skip


class DistillationTrainer(Trainer):
    """Trains a `Distiller`.

    Args:
        distiller: student, method and teacher.
        args: transformers' own arguments; `output_dir` is the run's folder.
        tokenizer: saved beside the weights.
        evaluate: gives the metrics of an evaluation from the wrapped and the bare distiller, or None for none.
        keep_best_of: how many epoch checkpoints are kept.
        guard: what watches for numbers that are not finite.
        save_every: steps between two versions of `last/` within an epoch; None: at the end of epochs only.
        parity: optimizer groups, learning rates and reduction of an official loop: the DSKD line's or TAID's.
        budget: the batches, where their size is a number of tokens; else a number of examples.
        on_policy: who writes the responses, where the student has a part in that.
        corpus: text that is learnt beside.
        param_groups: parameters by the patterns of their names that have a learning rate or a decay of their own.
    """

    loss_is_scaled_for_ga = True  # `compute_loss` divides by the count over the whole accumulation window

    def __init__(
        self,
        distiller: Distiller,
        args: TrainingArguments,
        tokenizer: PreTrainedTokenizerBase,
        evaluate: Evaluate | None,
        keep_best_of: int,
        parity: Parity,
        guard: Guard,
        save_every: int | None,
        budget: TokenBudget | None = None,
        param_groups: Sequence[dict[str, Any]] = (),
        on_policy: OnPolicy | None = None,
        corpus: Corpus | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model=distiller, args=args, **options)
        self.distiller, self.tokenizer, self.run_folder = distiller, tokenizer, Path(str(args.output_dir))
        self._evaluate_distiller, self._keep, self._parity = evaluate, keep_best_of, parity
        self._param_groups, self.on_policy, self._corpus = param_groups, on_policy, corpus
        if on_policy is not None:
            on_policy.autocast = lambda: self.accelerator.autocast()
        self.save_every, self.epoch_is_over, self.budget = save_every, False, budget
        self.order: TokenBudget | LengthGrouped | None = budget
        self._guard, self._bad = guard, torch.zeros((), dtype=torch.bool)
        self._meters, self._step_means, self._metrics = Meters(), Means(), {}
        # Labels are already shifted, and their number over the window is handed to `compute_loss`.
        self.model_accepts_loss_kwargs, self._loss_shifts_labels = True, False
        if distiller.teacher is not None:
            distiller.teacher.to(args.device)
        self.add_callback(_Moments(self))

    @property
    def clock(self) -> Clock:
        """The place of the step that is being taken."""
        return Clock(self.state.global_step, self.state.max_steps, self.state.epoch or 0.0)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Sum over this micro-batch's tokens (or sequences) ÷ their number in the whole optimizer step of all ranks."""
        assert num_items_in_batch is not None and not return_outputs
        loss, sums = model(**{name: inputs.get(name) for name in _FED}, clock=self.clock)
        real = inputs["attention_mask"] if "packed" not in inputs else torch.ones_like(inputs["input_ids"])  # [B, L]
        scored = self._units(inputs)
        self._guard.saw(loss, sums, inputs["sample"], self.distiller.peaks)
        if self._parity == "taid":
            loss, sums = loss / scored, {name: value / scored for name, value in sums.items()}
            self._watch(sums, 1, real)
            return loss / self.current_gradient_accumulation_steps
        self._watch(sums, scored, real)
        # DDP averages gradients over ranks; the count is already global, so the average is undone here.
        return loss * (self.accelerator.num_processes / num_items_in_batch)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor | int | None]:
        """The micro-batches of an optimizer step and their scored tokens; with what the teacher says of them."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.on_policy is not None and batches:
            batches = self.on_policy.step(batches, self.clock)
            count = self._get_num_items_in_batch(batches, device)
        if self._corpus is not None and batches and count is not None:
            batches = self._corpus.beside(batches, self.state.global_step, int(count))
        return self._asked_ahead(batches), count

    def _asked_ahead(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`batches` with what the teacher says of several of them at once, where it is asked so."""
        teacher = self.distiller.teacher
        if teacher is None or teacher.window == 1 or len(batches) < 2 or not self.distiller.method.needs_teacher:
            return batches
        if "predicted" in batches[0]:  # to appraise what was written
            return batches
        asked: list[Any] = [self._prepare_inputs(batch) for batch in batches]
        # Predictions are no tensors, so that no wrapper of the student casts what the teacher said.
        for batch, predicted in zip(
            asked, teacher.predict_all([batch.get("teacher", batch) for batch in asked]), strict=True
        ):
            batch["predicted"] = predicted
        return asked

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | int | None:
        """Scored tokens of an optimizer step over all ranks, or its sequences, as the method's loss is a mean of."""
        if self.distiller.method.unit == "token":
            return super()._get_num_items_in_batch(batch_samples, device)
        return self._summed_over_ranks(torch.tensor(sum(map(self._units, batch_samples)), device=device))

    def _units(self, batch: dict[str, Any]) -> int:
        """How many of what the method's loss is a mean of are in a micro-batch."""
        return batch["scored_at" if self.distiller.method.unit == "token" else "sample"].shape[0]

    def _watch(self, sums: dict[str, Tensor], weight: int, attention_mask: Tensor) -> None:
        self._meters.add(sums, weight, attention_mask)
        if self.distiller.method.follows_means:
            self._step_means.add(sums, weight)

    def after_step(self) -> None:
        """Tell the method how the step went that was just taken, before it is counted."""
        means = self._step_means.read(self._summed_over_ranks)
        if self._bad.is_cpu and bool(self._bad):
            return
        self.distiller.method.after_step(means, self.clock)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float:
        """The norm; and here, between the gradient and the update, numbers that are not finite are caught."""
        norm = super()._get_grad_norm(model, grad_norm)
        assert isinstance(norm, Tensor | float)
        step = self.state.global_step + 1
        self._bad = self._guard.judge(step, norm, self.optimizer, self._summed_over_ranks)
        if self.is_deepspeed_enabled and bool(self._bad):
            raise Mistake(f"step {step}", "loss or gradient is not finite, and DeepSpeed has taken it already", ADVICE)
        skip(getattr(self.optimizer, "optimizer", self.optimizer), self._bad)
        if self._bad.is_cpu:
            self._tell_of_skipped()
        return norm

    def _tell_of_skipped(self) -> None:
        for bad in self._guard.read():
            logger.info(str(bad))

    def _summed_over_ranks(self, sums: Tensor) -> Tensor:
        total = self.accelerator.reduce(sums, "sum")
        assert isinstance(total, Tensor)
        return total

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int] | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(dataset, EncodedDataset):
            return super()._get_train_sampler(train_dataset)
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        self.order = LengthGrouped(dataset.lengths.tolist(), step, self.args.seed)
        return self.order

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The Trainer's own, or batches of so many tokens; accelerate deals whole batches out to the processes."""
        if self.budget is None:
            return super().get_train_dataloader()
        assert isinstance(self.train_dataset, EncodedDataset)
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self.budget,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with the Trainer's groups, or with an official loop's in parity mode; and the method's own groups."""
        if self.optimizer is not None:
            return self.optimizer
        if self._parity:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            of_loop = taid_groups if self._parity == "taid" else dskd_groups
            self.optimizer = kind(of_loop(self.distiller, self.args.weight_decay), **options)
        optimizer = super().create_optimizer(model)
        give_own_groups(optimizer, self.distiller.method.parameter_groups())
        give_named_groups(optimizer, self.distiller, self._param_groups)
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule of the arguments (TAID's loop: a cosine to 0), or the DSKD line's cosine to 1e-7."""
        if self._parity == "dskd" and self.lr_scheduler is None:
            self.lr_scheduler = dskd_schedule(optimizer or self.optimizer, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor | None:
        """The global norm in fp64 on CPU: torch's fp32 sum over an embedding's millions is off by 1e-3 there."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if self._sharded or not all(gradient.is_cpu for gradient in gradients):
            return super()._clip_grad_norm(model)
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients]
        total = torch.linalg.vector_norm(torch.stack(norms))
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), self.args.max_grad_norm, total)
        return total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means a scored token since the last training line, and the method's gauges, to that line."""
        if "loss" in logs:
            self._tell_of_skipped()
            if self._guard.skipped:
                logs["skipped_steps"] = self._guard.skipped
            logs.update(self._meters.read(self._summed_over_ranks))
            taken = replace(self.clock, step=max(0, self.state.global_step - 1))
            logs.update({name: float(value) for name, value in self.distiller.method.gauges(taken).items()})
            if self.on_policy is not None:
                logs.update(self.on_policy.gauges())
        if "train_runtime" in logs:
            logs["peak_memory_gib"] = peak_memory(self.args.device)
        super().log(logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:  # type: ignore[override]
        """Dev loss, and ROUGE-L of generated answers, of the student as it is now."""
        assert self._evaluate_distiller is not None
        with self._meters.paused():
            assert isinstance(self.model_wrapped, nn.Module)
            self._metrics = self._evaluate_distiller(self.model_wrapped, self.distiller)
        if self.on_policy is not None:
            self.on_policy.deciding.evaluated(self._metrics["eval_loss"])
        self.log(dict(self._metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, self._metrics)
        return self._metrics

    @property
    def _sharded(self) -> bool:
        """Whether no process has all weights."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run, step = self.run_folder, self.state.global_step
        name = epoch_name(round(self.state.epoch or 0.0) or 1, step, self._metrics)
        with self._meters.paused():
            state: Any = self.accelerator.get_state_dict(self.model_wrapped) if self._sharded else None
            if self.epoch_is_over:
                processes.by_first(lambda: keep_best(run, name, self.distiller, self.tokenizer, self._keep, state))
            with processes.written_together(run / LAST, keep_previous=True) as folder:
                if processes.is_first():
                    save_weights(folder, self.distiller, self.tokenizer, state)
                    self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
                if self.on_policy is not None:
                    self.on_policy.save(folder)
                self._save_optimizer_and_scheduler(str(folder))
                self._save_scaler(str(folder))
                self._save_rng_state(str(folder))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Optimizer and schedule; without the second, pickled copy of the weights that the Trainer adds under FSDP."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.is_fsdp_enabled and processes.is_first():
            (Path(output_dir) / "pytorch_model_fsdp.bin").unlink(missing_ok=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load = load_sharded if self.is_fsdp_enabled else load_weights
        load(Path(resume_from_checkpoint), self.distiller)
        if self.on_policy is not None:
            self.on_policy.load(Path(resume_from_checkpoint))


class _Moments(TrainerCallback):
    """The moments between steps that the Trainer tells to callbacks alone."""

    def __init__(self, trainer: DistillationTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """What is measured before the first step."""
        if self.trainer.on_policy is not None:
            assert isinstance(self.trainer.model_wrapped, nn.Module)
            self.trainer.on_policy.begin(self.trainer.model_wrapped, state.global_step)

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The order of the epoch's batches; of several processes the Trainer does not say it after a resume."""
        if self.trainer.order is not None:
            self.trainer.order.set_epoch(int(state.epoch or 0.0))

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Another step of the epoch."""
        self.trainer.epoch_is_over = False

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Between an optimizer step and its being counted."""
        self.trainer.after_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Refresh `last/` every so many steps; the window of means closes with it, so that a resume writes the same.

        Not at the last step of an epoch: a resume from there would begin the next one, without this one's evaluation.
        """
        ends_epoch = float(state.epoch or 0.0).is_integer() or state.global_step >= state.max_steps
        if self.trainer.save_every is not None and state.global_step % self.trainer.save_every == 0 and not ends_epoch:
            control.should_save = control.should_log = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """What is saved now is an epoch's checkpoint."""
        self.trainer.epoch_is_over = True
