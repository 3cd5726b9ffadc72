"""`gantrain` as a process of its own, on a toy data set that a user could have brought."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from PIL import Image
from toy_training import toy_dataset

ROOT = Path(__file__).parents[1]
TINY = [
    f"--set={field}"
    for field in (
        "img_resolution=16",
        "z_dim=8",
        "class_dim=4",
        "G_channels=8",
        "D_channels=8",
        "batch_size=16",
    )
]


def gantrain(*arguments: str, code: str | None = None) -> subprocess.Popen[str]:
    """Start `gantrain` (or Python `code`) as a process of its own that imports this tree."""
    command = ["-c", code] if code is not None else ["-m", "training", *arguments]
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def train_arguments(run_dir: Path, data: Path, total_kimg: float, tick_kimg: float = 0.064) -> list[str]:
    """A run of a tiny pair on one thread."""
    return [
        "train",
        "--preset=fashion-mnist",
        f"--run-dir={run_dir}",
        f"--data={data}",
        f"--total-kimg={total_kimg}",
        f"--tick-kimg={tick_kimg}",
        "--threads=1",
        *TINY,
    ]


def save_toy_zip(path: Path, labelled: bool = True) -> Path:
    """Write the toy data set as a zip, and return its path."""
    dataset = toy_dataset()
    labels = []
    with zipfile.ZipFile(path, "w") as archive:
        for i, image in enumerate(dataset.images):
            file = io.BytesIO()
            Image.fromarray(image[0]).save(file, format="PNG")
            archive.writestr(f"{i:04d}.png", file.getvalue())
            labels.append([f"{i:04d}.png", int(dataset.class_idx[i])])
        archive.writestr("dataset.json", json.dumps({"labels": labels if labelled else None}))
    return path
