"""Many images in one file: zip, tar or JSON, each image named by its seed, with a manifest inside.

The same images give the same bytes: no time, no user, a fixed order. Files are stored as they are,
since images are compressed already.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, Literal

from service.encoding import MEDIA_TYPES, EncodedImage, Format
from service.provenance import Rendering, psi_text

Container = Literal["zip", "tar", "json"]
MANIFEST_NAME: Final = "manifest.json"

_ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say


def pack(container: Container, images: Sequence[EncodedImage], fmt: Format, rendering: Rendering) -> bytes:
    """The files of `images` and what they are, as one file.

    zip and tar end with `manifest.json`; json is {"images": [{"seed", "class_idx", "media_type", "data":
    base64}], "manifest"}.
    """
    names = _names(images, fmt)
    manifest = _manifest(names, images, fmt, rendering)
    if container == "json":
        return _pack_json(images, fmt, manifest)
    files = [(name, image.data) for name, image in zip(names, images, strict=True)]
    files.append((MANIFEST_NAME, (json.dumps(manifest, indent=2) + "\n").encode()))
    return _pack_tar(files) if container == "tar" else _pack_zip(files)


def _names(images: Sequence[EncodedImage], fmt: Format) -> list[str]:
    """A file name an image. A seed that comes again, with another class say, gets a number: `…7-2.png`."""
    times_named: Counter[str] = Counter()
    names = []
    for image in images:
        times_named[image.name] += 1
        again = f"-{times_named[image.name]}" if times_named[image.name] > 1 else ""
        names.append(f"{image.name}{again}.{fmt}")
    return names


def _manifest(
    names: Sequence[str], images: Sequence[EncodedImage], fmt: Format, rendering: Rendering
) -> dict[str, Any]:
    """What made the images, and for each all that makes it again, and its sha256."""
    return {
        "model": rendering.model,
        "version": rendering.version,
        "digest": rendering.digest,
        "render_id": rendering.render_id,
        "format": fmt,
        "images": [
            {
                "name": name,
                "seed": image.seed,
                "class_idx": image.class_idx,
                "truncation_psi": float(psi_text(image.truncation_psi)),
                **image.judged,
                "sha256": hashlib.sha256(image.data).hexdigest(),
            }
            for name, image in zip(names, images, strict=True)
        ],
    }


def _pack_zip(files: Sequence[tuple[str, bytes]]) -> bytes:
    archive_file = io.BytesIO()
    with zipfile.ZipFile(archive_file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name, date_time=_ZIP_TIME), data)
    return archive_file.getvalue()


def _pack_tar(files: Sequence[tuple[str, bytes]]) -> bytes:
    archive_file = io.BytesIO()
    with tarfile.open(fileobj=archive_file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files:
            entry = tarfile.TarInfo(name)  # mode 644, time, user and group 0
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return archive_file.getvalue()


def _pack_json(images: Sequence[EncodedImage], fmt: Format, manifest: dict[str, Any]) -> bytes:
    entries = [
        {
            "seed": image.seed,
            "class_idx": image.class_idx,
            **image.judged,
            "media_type": MEDIA_TYPES[fmt],
            "data": base64.b64encode(image.data).decode("ascii"),
        }
        for image in images
    ]
    return json.dumps({"images": entries, "manifest": manifest}, separators=(",", ":")).encode()
