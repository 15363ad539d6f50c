"""`stillhouse evaluate judge`."""

from __future__ import annotations

from stillhouse.recipe import JudgeOptions

SUMMARY = "let another model grade answers to questions of two turns, as in MT-Bench"
EXAMPLE = "--model=student --data=question.jsonl --judge=http://127.0.0.1:8000/v1 --judge_model=gpt-4"


def run(options: JudgeOptions) -> None:
    """Answer, have the answers judged, and print; answers and judgements that are there already are not made again."""
    from stillhouse.evaluation.judge import run as judge

    judge.evaluate_by_judge(options)
