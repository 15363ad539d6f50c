"""What exists, by name: divergences and methods with their papers, formulas, parameters, defaults and aliases.

The one place where a name, an alias, a default or a bound is written. It imports neither torch nor transformers, so
that a recipe is checked, and `stillhouse methods` answers, at once. `divergence.build` and `methods.build` turn an
entry into code.
"""

from stillhouse.catalogue.divergences import DIVERGENCES
from stillhouse.catalogue.entry import Entry, Parameter, find, settle
from stillhouse.catalogue.methods import METHODS

__all__ = ["DIVERGENCES", "METHODS", "Entry", "Parameter", "find", "settle"]
