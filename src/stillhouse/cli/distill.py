"""`stillhouse distill`."""

from __future__ import annotations

from stillhouse.recipe import Recipe

SUMMARY = "teach a small model what a large one predicts"
EXAMPLE = "recipes/todi/gpt2-base-from-gpt2-xl.yaml --method.name=reverse_kl"
TOGETHER = True  # under a launcher, its processes share the work


def run(recipe: Recipe) -> None:
    """Train, or go on where the same recipe was stopped; the run's folder says what came of it."""
    from stillhouse import training

    training.run(recipe)


def rehearse(recipe: Recipe) -> None:
    """Check and count everything, take one step, and leave nothing behind."""
    from stillhouse import training

    training.rehearse(recipe)
