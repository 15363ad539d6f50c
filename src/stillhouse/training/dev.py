"""The evaluation at the end of every epoch: loss on held-out rows, and ROUGE-L of what the student writes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from stillhouse.data.collate import Collator
from stillhouse.data.encode import Limits
from stillhouse.data.rows import Row
from stillhouse.data.templates import Template
from stillhouse.evaluation import evaluate_rows
from stillhouse.head import Head, at_scored
from stillhouse.methods import SupervisedFineTuning
from stillhouse.models import last_hidden
from stillhouse.recipe import Evaluation
from stillhouse.rollout import Sampling
from stillhouse.training.distiller import Distiller


@dataclass
class DevSet:
    """Held-out rows, encoded for the loss and raw for generation.

    Attributes:
        encoded: what the loss is taken on.
        rows: what the student answers.
        options: how, from the recipe.
    """

    encoded: Dataset[dict[str, object]]
    rows: list[Row]
    tokenizer: PreTrainedTokenizerBase
    template: Template
    limits: Limits
    collator: Collator
    options: Evaluation
    batch_size: int

    def __call__(self, distiller: Distiller, step: int) -> dict[str, float]:
        """`eval_loss`, and with generation `eval_rougeL` and `eval_exact_match` (per cent)."""
        metrics = {"eval_loss": self.loss(distiller)}
        if self.options.generate:
            metrics |= self._generation(distiller)
        return metrics

    @torch.no_grad()
    def loss(self, distiller: Distiller) -> float:
        """Cross-entropy a scored token, in nats."""
        model, training = distiller.student, distiller.training
        distiller.eval()
        objective = SupervisedFineTuning()
        total, count = torch.zeros((), dtype=torch.float64), 0
        for batch in DataLoader(self.encoded, batch_size=self.batch_size, collate_fn=self.collator):
            batch = {name: value.to(model.device) for name, value in batch.items()}
            hidden = last_hidden(model, batch["input_ids"], batch["attention_mask"])  # [B, L, d]
            head = Head.of(model, distiller.vocabulary)
            student = at_scored(hidden, head, batch["labels"], batch["scored_at"])
            total += objective(student, None).loss.double().cpu()
            count += len(student)
        distiller.train(training)
        return total.item() / count

    def _generation(self, distiller: Distiller) -> dict[str, float]:
        options = self.options
        scores = evaluate_rows(
            distiller.student,
            self.tokenizer,
            self.rows,
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
        )
        return {"eval_rougeL": scores.rouge_l, "eval_exact_match": scores.exact_match}
