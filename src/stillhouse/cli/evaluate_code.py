"""`stillhouse evaluate code`."""

from __future__ import annotations

from stillhouse.recipe import CodeOptions

SUMMARY = "have a model write programs and, if told, run them in a sandbox: pass@k on HumanEval and MBPP"
EXAMPLE = "--model=outputs/gpt2/todi/todi --data=humaneval/test.jsonl --run-generated-code"


def run(options: CodeOptions) -> None:
    """Write, run if that is allowed, and print; what is done already is not done again."""
    from stillhouse.evaluation import code

    code.evaluate_code(options)
