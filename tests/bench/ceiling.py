"""What the one API process can do at most: requests a second, of a generator that costs nothing, and encodes.

    python tests/bench/ceiling.py [--seconds S]

The toy generator of the tests (12x12, one matrix product) takes microseconds, so HTTP, validation,
packing and scattering are what is measured: CPU time of the API process a request, and so how many
one core can take. On a GPU the API process encodes too, in threads; the second table is that.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parent.parent))
from server_process import GANSERVE, free_port
from toy import publish_toy

from models.store import Store
from service.bench import Case, ask, cpu_seconds, family
from service.provenance import Rendering


def api_process(pid: int) -> int:
    """The one child that was forked, not spawned: it has its parent's command line."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    (child,) = (one for one in family(pid)[1:] if Path(f"/proc/{one}/cmdline").read_bytes() == command)
    return child


def requests(store: Path, seconds: float) -> None:
    port = free_port()
    flags = ["--store", str(store), "--model", "toy", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        [str(GANSERVE), "serve", *flags, "--log-level", "warning"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    server.stdout.readline()  # it says where it serves once it is ready
    print("| | requests/s | images/s | CPU us a request, API process | requests/s of one core |")
    print("|---|---|---|---|---|")
    try:
        api = api_process(server.pid)
        with multiprocessing.get_context("spawn").Pool(1) as client:
            for case in (Case(64, 1, "png"), Case(16, 64, "npy")):
                client.apply(ask, (port, case, 1.0))
                before = cpu_seconds([api])
                load = client.apply(ask, (port, case, seconds))
                asked = load.images / case.n
                each_s = (cpu_seconds([api]) - before) / asked
                print(
                    f"| {case.title} | {asked / load.seconds:.0f} | {load.images / load.seconds:.0f} "
                    f"| {each_s * 1e6:.0f} | {1 / each_s:.0f} |"
                )
    finally:
        server.terminate()
        server.wait()


def encodes(store: Path, seconds: float) -> None:
    rendering = Rendering(Store(store).resolve("toy").manifest, "CPUExecutionProvider", "1", marks=True)
    print("\n| PNGs a second | 1 thread | 2 threads |\n|---|---|---|")
    for size in (64, 256):
        y, x = np.mgrid[:size, :size] / size * 6
        smooth = np.stack([np.sin(x + k) * np.cos(y) for k in range(3)], axis=-1)
        noise = np.random.RandomState(0).randn(size, size, 3) * 4
        image = np.clip(smooth * 100 + 128 + noise, 0, 255).astype(np.uint8)

        def encode(until: float, image: np.ndarray = image) -> int:
            made = 0
            while time.monotonic() < until:
                for seed in range(16):
                    rendering.encode(image, "png", seed, 0, 1.0)
                made += 16
            return made

        speeds = []
        for threads in (1, 2):
            with ThreadPoolExecutor(threads) as pool:
                until = time.monotonic() + seconds
                speeds.append(sum(pool.map(encode, [until] * threads)) / seconds)
        print(f"| {size}x{size} RGB | {speeds[0]:.0f} | {speeds[1]:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        publish_toy(store)
        requests(store, seconds)
        encodes(store, seconds)


if __name__ == "__main__":
    main()
