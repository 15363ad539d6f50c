"""Another model's grades, from 1 to 10, of answers to questions of two turns (Zheng et al., MT-Bench, 2023)."""

from stillhouse.evaluation.judge.client import Reply, Server
from stillhouse.evaluation.judge.prompts import judging, reminding
from stillhouse.evaluation.judge.ratings import rating
from stillhouse.evaluation.judge.run import evaluate_by_judge

__all__ = ["Reply", "Server", "evaluate_by_judge", "judging", "rating", "reminding"]
