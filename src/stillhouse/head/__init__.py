"""An LM head evaluated lazily: predictions are hidden states, and logits exist a block at a time."""

from stillhouse.head.lm_head import Head, probe
from stillhouse.head.predictions import Predictions, at_scored
from stillhouse.head.rowwise import MONITORS, Blocks, RowwiseLoss, Term, rowwise_loss

__all__ = ["MONITORS", "Blocks", "Head", "Predictions", "RowwiseLoss", "Term", "at_scored", "probe", "rowwise_loss"]
