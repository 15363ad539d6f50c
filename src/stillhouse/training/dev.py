"""The evaluation at the end of every epoch: loss on held-out rows, and ROUGE-L of what the student writes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from stillhouse.data.collate import Collator
from stillhouse.data.encode import EncodedDataset, Limits
from stillhouse.data.rows import Row
from stillhouse.data.templates import Template
from stillhouse.evaluation import evaluate_rows
from stillhouse.recipe import Evaluation
from stillhouse.rollout import Sampling
from stillhouse.training import processes
from stillhouse.training.distiller import Distiller


@dataclass
class DevSet:
    """Held-out rows, encoded for the loss and raw for generation.

    Attributes:
        encoded: what the loss is taken on.
        rows: what the student answers.
        options: how, from the recipe.
    """

    encoded: EncodedDataset
    rows: list[Row]
    tokenizer: PreTrainedTokenizerBase
    template: Template
    limits: Limits
    collator: Collator
    options: Evaluation
    batch_size: int

    def __call__(self, wrapped: nn.Module, distiller: Distiller) -> dict[str, float]:
        """`eval_loss`, and with generation `eval_rougeL` and `eval_exact_match` (per cent), over all processes.

        Args:
            wrapped: what training calls: `distiller`, or what spreads it over processes.
            distiller: the module itself.
        """
        training = distiller.training
        wrapped.eval()
        metrics = {"eval_loss": self.loss(wrapped, distiller.student.device)}
        if self.options.generate:
            metrics |= self._generation(distiller)
        wrapped.train(training)
        return metrics

    @torch.no_grad()
    def loss(self, wrapped: nn.Module, device: torch.device) -> float:
        """Cross-entropy a scored token, in nats; each process takes its share of the batches."""
        places = list(range(0, len(self.encoded), self.batch_size))
        mine, most = processes.share_of(places), processes.share_of(places, rank=0)
        total, count = 0.0, 0
        for turn in range(len(most)):
            # Whoever has no batch left runs the first one again, for nothing: shards are gathered by all or by none.
            start = mine[turn] if turn < len(mine) else 0
            stop = min(start + self.batch_size, len(self.encoded))
            batch = self.collator([self.encoded[index] for index in range(start, stop)])
            batch = {name: batch[name].to(device) for name in ("input_ids", "attention_mask", "labels", "scored_at")}
            loss, _ = wrapped(**batch, yardstick=True)
            if turn < len(mine):
                total, count = total + loss.double().item(), count + len(batch["scored_at"])
        total, count = processes.summed([total, count])
        return total / count

    def _generation(self, distiller: Distiller) -> dict[str, float]:
        """Each process answers its share of the rows as one process would answer them all."""
        options, share = self.options, processes.share_of(list(enumerate(self.rows)))
        rows = [row for _, row in share]
        if not rows:
            return self._means(0.0, 0.0, 0)
        scores = evaluate_rows(
            distiller.student,
            self.tokenizer,
            rows,
            self.template,
            self.limits,
            Sampling(
                max_new_tokens=options.max_new_tokens,
                temperature=options.temperature,
                top_p=options.top_p,
                no_repeat_ngram_size=options.no_repeat_ngram_size,
            ),
            seeds=options.seeds,
            batch_size=options.batch_size,
            places=[place for place, _ in share],
        )
        return self._means(scores.rouge_l, scores.exact_match, len(rows))

    def _means(self, rouge_l: float, exact_match: float, rows: int) -> dict[str, float]:
        rouge_l, exact_match, count = processes.summed([rouge_l * rows, exact_match * rows, rows])
        return {"eval_rougeL": rouge_l / count, "eval_exact_match": exact_match / count}
