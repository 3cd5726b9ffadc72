"""What the same work costs behind other servers: two as their documentation has them, one by hand.

    pip install mosec==0.9.8
    python tests/bench/peers/compare.py --model reference --store store [--seconds S] [--rounds N]

The same latents, graph and PNG encoder on two workers of one thread, in microbatches of up to 16 rows: what
differs is the serving. Each server is measured in turns with the in-process limit, while the others stand
still (SIGSTOP), since some of them poll. The figures are those of `ganserve bench`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from models.store import Store
from service.bench import HEADER, Case, Rounds, ask, cpu_seconds, family, first_image, free_port, in_process
from service.settings import Settings

PEERS = {
    "Starlette by hand": "starlette_server.py",
    "mosec": "mosec_server.py",
    "LitServe": "litserve_server.py",
}
CASES = (Case(1, 1, "png"), Case(32, 1, "png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    os.environ |= {"PEERS_STORE": str(asked.store), "PEERS_MODEL": asked.model}
    served = ["--store", str(asked.store), "--model", asked.model]
    commands = {"ganserve": ["-m", "service", "serve", *served, "--log-level", "warning", "--port"]}
    for name, file in PEERS.items():
        if name == "mosec" and find_spec("mosec") is None:
            print("without mosec, which is not installed")
        else:
            commands[name] = [str(Path(__file__).with_name(file))]
    settings = Settings(store=asked.store, model=asked.model)
    with ExitStack() as stack:
        servers: dict[str, tuple[int, int]] = {}  # name -> port, process group
        for name, command in commands.items():
            port = free_port()
            process = subprocess.Popen(
                [sys.executable, *command, str(port)], stdout=subprocess.DEVNULL, start_new_session=True
            )
            stack.callback(os.killpg, process.pid, signal.SIGKILL)
            first_image(port, process)
            os.killpg(process.pid, signal.SIGSTOP)
            servers[name] = port, process.pid
        limits = stack.enter_context(in_process(settings, Store(asked.store).resolve(asked.model)))
        client = stack.enter_context(multiprocessing.get_context("spawn").Pool(1))
        for case in CASES:
            measured = {name: Rounds(case) for name in servers}
            for number in range(asked.rounds + 1):
                limit = limits(case, asked.seconds)
                order = [*servers][number % len(servers) :] + [*servers][: number % len(servers)]
                for name in order:
                    port, group = servers[name]
                    os.killpg(group, signal.SIGCONT)
                    before = cpu_seconds(family(group))
                    load = client.apply(ask, (port, case, asked.seconds))
                    cpu_s = cpu_seconds(family(group)) - before
                    os.killpg(group, signal.SIGSTOP)
                    if number:  # the first warms them up
                        measured[name].add(load, cpu_s, limit)
            print(HEADER)
            for name, rounds in measured.items():
                print(f"| {name}: {rounds.row()[2:]}", flush=True)
            print()


if __name__ == "__main__":
    main()
