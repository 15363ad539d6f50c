"""The table of `make test-kill`."""

from __future__ import annotations

from collections import Counter

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Kills and survivals by phase and by family, from what each trial noted."""
    kills: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for key, value in getattr(report, "user_properties", []):
                if key == "killed":
                    names = ("all", f"family {value[0]}", f"phase {value[1]}")
                    kills.update(names)
                    survived.update(names if outcome == "passed" else ())
    for name in sorted(kills, key=lambda name: (name == "all", name)):
        terminalreporter.write_line(f"{name:20} {kills[name]:4} killed, {survived[name]:4} survived")
