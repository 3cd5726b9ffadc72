"""Images in files: a folder, a zip, a tar in WebDataset's form, or a folder of such.

As `ganserve` writes them and as anyone may: every image file counts, in the order of its name. Which class
an image was to show, its truncation and how it was chosen are read where they are told: in `metadata.jsonl`,
in `dataset.json`, in the `manifest.json` of a service's answer, or in a .json of the image's own name.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np

from models.errors import show
from models.sampling import MAX_TRUNCATION_PSI
from training.data.images import (
    LABELS_FILE,
    SUFFIXES,
    check_class_idx,
    parse_json,
    read_images,
    read_member,
)
from training.errors import DataError
from training.metrics.fakes import Fakes, sampler_text

_METADATA_FILE: Final = "metadata.jsonl"
_MANIFEST_FILE: Final = "manifest.json"
_UNFINISHED_FILE: Final = ".ganserve/job.json"
"""What `ganserve sample` has in a set for as long as shards of it lack."""

Facts = dict[str, Any]


def is_pictures(path: Path) -> bool:
    """Whether `path` is one of the kinds that `read_pictures` reads, by its name."""
    return path.is_dir() or path.suffix.lower() in (".zip", ".tar")


def read_pictures(path: Path) -> Fakes:
    """Read every image in `path`. Raises DataError naming what is wrong."""
    if (path / _UNFINISHED_FILE).is_file():
        raise DataError(f"{path} must be a whole set, shards of it lack: finish it with `ganserve sample`")
    pictures: dict[str, bytes] = {}
    facts: dict[str, Facts] = {}
    for name, content in _files(path):
        if name.lower().endswith(SUFFIXES):
            pictures[name] = content
        elif name.endswith((".json", ".jsonl")):
            for file, told in _told(name, content):
                facts.setdefault(_key(file), {}).update(told)
    names = sorted(pictures)
    images = read_images(str(path), names, pictures.__getitem__)  # [N, C, H, W]
    of_images = [(name, facts.get(_key(name), {})) for name in names]
    classes = [_class_idx_of(name, told) for name, told in of_images]
    psis = {_psi_of(name, told) for name, told in of_images}
    samplers = {_sampler_of(name, told) for name, told in of_images}
    if len(psis) > 1:
        raise DataError(f"{path} must hold images of one truncation_psi, it holds {show(sorted(psis))}")
    if len(samplers) > 1:
        raise DataError(f"{path} must hold images of one sampler, it holds {show(sorted(samplers))}")
    return Fakes(
        label=path.name,
        images=np.ascontiguousarray(images.transpose(0, 2, 3, 1)),
        class_idx=None if None in classes else np.array(classes),
        truncation_psi=psis.pop(),
        sampler=samplers.pop(),
    )


def _class_idx_of(name: str, told: Facts) -> int | None:
    """The class that an image was to show; None: not told, or by several numbers as some tools do."""
    class_idx = told.get("class_idx")
    if type(class_idx) is not int:
        return None
    check_class_idx(class_idx, name, "what is told of images")
    return class_idx


def _psi_of(name: str, told: Facts) -> float:
    psi = told.get("truncation_psi", 1.0)
    if type(psi) not in (int, float) or not 0 <= psi <= MAX_TRUNCATION_PSI:
        raise DataError(
            f"truncation_psi of {name} must be a number from 0 to {MAX_TRUNCATION_PSI:g}, got {show(psi)}"
        )
    return float(psi)


def _sampler_of(name: str, told: Facts) -> str:
    """How an image was chosen, as a protocol says it."""
    sampler, proposals, least = told.get("sampler", "plain"), told.get("proposals"), told.get("min_realness")
    if not isinstance(sampler, str):
        raise DataError(f"sampler of {name} must be a text, got {show(sampler)}")
    if proposals is not None and (type(proposals) is not int or proposals < 1):
        raise DataError(f"proposals of {name} must be a whole number from 1, got {show(proposals)}")
    if least is not None and (type(least) not in (int, float) or not 0 <= least <= 1):
        raise DataError(f"min_realness of {name} must be a number from 0 to 1, got {show(least)}")
    text = sampler if proposals is None else sampler_text(sampler, proposals)
    return text if least is None else f"{text}, realness of at least {least:g}"


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of every file in a folder or an archive, archives in a folder opened."""
    if path.is_dir():
        for file in sorted(one for one in path.rglob("*") if one.is_file()):
            name = file.relative_to(path).as_posix()
            if is_pictures(file):
                yield from ((f"{name}/{member}", content) for member, content in _files(file))
            elif file.suffix.lower() in (*SUFFIXES, ".json", ".jsonl"):
                yield name, file.read_bytes()
        return
    try:
        if path.suffix.lower() == ".tar":
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if (content := _read_from_tar(path, tar, member)) is not None:
                        yield member.name, content
        else:
            with zipfile.ZipFile(path) as archive:
                yield from ((name, read_member(archive, name)) for name in archive.namelist())
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise DataError(f"{path} must be a folder, a zip or a tar of images: {error}") from None


def _read_from_tar(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    """The content of a file in a tar, None for what is none. Raises DataError for a link to nothing."""
    try:
        opened = tar.extractfile(member)
        return None if opened is None else opened.read()
    except (KeyError, RecursionError):
        raise DataError(f"{member.name} in {path} is a link to a file that is not there") from None


def _told(name: str, content: bytes) -> Iterator[tuple[str, Facts]]:
    """Yield files and what the file `name` tells of each."""
    folder, _, file = name.rpartition("/")
    beside = f"{folder}/" if folder else ""
    try:
        if file == _METADATA_FILE:
            for line in content.splitlines():
                row = parse_json(line, name)
                yield beside + row["file_name"], row
            return
        told = parse_json(content, name)
        if file == LABELS_FILE:
            chosen = {fact: told[fact] for fact in ("sampler", "proposals", "min_realness") if fact in told}
            for column, fact in (("labels", "class_idx"), ("truncation_psi", "truncation_psi")):
                for image, value in told.get(column) or ():
                    yield beside + image, {fact: value, **chosen}
        elif file == _MANIFEST_FILE:
            images = told.get("images") if isinstance(told, dict) else None
            for row in images if isinstance(images, list) else ():
                if isinstance(row, dict) and isinstance(row.get("name"), str):
                    yield beside + row["name"], row
        elif isinstance(told, dict):
            yield name, told
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{name} must tell of images as `ganserve sample` does") from None


def _key(file: str) -> str:
    """A file's name without its ending: what an image and the .json of its name share."""
    path = PurePosixPath(file)
    return str(path.with_suffix("") if path.name else path)
