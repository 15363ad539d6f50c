"""`stillhouse generate`."""

from __future__ import annotations

from stillhouse.recipe import GenerateOptions

SUMMARY = "answer the prompts of a data set with a model, and write the answered rows"
EXAMPLE = "--model=outputs/teacher --data=prompts.jsonl --out=answered.jsonl --temperature=0"


def run(options: GenerateOptions) -> None:
    """Write rows whose responses are the model's own: sequence-level distillation trains on them."""
    from stillhouse import rollout

    rollout.write_responses(options)
