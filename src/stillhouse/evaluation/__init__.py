"""How good a model's answers are: ROUGE-L and exact match with references."""

from stillhouse.evaluation.measures import Measure, read_measures, write_measures
from stillhouse.evaluation.metrics import Scores, exact_match, rouge_l, score
from stillhouse.evaluation.predictions import Evaluated, Prediction, evaluate_rows
from stillhouse.evaluation.run import evaluate

__all__ = [
    "Evaluated",
    "Measure",
    "Prediction",
    "Scores",
    "evaluate",
    "evaluate_rows",
    "exact_match",
    "read_measures",
    "rouge_l",
    "score",
    "write_measures",
]
