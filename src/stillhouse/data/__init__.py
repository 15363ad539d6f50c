"""Rows -> examples -> one encoding per tokenizer -> batches.

This module and the two it exports from import neither torch nor transformers, so that data is checked at once;
`encode`, `collate` and `tokenizer` are imported where models are.
"""

from stillhouse.data.example import Example, Segment
from stillhouse.data.rows import Row, read_rows

__all__ = ["Example", "Row", "Segment", "read_rows"]
