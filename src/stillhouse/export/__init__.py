"""From a checkpoint to a model that stands alone: merged, cast, without the method's modules, with a model card."""

from stillhouse.export.card import model_card
from stillhouse.export.write import export

__all__ = ["export", "model_card"]
