"""`stillhouse evaluate`."""

from __future__ import annotations

from stillhouse.recipe import EvaluateOptions

SUMMARY = "score a model's answers: ROUGE-L and exact match, mean and deviation over seeds"
EXAMPLE = "--model=outputs/gpt2/todi/todi --data dolly/test.jsonl vicuna/test.jsonl --seeds 10 20 30"
TOGETHER = True  # under a launcher, its processes share the work


def run(options: EvaluateOptions) -> None:
    """Answer, score and print; data sets and seeds that are done already are not done again."""
    from stillhouse import evaluation

    evaluation.evaluate(options)
