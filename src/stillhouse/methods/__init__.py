"""Distillation methods by name: what each needs, what it learns, and its loss."""

from stillhouse.methods.clock import Clock
from stillhouse.methods.method import Method, Terms
from stillhouse.methods.registry import build
from stillhouse.methods.word_level import SupervisedFineTuning

__all__ = ["Clock", "Method", "SupervisedFineTuning", "Terms", "build"]
