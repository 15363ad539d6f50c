"""A paper's table from one file: methods x seeds trained, scored, compared, with the recipe of every row."""

from stillhouse.suite.run import suite
from stillhouse.suite.significance import Difference, compare

__all__ = ["Difference", "compare", "suite"]
