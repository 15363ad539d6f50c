import dataclasses
from pathlib import Path

import pytest

from stillhouse import store
from stillhouse.evaluation.kept import Keeper
from stillhouse.mistakes import Mistake


def test_the_size_of_a_batch_is_noted_and_makes_no_other_answers(tmp_path: Path) -> None:
    lines = [{"prediction": "a"}]
    made = Keeper(tmp_path / "seed1", {"batch_size": 32, "temperature": 1.0}, {"model": "m"}, overwrite=False)
    made.write(lines)
    smaller = dataclasses.replace(made, chosen={"batch_size": 4, "temperature": 1.0})
    assert smaller.read() == (lines, "")
    assert store.read_json(tmp_path / "seed1/settings.json")["chosen"]["batch_size"] == 32
    never_noted = dataclasses.replace(made, chosen={"temperature": 1.0})
    assert never_noted.read() == (lines, "")
    other = dataclasses.replace(made, chosen={"batch_size": 4, "temperature": 0.5})
    with pytest.raises(Mistake, match=r"was made with temperature=1\.0, now 0\.5"):
        other.read()


def test_it_does_where_a_batch_is_drawn_together(tmp_path: Path) -> None:
    made = Keeper(tmp_path / "task", {"batch_size": 32}, {}, overwrite=False, noted=())
    made.write([])
    with pytest.raises(Mistake, match="was made with batch_size=32, now 4"):
        dataclasses.replace(made, chosen={"batch_size": 4}).read()
