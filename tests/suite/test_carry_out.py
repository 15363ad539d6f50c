import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import stillhouse
from stillhouse.mistakes import LONGEST_LINE, Mistake
from stillhouse.suite.carry_out import carry_out
from stillhouse.suite.jobs import Job


@dataclass(frozen=True)
class Script(Job):
    """A job of a few lines of Python, done when its file is there."""

    @property
    def done(self) -> bool:
        return self.log.with_suffix(".done").exists()

    def stamp(self) -> None:
        self.log.with_suffix(".done").touch()


def script(folder: Path, title: str, code: str = "", needs: tuple[str, ...] = ()) -> Script:
    body = f"import pathlib, time; f = pathlib.Path({str(folder)!r}); {code or 'pass'}"
    return Script(title, (sys.executable, "-S", "-c", body), folder / "logs" / f"{title}.log", needs)


def lines(folder: Path) -> list[str]:
    return (folder / "order").read_text().split()


def writes(word: str) -> str:
    return f"(f / 'order').open('a').write('{word} ')"


def test_what_others_need_comes_first_and_what_is_done_not_at_all(tmp_path: Path) -> None:
    jobs = [script(tmp_path, name, writes(name), needs) for name, needs in
            [("a", ("c",)), ("b", ("a", "c")), ("c", ()), ("d", ("b",))]]  # fmt: skip
    said: list[str] = []
    carry_out(jobs, 2, said.append)
    assert lines(tmp_path) == ["c", "a", "b", "d"]
    assert [line.rpartition(":")[0] for line in said] == ["[1/4] c", "[2/4] a", "[3/4] b", "[4/4] d"]
    carry_out(jobs, 2, said.append)
    assert len(said) == 4 and lines(tmp_path) == ["c", "a", "b", "d"]
    assert jobs[0].log.read_text().startswith(f"$ {sys.executable} -S -c ")


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_never_more_at_a_time_than_asked(tmp_path: Path, workers: int) -> None:
    code = "mine = f / ('on' + str(time.time_ns())); mine.touch(); time.sleep(0.3); "
    code += "print(len(list(f.glob('on*')))); mine.unlink()"
    jobs = [script(tmp_path, str(number), code) for number in range(4)]
    carry_out(jobs, workers, print)
    most = max(int(job.log.read_text().split()[-1]) for job in jobs)
    assert most <= workers and (most > 1) == (workers > 1)


def test_a_failure_names_its_log_and_stops_the_others(tmp_path: Path) -> None:
    jobs = [script(tmp_path, "long", "(f / 'began').touch(); time.sleep(60); (f / 'late').touch()"),
            script(tmp_path, "bad", "\nwhile not (f / 'began').exists(): time.sleep(0.01)\n"
                   "raise SystemExit('stillhouse: data.train: no file')"),
            script(tmp_path, "after", "(f / 'late').touch()", ("bad",))]  # fmt: skip
    began = time.monotonic()
    with pytest.raises(Mistake) as caught:
        carry_out(jobs, 2, print)
    assert time.monotonic() - began < 30
    assert caught.value.where == str(tmp_path / "logs/bad.log")
    assert caught.value.wrong == "bad ended with code 1: data.train: no file"
    assert len(str(caught.value)) <= LONGEST_LINE
    assert not (tmp_path / "late").exists() and not any(job.done for job in jobs)


def test_a_job_that_was_killed_is_not_done(tmp_path: Path) -> None:
    job = script(tmp_path, "a", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(Mistake, match="code -9"):
        carry_out([job], 1, print)
    assert not job.done


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_nothing_goes_on_when_the_suite_is_ended(tmp_path: Path, how: signal.Signals) -> None:
    """A suite that is taken up again would else train where its first self still does."""
    if how != signal.SIGINT and sys.platform != "linux":
        pytest.skip("needs the kernel of Linux")
    code = (
        "import sys; from pathlib import Path; from tests.suite.test_carry_out import *; f = Path(sys.argv[1]); "
        "carry_out([script(f, 'a', '(f / str(__import__(\"os\").getpid())).touch(); time.sleep(60)')], 1, print)"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{Path(stillhouse.__file__).parents[1]}:{root}"}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, stderr=subprocess.DEVNULL
    ) as ours:
        child = wait_for(lambda: next((int(path.name) for path in tmp_path.glob("[0-9]*")), None))
        ours.send_signal(how)
        assert ours.wait(30) != 0
    assert wait_for(lambda: not alive(child))


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # ended, and nobody has asked


def wait_for(found, seconds: float = 30):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := found():
            return value
        time.sleep(0.05)
    pytest.fail("waited in vain")
