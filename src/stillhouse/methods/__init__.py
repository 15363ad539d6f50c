"""Distillation methods by name: what each needs, what it learns, and its loss."""

from stillhouse.methods.method import Method, Terms
from stillhouse.methods.registry import build
from stillhouse.methods.word_level import SupervisedFineTuning, WordLevel

__all__ = ["Method", "SupervisedFineTuning", "Terms", "WordLevel", "build"]
