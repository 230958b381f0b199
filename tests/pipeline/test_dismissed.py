from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.dismissed import Dismissal, read_dismissed
from pipeline.errors import UserError


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_identifiers_stay_as_they_are(tmp_path: Path) -> None:
    file = write(
        tmp_path / "d.csv", 'item_id_a,item_id_b,reason\r\n007,12e456,"licensed, ""old"""\r\n=a,b,\r\n'
    )
    assert read_dismissed(file) == [Dismissal("007", "12e456", 'licensed, "old"'), Dismissal("=a", "b")]


def test_the_order_of_a_pair_means_nothing() -> None:
    assert Dismissal("a", "b").pair == Dismissal("b", "a").pair


def test_the_reason_may_be_left_out_and_excel_may_have_saved_the_file(tmp_path: Path) -> None:
    assert read_dismissed(write(tmp_path / "d.csv", "\ufeffitem_id_b,item_id_a\nx,y\n,\n")) == [
        Dismissal("y", "x")
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "no column item_id_a, item_id_b"),
        ("item_id_a,item_id_b\n1,\n", "line 2"),
        ("", "no column"),
    ],
)
def test_what_is_no_such_file_is_the_users_mistake(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_dismissed(write(tmp_path / "d.csv", text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.csv.*judge\.dismissed"):
        read_dismissed(tmp_path / "nowhere.csv")
