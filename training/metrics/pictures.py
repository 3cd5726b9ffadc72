"""Images in files: a folder, a zip, a tar in WebDataset's form, or a folder of such.

As `ganserve sample` writes them and as anyone may: every image file counts, in the order of its name. Which
class an image was to show, and its truncation, are read where they are told: in `metadata.jsonl`, in
`dataset.json`, or in a .json of the image's own name; how images were chosen, in the set's `manifest.json`.
"""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from models.errors import show
from training.data.images import LABELS_FILE, SUFFIXES, read_images
from training.errors import DataError
from training.metrics.fakes import Fakes, sampler_text

_METADATA_FILE = "metadata.jsonl"


def read_pictures(path: Path) -> Fakes:
    """Read every image in `path`. Raises DataError naming what is wrong."""
    pictures: dict[str, bytes] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name, content in _files(path):
        if name.lower().endswith(SUFFIXES):
            pictures[name] = content
        elif name.endswith((".json", ".jsonl")):
            for file, told in _told(name, content):
                facts.setdefault(_key(file), {}).update(told)
    names = sorted(pictures)
    images = read_images(str(path), names, pictures.__getitem__)  # [N, C, H, W]
    of_images = [facts.get(_key(name), {}) for name in names]
    classes = [one.get("class_idx") for one in of_images]
    psis = {float(one.get("truncation_psi", 1.0)) for one in of_images}
    if len(psis) > 1:
        raise DataError(f"{path} must hold images of one truncation_psi, it holds {show(sorted(psis))}")
    return Fakes(
        label=path.name,
        images=np.ascontiguousarray(images.transpose(0, 2, 3, 1)),
        class_idx=np.array(classes) if all(type(one) is int for one in classes) else None,
        truncation_psi=psis.pop(),
        sampler=_sampler_of(facts.get("manifest", {}).get("job")),
    )


def _sampler_of(job: object) -> str:
    """How the images of a set of `ganserve sample` were chosen, of the job in its `manifest.json`."""
    if not isinstance(job, dict):  # another's set
        return "plain"
    proposals, least = job.get("proposals", 1), job.get("min_realness")
    text = sampler_text("mh" if proposals > 1 else "plain", proposals)
    return text if least is None else f"{text}, realness of at least {least:g}"


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of every file in a folder or an archive, archives in a folder opened."""
    try:
        if path.is_dir():
            for file in sorted(one for one in path.rglob("*") if one.is_file()):
                name = file.relative_to(path).as_posix()
                if file.suffix in (".zip", ".tar"):
                    yield from ((f"{name}/{member}", content) for member, content in _files(file))
                elif file.suffix.lower() in (*SUFFIXES, ".json", ".jsonl"):
                    yield name, file.read_bytes()
        elif path.suffix == ".tar":
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if (content := tar.extractfile(member)) is not None:
                        yield member.name, content.read()
        else:
            with zipfile.ZipFile(path) as archive:
                yield from ((name, archive.read(name)) for name in archive.namelist())
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise DataError(f"{path} must be a folder, a zip or a tar of images: {error}") from None


def _told(name: str, content: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield files and what the file `name` tells of each."""
    folder, _, file = name.rpartition("/")
    beside = f"{folder}/" if folder else ""
    try:
        if file == _METADATA_FILE:
            for row in map(json.loads, content.splitlines()):
                yield beside + row["file_name"], row
        elif file == LABELS_FILE:
            columns = json.loads(content)
            for column, fact in (("labels", "class_idx"), ("truncation_psi", "truncation_psi")):
                for image, value in columns.get(column) or ():
                    yield beside + image, {fact: value}
        elif isinstance(told := json.loads(content), dict):
            yield name, told
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{name} must tell of images as `ganserve sample` does: {error!r}") from None


def _key(file: str) -> str:
    """A file's name without its ending: what an image and the .json of its name share."""
    return str(PurePosixPath(file).with_suffix(""))
