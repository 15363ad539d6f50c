"""Runs on one page: tables and learning curves over seeds, as HTML that needs nothing else and runs nothing."""

from stillhouse.report.curves import QUANTITIES, learning_curves, score_picture, svg, write_png
from stillhouse.report.groups import Group, Section, sections
from stillhouse.report.page import bullet_list, figure_block, page, paragraphs
from stillhouse.report.reliability import reliability_picture
from stillhouse.report.runs import Run, find_runs, read_run
from stillhouse.report.spread import Spread, exceeds, spread
from stillhouse.report.tables import Table
from stillhouse.report.write import score_table, section_blocks, write

__all__ = [
    "QUANTITIES", "Group", "Run", "Section", "Spread", "Table", "bullet_list", "exceeds", "figure_block", "find_runs",
    "learning_curves", "page", "paragraphs", "read_run", "reliability_picture", "score_picture", "score_table",
    "section_blocks", "sections", "spread", "svg", "write", "write_png",
]  # fmt: skip
