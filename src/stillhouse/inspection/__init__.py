"""What a user looks at before training: two tokenisations under each other, what is aligned, learnt and mapped."""

from stillhouse.inspection.findings import Findings, Row, look
from stillhouse.inspection.run import inspect
from stillhouse.inspection.tokens import Column, Token, legible

__all__ = ["Column", "Findings", "Row", "Token", "inspect", "legible", "look"]
