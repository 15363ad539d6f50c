"""`stillhouse evaluate tasks`."""

from __future__ import annotations

from stillhouse.recipe import TasksOptions

SUMMARY = "score a model on tasks of lm-evaluation-harness: GSM8K, the Open LLM Leaderboard, any other"
EXAMPLE = "--model=outputs/gpt2/todi/todi --tasks gsm8k --data=gsm8k/test.jsonl"


def run(options: TasksOptions) -> None:
    """Evaluate and print; tasks that are done already are not done again."""
    from stillhouse.evaluation import tasks

    tasks.evaluate_tasks(options)
