"""Which rows a job makes: seeds from range text or a file, and each row's class and psi.

Any slice of the rows can be had without the others, so that a shard depends on nothing but its place in
the job, and memory does not grow with range text; rows of a file take 24 bytes each.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from models.calibration import Sampler
from models.errors import InvalidValue, show
from models.manifest import Manifest
from models.sampling import SeedRanges, check_seed, resolve_class_idx, resolve_truncation_psi
from service.provenance import psi_text
from service.rows import Rows

ClassRule = int | Literal["balanced", "random"] | None
"""One class for all rows; row i takes class i modulo num_classes; one drawn from its seed; the default."""

COLUMNS: Final = ("seed", "class_idx", "truncation_psi")


@dataclass(frozen=True, eq=False)
class SeedTable:
    """Rows as a file lists them."""

    seeds: npt.NDArray[np.int64]
    """[N]"""
    class_idx: npt.NDArray[np.int64] | None
    """[N], or None where the file has no such column."""
    truncation_psi: npt.NDArray[np.float32] | None
    """[N], or None where the file has no such column."""

    def __len__(self) -> int:
        return len(self.seeds)

    @cached_property
    def turns(self) -> npt.NDArray[np.int64]:
        """How many times each row's seed has come, itself included [N]: 1 where it comes once."""
        order = np.argsort(self.seeds, kind="stable")
        ordered = self.seeds[order]
        at = np.arange(len(ordered))
        begins = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        turns = np.empty_like(at)
        turns[order] = at - np.maximum.accumulate(np.where(begins, at, 0)) + 1
        return turns

    @cached_property
    def csv(self) -> bytes:
        """The same rows as the text of a CSV file; equal rows, equal text."""
        columns: list[Sequence[str]] = [[str(seed) for seed in self.seeds.tolist()]]
        names = ["seed"]
        if self.class_idx is not None:
            columns.append([str(one) for one in self.class_idx.tolist()])
            names.append("class_idx")
        if self.truncation_psi is not None:
            columns.append([psi_text(psi) for psi in self.truncation_psi.tolist()])
            names.append("truncation_psi")
        lines = (",".join(row) for row in zip(*columns, strict=True))
        return "\n".join([",".join(names), *lines, ""]).encode()

    @cached_property
    def sha256(self) -> str:
        """sha256 (64 hex) of `csv`."""
        return hashlib.sha256(self.csv).hexdigest()


def read_seeds_file(path: Path) -> SeedTable:
    """Rows of a .csv with a header, a .jsonl with an object a line, or any other file with a seed a line.

    Columns are `seed` and, where wanted, `class_idx` and `truncation_psi`. Raises InvalidValue naming
    file, line, field, rule and value.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return read_seeds(file, path.suffix.lower(), str(path))
    except OSError as error:
        raise InvalidValue(f"seeds_file must be a readable file: {error.strerror}, got {path}") from None
    except UnicodeDecodeError:
        raise InvalidValue(f"seeds_file must be UTF-8 text, got {path}") from None


def read_seeds(file: io.TextIOBase | Any, suffix: str, name: str) -> SeedTable:
    """As `read_seeds_file`, of an open text file."""
    rows = {".csv": _csv_rows, ".jsonl": _jsonl_rows}.get(suffix, _plain_rows)(file, name)
    seeds, classes, psis = array("q"), array("q"), array("f")
    columns: set[str] | None = None
    lines = array("q")
    for line, row in rows:
        where = f"{name} line {line}"
        if columns is None:
            columns = set(row)
            if "seed" not in columns or columns - set(COLUMNS):
                raise InvalidValue(
                    f"{where}: columns must be seed and, where wanted, class_idx and truncation_psi, "
                    f"got {', '.join(map(show, row))}"
                )
        elif set(row) != columns:
            wanted = ", ".join(sorted(columns))
            raise InvalidValue(f"{where}: it must have what the first row has ({wanted}), got {show(row)}")
        try:
            seeds.append(check_seed(_number(row["seed"], int, "seed")))
            if "class_idx" in columns:
                classes.append(_number(row["class_idx"], int, "class_idx"))
            if "truncation_psi" in columns:
                psi = _number(row["truncation_psi"], float, "truncation_psi")
                psis.append(resolve_truncation_psi(psi, True))
        except InvalidValue as error:
            raise InvalidValue(f"{where}: {error}") from None
        except OverflowError:
            got = show(row["class_idx"])
            raise InvalidValue(f"{where}: class_idx must be one of the model's, got {got}") from None
        lines.append(line)
    if columns is None:
        raise InvalidValue(f"seeds_file must name at least one seed, got {name}")
    table = SeedTable(
        np.frombuffer(seeds, np.int64),
        np.frombuffer(classes, np.int64) if "class_idx" in columns else None,
        np.frombuffer(psis, np.float32) if "truncation_psi" in columns else None,
    )
    _refuse_twice(table, np.frombuffer(lines, np.int64), name)
    return table


def _plain_rows(file: Iterator[str], name: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    for number, text in enumerate(file, 1):
        if seed := text.partition("#")[0].strip():
            yield number, {"seed": seed}


def _jsonl_rows(file: Iterator[str], name: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    for number, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise InvalidValue(f"{name} line {number}: it must be a JSON object, got {show(text.strip())}")
        yield number, row


def _csv_rows(file: Iterator[str], name: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    reader = csv.reader(file)
    try:
        header = [column.strip() for column in next(reader, [])]
        for values in reader:
            if not values:
                continue
            if len(values) != len(header) or len(set(header)) != len(header):
                raise InvalidValue(
                    f"{name} line {reader.line_num}: it must have one value for each of "
                    f"{', '.join(map(show, header))}, got {show(values)}"
                )
            yield reader.line_num, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise InvalidValue(f"{name} line {reader.line_num}: it must be CSV: {error}") from None


def _number(value: object, kind: type[int] | type[float], field: str) -> Any:
    """`value`, a number or its text, as `kind`. Raises InvalidValue."""
    if isinstance(value, str):
        try:
            return kind(value)
        except ValueError:
            pass
    elif isinstance(value, int | kind) and not isinstance(value, bool):
        return value
    rule = "an integer" if kind is int else "a number"
    raise InvalidValue(f"{field} must be {rule}, got {show(value)}")


def _refuse_twice(table: SeedTable, lines: npt.NDArray[np.int64], name: str) -> None:
    keys = [one for one in (table.truncation_psi, table.class_idx, table.seeds) if one is not None]
    order = np.lexsort(keys)  # stable, by seed first
    same = np.logical_and.reduce([key[order][1:] == key[order][:-1] for key in keys])
    if same.any():
        at = int(np.flatnonzero(same)[0])
        first, second = order[at], order[at + 1]
        raise InvalidValue(
            f"{name} must not name an image twice, got seed {table.seeds[first]} "
            f"in lines {lines[first]} and {lines[second]}"
        )


def random_class_idx(seed: int, num_classes: int) -> int:
    """A class drawn from the seed alone: sha256("class_idx SEED"), its first 8 bytes modulo num_classes."""
    drawn = hashlib.sha256(b"class_idx %d" % seed).digest()[:8]
    return int.from_bytes(drawn, "big") % num_classes


class RowSource:
    """Every row of a job by its place: seed, class, psi and name.

    Raises InvalidValue for a class or psi that the model does not have.
    """

    def __init__(
        self,
        manifest: Manifest,
        seeds: SeedRanges | SeedTable,
        class_idx: ClassRule = None,
        truncation_psi: float | None = None,
        *,
        sampler: Sampler | None = None,
        proposals: int | None = None,
        realness: bool = False,
    ) -> None:
        """`sampler`, `proposals` and `realness` are those of `Rows.judged`."""
        self.manifest = manifest
        self.seeds = seeds
        self.class_idx = class_idx
        self.truncation_psi = truncation_psi
        table = seeds if isinstance(seeds, SeedTable) else None
        if table is not None and table.class_idx is not None:
            if class_idx is not None:
                raise InvalidValue(
                    f"class_idx must be left out: the seeds file has that column, got {class_idx}"
                )
            _check_column(table.class_idx, manifest)
        if table is not None and table.truncation_psi is not None:
            if truncation_psi is not None:
                raise InvalidValue(
                    f"truncation_psi must be left out: the seeds file has that column, got {truncation_psi:g}"
                )
            for psi in np.unique(table.truncation_psi).tolist():
                resolve_truncation_psi(psi, manifest.has_truncation)
        if isinstance(class_idx, int):
            resolve_class_idx(class_idx, [None], manifest.num_classes)
        elif class_idx is not None and not manifest.num_classes:
            raise InvalidValue(f"class_idx must be left out: the model has no classes, got {class_idx}")
        resolve_truncation_psi(truncation_psi, manifest.has_truncation)
        psis: list[float | None] = [truncation_psi]
        if table is not None and table.truncation_psi is not None:
            psis = np.unique(table.truncation_psi).tolist()
        for psi in psis:
            example = Rows.of_seeds(manifest, [0], None, psi).judged(manifest, sampler, proposals, realness)
        self.judging = example.judging
        """What D does for each row."""

    def __len__(self) -> int:
        return len(self.seeds)

    def rows(self, start: int, stop: int) -> Rows:
        """Rows start to stop-1 of the job."""
        if isinstance(self.seeds, SeedTable):
            table, seeds = self.seeds, self.seeds.seeds[start:stop].tolist()
        else:
            table, seeds = None, self.seeds[start:stop]
        classes: int | Sequence[int] | None
        num_classes = self.manifest.num_classes
        if table is not None and table.class_idx is not None:
            classes = table.class_idx[start:stop].tolist()
        elif self.class_idx == "balanced":
            classes = [row % num_classes for row in range(start, start + len(seeds))]
        elif self.class_idx == "random":
            classes = [random_class_idx(seed, num_classes) for seed in seeds]
        else:
            classes = self.class_idx
        psi: float | Sequence[float] | None = self.truncation_psi
        if table is not None and table.truncation_psi is not None:
            psi = table.truncation_psi[start:stop].tolist()
        rows = Rows.of_seeds(self.manifest, seeds, classes, psi)
        return rows if self.judging is None else replace(rows, judging=self.judging)

    def names(self, start: int, stop: int) -> list[str]:
        """What images start to stop-1 are called: `seed0000000042`, the second time `seed0000000042-2`."""
        if not isinstance(self.seeds, SeedTable):
            return [f"seed{seed:010d}" for seed in self.seeds[start:stop]]
        seeds, turns = self.seeds.seeds[start:stop].tolist(), self.seeds.turns[start:stop].tolist()
        return [
            f"seed{seed:010d}" + (f"-{turn}" if turn > 1 else "")
            for seed, turn in zip(seeds, turns, strict=True)
        ]


def _check_column(class_idx: npt.NDArray[np.int64], manifest: Manifest) -> None:
    if not manifest.num_classes:
        raise InvalidValue("class_idx must be left out: the model has no classes, and the seeds file has it")
    wrong = class_idx[(class_idx < 0) | (class_idx >= manifest.num_classes)]
    if wrong.size:
        resolve_class_idx(int(wrong[0]), [None], manifest.num_classes)
