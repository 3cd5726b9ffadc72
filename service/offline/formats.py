"""A shard's rows become its files, in each format that a set can have.

A writer takes the rows as they are made, some at a time, and holds no more of them than their seeds and
classes (npz, zip) or one row group (Parquet). The same rows give the same bytes: no time, no user, a fixed
order. Refuses to own where files go, and when.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from models.manifest import Manifest
from service.encoding import encode_npy
from service.errors import StartError
from service.offline.job import Job, SetFormat, shard_name
from service.provenance import psi_text
from service.rows import Rows

_ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say
_ROW_GROUP_BYTES: Final = 16 * 2**20


@dataclass(frozen=True, eq=False)
class Made:
    """Rows that were made together."""

    names: list[str]
    rows: Rows
    images: npt.NDArray[np.uint8]
    """[n, H, W, C]"""
    files: list[bytes] | None
    """One encoded image a row; None where pixels are what is asked for."""
    realness: npt.NDArray[np.float64] | None = None
    """[n], where D says how real each is."""
    judged: npt.NDArray[np.float64] | None = None
    """The same of these rows and of those that were left out among them, in their order."""

    def image_files(self) -> list[bytes]:
        """A file an image: the encoded one, else its pixels [H, W, C] as .npy."""
        return [encode_npy(image) for image in self.images] if self.files is None else self.files


Write = Callable[[Path, int, Job, Manifest, Iterable[Made]], list[Path]]
"""(folder, shard, job, manifest, its rows in order) -> the files written there, in order."""


def write_folder(folder: Path, shard: int, job: Job, manifest: Manifest, rows: Iterable[Made]) -> list[Path]:
    """An image a file, named by its seed."""
    written = []
    for made in rows:
        for name, data in zip(made.names, made.image_files(), strict=True):
            path = folder / f"{name}.{job.image_format}"
            path.write_bytes(data)
            written.append(path)
    return written


def write_npy(folder: Path, shard: int, job: Job, manifest: Manifest, rows: Iterable[Made]) -> list[Path]:
    """Images [N, H, W, C] uint8 as one .npy."""
    path = folder / f"{shard_name(shard)}.npy"
    with path.open("wb") as file:
        _write_pixels(file, folder, shard, job, manifest, rows)
    return [path]


def write_npz(folder: Path, shard: int, job: Job, manifest: Manifest, rows: Iterable[Made]) -> list[Path]:
    """One .npz: images [N, H, W, C] uint8, seeds and class_idx [N] int64, truncation_psi [N] float32, and
    realness [N] float64 where it is asked for."""
    path = folder / f"{shard_name(shard)}.npz"
    names = ["seeds", "class_idx", "truncation_psi", *(["realness"] if job.realness else [])]
    columns: dict[str, list[Any]] = {name: [] for name in names}

    def remembered() -> Iterable[Made]:
        for made in rows:
            for name, column in columns.items():
                column.append(made.realness if name == "realness" else getattr(made.rows, name))
            yield made

    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(_entry("images.npy"), "w", force_zip64=True) as member:
            _write_pixels(member, folder, shard, job, manifest, remembered())
        if not manifest.num_classes:
            del columns["class_idx"]
        for name, column in columns.items():
            archive.writestr(_entry(f"{name}.npy"), encode_npy(np.concatenate(column)))
    return [path]


def write_webdataset(
    folder: Path, shard: int, job: Job, manifest: Manifest, rows: Iterable[Made]
) -> list[Path]:
    """A tar as WebDataset reads it: an image and a .json of its seed, class and psi under the same key."""
    path = folder / f"{shard_name(shard)}.tar"
    suffix = _suffix(job)
    with path.open("wb") as file:
        size = 0
        for made in rows:
            facts = row_facts(job, manifest, made.rows, made.realness)
            for name, data, fact in zip(made.names, made.image_files(), facts, strict=True):
                size += _add_to_tar(file, f"{name}.{suffix}", data)
                size += _add_to_tar(file, f"{name}.json", json.dumps(fact).encode())
        # Two blocks of zeros end a tar, which is as long as whole records.
        file.write(bytes(2 * tarfile.BLOCKSIZE + -(size + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE))
    return [path]


def write_zip(folder: Path, shard: int, job: Job, manifest: Manifest, rows: Iterable[Made]) -> list[Path]:
    """A zip as StyleGAN's tools read it: images, and `dataset.json` with their labels, seeds and psi, and
    how all were chosen."""
    path = folder / f"{shard_name(shard)}.zip"
    suffix = _suffix(job)
    labels: list[tuple[str, int]] = []
    seeds: list[tuple[str, int]] = []
    psis: list[tuple[str, float]] = []
    realness: list[tuple[str, float]] = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for made in rows:
            row_of = row_facts(job, manifest, made.rows, made.realness)
            for name, data, fact in zip(made.names, made.image_files(), row_of, strict=True):
                archive.writestr(_entry(f"{name}.{suffix}"), data)
                seeds.append((f"{name}.{suffix}", fact["seed"]))
                psis.append((f"{name}.{suffix}", fact["truncation_psi"]))
                if manifest.num_classes:
                    labels.append((f"{name}.{suffix}", fact["class_idx"]))
                if job.realness:
                    realness.append((f"{name}.{suffix}", fact["realness"]))
        facts: dict[str, Any] = {"labels": labels or None, "seeds": seeds, "truncation_psi": psis}
        if job.realness:
            facts["realness"] = realness
        facts |= job.chosen_facts
        archive.writestr(_entry("dataset.json"), json.dumps(facts))
    return [path]


def write_parquet(folder: Path, shard: int, job: Job, manifest: Manifest, rows: Iterable[Made]) -> list[Path]:
    """A Parquet file as Hugging Face's `datasets` reads it: an image struct, or pixels and their shape."""
    import pyarrow
    from pyarrow import parquet

    path = folder / f"{shard_name(shard)}.parquet"
    schema = _parquet_schema(job, manifest)
    rows_a_group = max(1, min(1000, _ROW_GROUP_BYTES // int(np.prod(manifest.img_shape))))
    with parquet.ParquetWriter(
        path,
        schema,
        compression="none",  # images are compressed already
        use_dictionary=False,
        write_statistics=["seed", "class_idx", "truncation_psi", "realness"],
    ) as writer:
        table: dict[str, list[Any]] = {name: [] for name in schema.names}
        for made in rows:
            _add_to_table(table, made, job, manifest)
            while len(table["seed"]) >= rows_a_group:
                group = {name: column[:rows_a_group] for name, column in table.items()}
                table = {name: column[rows_a_group:] for name, column in table.items()}
                writer.write_table(pyarrow.table(group, schema), rows_a_group)
        if table["seed"]:
            writer.write_table(pyarrow.table(table, schema), rows_a_group)
    return [path]


WRITERS: Final[dict[SetFormat, Write]] = {
    "png": write_folder,
    "jpg": write_folder,
    "webp": write_folder,
    "npy": write_npy,
    "npz": write_npz,
    "webdataset": write_webdataset,
    "zip": write_zip,
    "parquet": write_parquet,
}


def library_of(fmt: SetFormat) -> str | None:
    """Name and version of the library that lays out the file. Raises StartError where it is not installed."""
    if fmt != "parquet":
        return None
    try:
        import pyarrow
    except ImportError:
        raise StartError(
            "format parquet needs pyarrow; install the extra 'parquet' beside the others: "
            "pip install -e '.[cpu,parquet]' in a clone"
        ) from None
    return f"pyarrow {pyarrow.__version__}"


def row_facts(
    job: Job, manifest: Manifest, rows: Rows, realness: npt.NDArray[np.float64] | None
) -> list[dict[str, Any]]:
    """What each row is: its seed, its class where the model has classes, its psi, how it was chosen where it
    was, and how real it is [rows] where the job wants it told."""
    facts: list[dict[str, Any]] = []
    for seed, class_idx, psi in zip(
        rows.seeds.tolist(), rows.class_idx.tolist(), rows.truncation_psi.tolist(), strict=True
    ):
        classes = {"class_idx": class_idx} if manifest.num_classes else {}
        psi_fact = {"truncation_psi": float(psi_text(psi))}
        facts.append({"seed": seed, **classes, **psi_fact, **job.chosen_facts})
    if job.realness and realness is not None:
        for fact, value in zip(facts, realness.tolist(), strict=True):
            fact["realness"] = value
    return facts


def _suffix(job: Job) -> str:
    return "npy" if job.image_format == "raw" else job.image_format


def _write_pixels(
    file: IO[bytes], folder: Path, shard: int, job: Job, manifest: Manifest, rows: Iterable[Made]
) -> None:
    """What `np.save` writes for the shard's images [N, H, W, C], without holding them."""
    if job.min_realness is None:
        _write_npy_header(file, len(job.rows_of(shard)), manifest)
        for made in rows:
            file.write(np.ascontiguousarray(made.images).data)
        return
    with tempfile.TemporaryFile(dir=folder) as held:  # how many there are comes first, and is known last
        count = 0
        for made in rows:
            held.write(np.ascontiguousarray(made.images).data)
            count += len(made.images)
        _write_npy_header(file, count, manifest)
        held.seek(0)
        shutil.copyfileobj(held, file)


def _write_npy_header(file: IO[bytes], count: int, manifest: Manifest) -> None:
    shape = (count, *manifest.img_shape)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, date_time=_ZIP_TIME)


def _add_to_tar(file: IO[bytes], name: str, data: bytes) -> int:
    """Write one member and return how many bytes that took."""
    entry = tarfile.TarInfo(name)  # mode 644, time, user and group 0
    entry.size = len(data)
    head = entry.tobuf(tarfile.USTAR_FORMAT)
    padding = bytes(-len(data) % tarfile.BLOCKSIZE)
    file.write(head + data + padding)
    return len(head) + len(data) + len(padding)


def _parquet_schema(job: Job, manifest: Manifest) -> Any:
    """The columns, and beside them what `datasets` asks for: the features, of which `image` is an Image."""
    import pyarrow

    def value(kind: str) -> dict[str, str]:
        return {"dtype": kind, "_type": "Value"}

    columns: list[tuple[str, Any]] = []
    features: dict[str, Any] = {}
    if job.image_format == "raw":
        columns += [("pixels", pyarrow.binary())]
        features["pixels"] = value("binary")
        for name in ("height", "width", "channels"):
            columns.append((name, pyarrow.int32()))
            features[name] = value("int32")
    else:
        columns.append(("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])))
        features["image"] = {"_type": "Image"}
    columns.append(("seed", pyarrow.int64()))
    features["seed"] = value("int64")
    if manifest.num_classes:
        columns.append(("class_idx", pyarrow.int64()))
        named = {"names": list(manifest.class_names), "_type": "ClassLabel"}
        features["class_idx"] = named if manifest.class_names else value("int64")
    columns.append(("truncation_psi", pyarrow.float32()))
    features["truncation_psi"] = value("float32")
    if job.realness:
        columns.append(("realness", pyarrow.float64()))
        features["realness"] = value("float64")
    described = json.dumps({"info": {"features": features}})
    return pyarrow.schema(columns, metadata={"huggingface": described})


def _add_to_table(table: dict[str, list[Any]], made: Made, job: Job, manifest: Manifest) -> None:
    if job.image_format == "raw":
        table["pixels"] += [image.tobytes() for image in made.images]
        for name, size in zip(("height", "width", "channels"), manifest.img_shape, strict=True):
            table[name] += [size] * len(made.names)
    else:
        table["image"] += [
            {"bytes": data, "path": f"{name}.{job.image_format}"}
            for name, data in zip(made.names, made.image_files(), strict=True)
        ]
    table["seed"] += made.rows.seeds.tolist()
    if manifest.num_classes:
        table["class_idx"] += made.rows.class_idx.tolist()
    table["truncation_psi"] += made.rows.truncation_psi.tolist()
    if job.realness:
        assert made.realness is not None
        table["realness"] += made.realness.tolist()
