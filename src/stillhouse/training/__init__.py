"""From a recipe to a trained student in its run folder."""

from stillhouse.training.launch import run
from stillhouse.training.rehearsal import rehearse

__all__ = ["rehearse", "run"]
