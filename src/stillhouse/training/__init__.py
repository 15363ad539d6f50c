"""From a recipe to a trained student in its run folder."""

from stillhouse.training.launch import run

__all__ = ["run"]
