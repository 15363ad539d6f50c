"""An LM head evaluated lazily: predictions are hidden states, and logits exist a block at a time."""

from stillhouse.head.blocks import Blocks
from stillhouse.head.elementwise import ALONE, MONITORS, Term
from stillhouse.head.embedded import Embedded
from stillhouse.head.lm_head import Head, probe
from stillhouse.head.pairing import Pairing
from stillhouse.head.predictions import Predictions, at_scored, parted
from stillhouse.head.rowwise import RowwiseLoss, rowwise_loss
from stillhouse.head.sampled import Sampled
from stillhouse.head.sparse import TopK
from stillhouse.head.translation import Translation

__all__ = [
    "ALONE",
    "MONITORS",
    "Blocks",
    "Embedded",
    "Head",
    "Pairing",
    "Predictions",
    "RowwiseLoss",
    "Sampled",
    "Term",
    "TopK",
    "Translation",
    "at_scored",
    "parted",
    "probe",
    "rowwise_loss",
]
