"""Which student tokens correspond to which teacher tokens, where the two have unlike vocabularies."""

from stillhouse.vocabulary.build import KINDS, build, cache_folder, cached, chosen, kind_of
from stillhouse.vocabulary.matching import exact, overlap, prefix
from stillhouse.vocabulary.min_edit import min_edit
from stillhouse.vocabulary.vocabulary_map import Coverage, VocabularyMap, about_of, load

__all__ = [
    "KINDS",
    "Coverage",
    "VocabularyMap",
    "about_of",
    "build",
    "cache_folder",
    "cached",
    "chosen",
    "exact",
    "kind_of",
    "load",
    "min_edit",
    "overlap",
    "prefix",
]
