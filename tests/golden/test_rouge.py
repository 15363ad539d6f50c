"""The evaluation script of the DSKD line: ROUGE-L of every answer, and both means."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from stillhouse.evaluation.metrics import rouge_l, score

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("STILLHOUSE_SHARED", REPOSITORY.parent / "shared"))
GOLDEN = Path(os.environ.get("STILLHOUSE_GOLDEN", SHARED / "golden"))
CASES = sorted(GOLDEN.glob("*_tokenizer/rouge_*.json"))


def test_there_is_a_case(golden):
    assert CASES, f"no rouge_*.json below {golden}"


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_scores_are_the_official_ones(path: Path):
    case = json.loads(path.read_text())
    predictions, references = case["predictions"], case["references"]
    official = case["per_example_rougeL_f"]
    assert [rouge_l(*pair) for pair in zip(predictions, references, strict=True)] == pytest.approx(official, rel=1e-12)
    scores = score(predictions, references)
    assert round(scores.rouge_l, 4) == pytest.approx(case["result"]["rougeL"], abs=1.01e-4)
    assert round(scores.exact_match, 4) == pytest.approx(case["result"]["exact_match"], abs=1.01e-4)
