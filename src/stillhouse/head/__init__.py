"""An LM head evaluated lazily: predictions are hidden states, and logits exist a block at a time."""

from stillhouse.head.blocks import Blocks
from stillhouse.head.elementwise import MONITORS, Term
from stillhouse.head.lm_head import Head, probe
from stillhouse.head.predictions import Predictions, at_scored
from stillhouse.head.rowwise import RowwiseLoss, rowwise_loss
from stillhouse.head.sparse import TopK

__all__ = [
    "MONITORS",
    "Blocks",
    "Head",
    "Predictions",
    "RowwiseLoss",
    "Term",
    "TopK",
    "at_scored",
    "probe",
    "rowwise_loss",
]
