"""The embedded example: ten small skills, a teacher, its students, and an honest table."""

from stillhouse.demo.pipeline import run

__all__ = ["run"]
