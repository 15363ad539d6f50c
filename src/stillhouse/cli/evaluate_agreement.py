"""`stillhouse evaluate agreement`."""

from __future__ import annotations

from stillhouse.recipe import AgreementOptions

SUMMARY = "compare a student's predictions with its teacher's: divergences, top-1 and top-k, calibration"
EXAMPLE = "--model=outputs/gpt2/todi/todi --teacher=outputs/gpt2-xl/sft/dolly --data dolly"


def run(options: AgreementOptions) -> None:
    """Measure, print, and draw the reliability of what the student states; files that are done are not done again."""
    from stillhouse import report
    from stillhouse.evaluation.agreement import agreement

    out, found = agreement(options)
    report.write_png(report.reliability_picture(found["data"]), out / "reliability.png")
