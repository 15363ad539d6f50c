"""`stillhouse sft`."""

from __future__ import annotations

from stillhouse.recipe import Recipe

SUMMARY = "fine-tune a model on the responses of a data set"
EXAMPLE = "recipes/todi/sft-gpt2-xl.yaml --training.num_train_epochs=3"
TOGETHER = True  # under a launcher, its processes share the work


def run(recipe: Recipe) -> None:
    """Train, or go on where the same recipe was stopped; the run's folder says what came of it."""
    from stillhouse import training

    training.run(recipe)


def rehearse(recipe: Recipe) -> None:
    """Check and count everything, take one step, and leave nothing behind."""
    from stillhouse import training

    training.rehearse(recipe)
