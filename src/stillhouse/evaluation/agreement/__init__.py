"""How far a student's predictions are from its teacher's, on responses that neither was trained on."""

from stillhouse.evaluation.agreement.run import agreement

__all__ = ["agreement"]
