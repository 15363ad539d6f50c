"""The same examples in two tokenisations: both encodings, which of their positions correspond, and their batches."""

from stillhouse.paired.dataset import Alignments, PairedCollator, PairedDataset
from stillhouse.paired.encode import Sides, encode_both, examples_of_both

__all__ = ["Alignments", "PairedCollator", "PairedDataset", "Sides", "encode_both", "examples_of_both"]
