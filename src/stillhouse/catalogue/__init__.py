"""What exists, by name: divergences, methods, aligners and vocabulary maps, with all that is to be known of them.

The one place where a name, an alias, a default or a bound is written. It imports neither torch nor transformers, so
that a recipe is checked, and `stillhouse methods` answers, at once. `divergence.build` and `methods.build` turn an
entry into code.
"""

from collections.abc import Mapping

from stillhouse.catalogue.axes import ALIGNERS, VOCABULARIES
from stillhouse.catalogue.divergences import DIVERGENCES
from stillhouse.catalogue.entry import Entry, Parameter, find, settle
from stillhouse.catalogue.methods import METHODS
from stillhouse.catalogue.sources import SOURCES

# The sections of a recipe that name an entry, with its settings beside the name.
NAMED: Mapping[str, Mapping[str, Entry]] = {
    "method": METHODS,
    "alignment": ALIGNERS,
    "vocabulary": VOCABULARIES,
    "rollout": SOURCES,
}


def name_key(section: str) -> str:
    """The key by which a section of `NAMED` names its entry: "method.name"."""
    return f"{section}.source" if section == "rollout" else f"{section}.name"


__all__ = [
    "ALIGNERS",
    "DIVERGENCES",
    "METHODS",
    "NAMED",
    "SOURCES",
    "VOCABULARIES",
    "Entry",
    "Parameter",
    "find",
    "name_key",
    "settle",
]
