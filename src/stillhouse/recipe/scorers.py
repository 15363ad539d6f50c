"""Other projects' code that scores: where it is installed and which it is, told without importing any of it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distributions, version
from importlib.util import find_spec
from pathlib import Path

from stillhouse.mistakes import Mistake
from stillhouse.store.digests import of_bytes, of_file
from stillhouse.store.records import dumps


def lm_eval_version() -> str | None:
    """The version of lm-evaluation-harness; None where it is not installed."""
    try:
        return version("lm-eval")
    except PackageNotFoundError:
        return None


def evalplus_folder(wanted: str | None) -> str:
    """The folder that EvalPlus is installed in.

    Raises:
        Mistake: it is not there.
    """
    if wanted is not None:
        if not (Path(wanted) / "evalplus" / "evaluate.py").is_file():
            raise Mistake("evalplus", f"'{wanted}' does not hold evalplus/evaluate.py", "name its site-packages folder")
        return str(Path(wanted).resolve())
    spec = find_spec("evalplus")
    if spec is None or spec.origin is None:
        mend = "pip install evalplus, in an environment of its own; then --evalplus=its site-packages folder"
        raise Mistake("scorer", "EvalPlus is not installed here", mend)
    return str(Path(spec.origin).resolve().parents[1])


def evalplus_identity(package: str) -> str:
    """The version of EvalPlus in the folder `package`, and a hash of its code, which a checkout changes without it."""
    versions = [found.version for found in distributions(name="evalplus", path=[package])]
    files = {str(file.relative_to(package)): of_file(file).xxh3 for file in Path(package, "evalplus").rglob("*.py")}
    return f"{versions[0] if versions else 'of no version'}, xxh3 {of_bytes(dumps(dict(sorted(files.items())))).xxh3}"
