"""Which scored positions of the student correspond to which of the teacher, from their tokens alone.

    identity      one tokenizer: position i with position i
    position      ULD (arXiv 2402.12030): i with i, as far as both go
    span          groups that close where tokens of both sides end at the same byte, so that both say the same
    exact         ETA of DSKD-v2 (arXiv 2504.11426): one token with one token over the same bytes
    dtw           dynamic time warping over edit distances between tokens (MinED, FuseLLM: arXiv 2401.10491)
    entropy_dtw   the same, weighted by what either model is uncertain of (CDM: arXiv 2502.11104)

An aligner takes two `Side`s of one example and gives an `Alignment`. No torch here.
"""

from stillhouse.alignment.aligners import ALIGNERS, Aligner, build
from stillhouse.alignment.alignment import Alignment, Side
from stillhouse.alignment.coverage import Coverage
from stillhouse.alignment.dtw import DTW, EntropyDTW, edit_path, entropy_weights, one_to_one, warp
from stillhouse.alignment.edit_distance import EditDistances, texts
from stillhouse.alignment.spans import exact, identity, position, span

__all__ = [
    "ALIGNERS",
    "DTW",
    "Aligner",
    "Alignment",
    "Coverage",
    "EditDistances",
    "EntropyDTW",
    "Side",
    "build",
    "edit_path",
    "entropy_weights",
    "exact",
    "identity",
    "one_to_one",
    "position",
    "span",
    "texts",
    "warp",
]
