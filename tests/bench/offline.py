"""How fast `ganserve sample` is, beside what the machine could do in the same run, and beside a plain loop.

    python tests/bench/reference.py reference.onnx && gantrain import reference.onnx --name reference
    python tests/bench/offline.py store reference

In turns: the in-process limit (`service.bench`: latents, graph and encoding in full microbatches, nothing
written), the command in as many processes, and a loop as the field's scripts have it: one image a run, saved
by Pillow, in one process. The command's rate is that between its first and its last word, so that starting
does not count. CPU time an image is the figure that repeats on shared machines.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from models.sampling import LatentSampler
from models.store import Artifact, Store
from service.bench import Case, cpu_seconds, family, in_process
from service.settings import Settings

GANSERVE = Path(sys.executable).parent / "ganserve"
FORMATS = {
    "raw pixels, npz": ("npz", "npy"),
    "png, webdataset": ("webdataset", "png"),
    "png, folder": ("png", "png"),
}


def measure_command(store: Path, model: str, fmt: str, images: int, out: Path) -> tuple[float, float]:
    """images/s and CPU ms an image of one run of the command, its start not counted."""
    command = [GANSERVE, "sample", "--store", store, "--model", model, "--format", fmt, "--json"]
    command += ["--seeds", f"0-{images - 1}", "--out", out]
    process = subprocess.Popen([str(one) for one in command], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told: list[tuple[int, float, int, float]] = []  # (processes alive, when, images, CPU seconds)
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "progress" and event["images"] < images:
            pids = family(process.pid)
            told.append((len(pids), time.monotonic(), event["images"], cpu_seconds(pids)))
    assert process.wait() == 0
    told = [one for one in told if one[0] == max(told)[0]]  # while all are at work
    (_, first, before, cpu_before), (_, last, after, cpu_after) = told[0], told[-1]
    return (after - before) / (last - first), (cpu_after - cpu_before) / (after - before) * 1000


def measure_loop(artifact: Artifact, png: bool, seconds: float, out: Path) -> tuple[float, float]:
    """images/s and CPU ms an image of one image at a time, with ONNX Runtime's own settings."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(artifact.file("model.onnx")), providers=["CPUExecutionProvider"]
    )
    sampler = LatentSampler(artifact.manifest.z_dim, artifact.manifest.prior)
    made, started, before = 0, time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    while time.monotonic() < started + seconds:
        (images,) = session.run(["images"], {"latents": sampler.draw([made])})
        if png:
            Image.fromarray(images[0]).save(out / f"seed{made:04d}.png")
        else:
            np.save(out / f"seed{made:04d}.npy", images[0])
        made += 1
    after, took = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - started
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return made / took, cpu_s / made * 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("model")
    parser.add_argument("--images", type=int, default=16_000, help="a run of the command")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of the limit and of the loop")
    parser.add_argument("--formats", default=",".join(FORMATS), help="some of: " + "; ".join(FORMATS))
    arguments = parser.parse_args()
    artifact = Store(arguments.store).resolve(arguments.model)
    print(
        "| | images/s | limit | ratio | CPU ms an image | limit | ratio | a plain loop, images/s | CPU ms |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with in_process(Settings(store=arguments.store, model=arguments.model), artifact) as limit:
        for title in (one for one in FORMATS if one in arguments.formats):
            fmt, limit_fmt = FORMATS[title]
            rounds = []
            for _ in range(arguments.rounds):
                with tempfile.TemporaryDirectory() as folder:
                    out = Path(folder)
                    case = Case(32, 1, limit_fmt)
                    before = limit(case, arguments.seconds)
                    speed = measure_command(
                        arguments.store, arguments.model, fmt, arguments.images, out / "set"
                    )
                    after = limit(case, arguments.seconds)
                    loop = measure_loop(artifact, limit_fmt == "png", arguments.seconds, out)
                most = (before.images_a_second + after.images_a_second) / 2
                least_ms = (before.cpu_ms + after.cpu_ms) / 2
                ratios = speed[0] / most, speed[1] / least_ms
                rounds.append((speed[0], most, ratios[0], speed[1], least_ms, ratios[1], *loop))
                print(
                    f"# {title}: " + " ".join(f"{one:.3f}" for one in rounds[-1]), file=sys.stderr, flush=True
                )
            cells = [statistics.median(column) for column in zip(*rounds, strict=True)]
            digits = (0, 0, 2, 3, 3, 2, 0, 3)
            shown = [f"{cell:.{number}f}" for cell, number in zip(cells, digits, strict=True)]
            print(f"| {title} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
