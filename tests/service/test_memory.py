"""Memory that a process of the server has freed goes back to the system."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import ctypes, sys
from pathlib import Path
from service.memory import give_freed_memory_back

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

if sys.argv[1] == "give back":
    give_freed_memory_back()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def use_and_free(mib):
    block = libc.malloc(mib * 2**20)
    ctypes.memset(block, 1, mib * 2**20)
    libc.free(block)

before = resident_mib()
use_and_free(24)
use_and_free(20)
print(resident_mib() - before)
"""


def test_a_process_that_was_told_to_keeps_no_more_than_a_mebibyte_of_what_it_freed() -> None:
    def kept_mib(argument: str) -> float:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, argument], check=True, capture_output=True, text=True
        )
        return float(done.stdout)

    assert kept_mib("leave it") > 15  # what the server would hold on to
    assert kept_mib("give back") < 3
