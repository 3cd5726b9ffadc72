"""Which rows a job makes: files of seeds, classes in turn or at random, and sentences for what is wrong."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.sampling import SeedRanges
from models.store import Store
from service.offline.sources import RowSource, read_seeds_file

Sample = Callable[..., int]


def source(toy_store: Path, text: str, rule: object = None) -> RowSource:
    return RowSource(Store(toy_store).resolve("toy").manifest, SeedRanges.parse(text), rule)  # type: ignore[arg-type]


def test_balanced_classes_come_in_turn_whatever_the_seeds(toy_store: Path) -> None:
    rows = source(toy_store, "0-4,20,40,60-80", "balanced")

    counts = Counter(rows.rows(0, len(rows)).class_idx.tolist())

    assert rows.rows(3, 12).class_idx.tolist() == [3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_random_class_is_that_of_its_seed_alone_and_all_classes_come(toy_store: Path) -> None:
    whole, part = source(toy_store, "0-999", "random"), source(toy_store, "7,500", "random")

    classes = whole.rows(0, 1000).class_idx
    by_hand = [
        int.from_bytes(hashlib.sha256(f"class_idx {n}".encode()).digest()[:8], "big") % 10 for n in (7, 500)
    ]

    assert part.rows(0, 2).class_idx.tolist() == [classes[7], classes[500]] == by_hand
    assert all(70 < count < 130 for count in np.bincount(classes, minlength=10))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.csv", "seed,class_idx,truncation_psi\n5,1,0.5\n9,2,1\n5,3,0.7\n"),
        ("rows.csv", "truncation_psi,seed,class_idx\r\n.5,5,1\r\n1.0,9,2\r\n\r\n0.7,5,3"),
        (
            "rows.jsonl",
            '{"seed": 5, "class_idx": 1, "truncation_psi": 0.5}\n'
            '{"class_idx": 2, "seed": 9, "truncation_psi": 1}\n\n'
            '{"seed": 5, "class_idx": 3, "truncation_psi": 0.7}\n',
        ),
    ],
)
def test_columns_of_a_file_name_class_and_psi_and_a_seed_may_come_with_another_class(
    toy_store: Path, tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)

    table = read_seeds_file(tmp_path / name)
    rows = RowSource(Store(toy_store).resolve("toy").manifest, table)

    made = rows.rows(0, 3)
    assert (made.seeds.tolist(), made.class_idx.tolist()) == ([5, 9, 5], [1, 2, 3])
    assert made.truncation_psi.tolist() == [0.5, 1.0, float(np.float32(0.7))]
    assert rows.names(0, 3) == ["seed0000000005", "seed0000000009", "seed0000000005-2"]
    assert rows.rows(1, 2).class_idx.tolist() == [2]
    assert table.csv == b"seed,class_idx,truncation_psi\n5,1,0.5\n9,2,1\n5,3,0.7\n"


def test_a_plain_file_has_a_seed_a_line(tmp_path: Path) -> None:
    (tmp_path / "seeds.txt").write_text("# chosen by hand\n42\n\n 7  # the best\n4294967295\n")

    assert read_seeds_file(tmp_path / "seeds.txt").seeds.tolist() == [42, 7, 4294967295]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.txt", "1\n0-9\n", "a.txt line 2: seed must be an integer, got '0-9'"),
        ("a.txt", "1\n4294967296\n", "line 2: seed must be between 0 and 4294967295, got 4294967296"),
        ("a.txt", "8\n9\n8\n", "must not name an image twice, got seed 8 in lines 1 and 3"),
        ("a.txt", "\n", "seeds_file must name at least one seed"),
        ("a.csv", "7\n8\n", "line 2: columns must be seed and, where wanted, class_idx and truncation_psi"),
        ("a.csv", "seed,colour\n8,1\n", "line 2: columns must be seed and"),
        ("a.csv", "seed,class_idx\n8\n", "line 2: it must have one value for each of 'seed', 'class_idx'"),
        ("a.csv", "seed,class_idx\n8,x\n", "line 2: class_idx must be an integer, got 'x'"),
        ("a.csv", "seed,class_idx\n8,99999999999999999999\n", "line 2: class_idx must be one of the model's"),
        ("a.csv", "seed,class_idx\n8,12\n", "class_idx must be an integer between 0 and 9, got 12"),
        ("a.csv", "seed,class_idx\n8,1\n8,2\n8,1\n", "twice, got seed 8 in lines 2 and 4"),
        ("a.csv", "seed,truncation_psi\n8,3\n", "line 2: truncation_psi must be between 0 and 2, got 3.0"),
        ("a.jsonl", "[1]\n", "line 1: it must be a JSON object, got '[1]'"),
        ("a.jsonl", '{"seed": true}\n', "line 1: seed must be an integer, got true"),
        (
            "a.jsonl",
            '{"seed": 1}\n{"seed": 2, "class_idx": 1}\n',
            "line 2: it must have what the first row has",
        ),
    ],
)
def test_a_file_that_names_no_rows_is_a_sentence_with_its_line(
    sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, sentence: str
) -> None:
    (tmp_path / name).write_text(text)

    assert sample("--seeds-file", tmp_path / name, "--out", tmp_path / "out") == 2

    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_seeds_csv_that_is_there_is_neither_believed_nor_lost(
    sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/seeds.csv").write_text("seed,class_idx\n100,1\n")
    (tmp_path / "rows.csv").write_text("seed,class_idx\n1,3\n")

    assert sample("--seeds-file", tmp_path / "rows.csv", "--out", tmp_path / "out") == 5

    assert "holds another seeds.csv: give another folder, or move it away" in capsys.readouterr().err
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["seeds.csv"]
    assert "100,1" in (tmp_path / "out/seeds.csv").read_text()


def test_a_set_of_a_file_goes_on_and_is_checked_without_that_file(sample: Sample, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("seed,class_idx\n" + "".join(f"{n},{n % 3}\n" for n in range(50)))
    flags = ("--shard-size", "20", "--format", "npz", "--out", tmp_path / "out")
    assert sample("--seeds-file", tmp_path / "rows.csv", *flags) == 0
    (tmp_path / "rows.csv").unlink()

    assert sample("--check", tmp_path / "out") == 0
    assert sample("--seeds-file", tmp_path / "out/seeds.csv", *flags) == 0

    with np.load(tmp_path / "out/shard-00001.npz") as shard:
        assert shard["class_idx"].tolist() == [n % 3 for n in range(20, 40)]


def test_seed_ranges_know_any_place_without_being_expanded() -> None:
    text = ",".join(f"{2 * n}" for n in range(1000)) + ",5000-4000000000"
    ranges = SeedRanges.parse(text)

    assert [ranges[0], ranges[999], ranges[1000], ranges[-1]] == [0, 1998, 5000, 4000000000]
    assert ranges[998:1002] == [1996, 1998, 5000, 5001]
    assert len(ranges) == 1000 + 4000000000 - 5000 + 1
    with pytest.raises(IndexError):
        ranges[len(ranges)]


def test_ranges_that_follow_each_other_are_written_as_one() -> None:
    assert str(SeedRanges.parse("0-4,5-9, 20,12")) == "0-9,20,12"
