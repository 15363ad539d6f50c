"""The whole story in one command: data, tokenizer, teacher, students, scores, table, page."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from rich.console import Console

from stillhouse import store
from stillhouse.demo.findings import print_table, read_sections, write_report
from stillhouse.demo.plan import Layout, Scale, tasks, write_data, write_recipes
from stillhouse.demo.setups import setups
from stillhouse.demo.workers import run_tasks
from stillhouse.mistakes import Mistake
from stillhouse.progress import track
from stillhouse.recipe import DemoOptions

_MARK = "demo.json"


def run(options: DemoOptions, scale: Scale | None = None) -> Path:
    """Run the demo anew in `options.output`, print its table, and give the path of its report.

    Raises:
        Mistake: the folder holds something else than a demo, or one of the demo's tasks failed.
    """
    started = time.perf_counter()
    scale = scale or Scale()
    layout, chosen = Layout(Path(options.output)), setups(full=options.full)
    _take(layout.root)
    write_data(layout, scale)
    write_recipes(layout, scale, chosen, options.seeds)
    planned = tasks(layout, chosen, options.seeds)
    console = Console()
    console.print(f"{len(planned)} tasks in {options.workers} processes; their words go to {layout.root / 'logs'}")
    for _ in track(run_tasks(planned, options.workers, layout.root / "logs"), "Training", total=len(planned)):
        pass
    sections = read_sections(layout, scale, chosen, options.seeds)
    path = write_report(layout, scale, sections, options.seeds)
    print_table(sections, console)
    console.print(f"\n{path} written after {time.perf_counter() - started:.0f} s.", highlight=False)
    return path


def _take(root: Path) -> None:
    """An empty folder, or one that an earlier demo left; nothing else is ever removed."""
    if root.exists() and any(root.iterdir()):
        if not (root / _MARK).is_file():
            raise Mistake(str(root), "holds something that is no demo", "give another --output, or empty it")
        shutil.rmtree(root)
    store.write_json(root / _MARK, {"by": "stillhouse demo"})
