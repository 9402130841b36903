"""The allocator's habits, seen in a process of its own: other tests shall not inherit them."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")

SCRIPT = """
import resource, sys
import numpy as np
from tskd.machine.memory import give_back_freed_memory, keep_freed_memory, peak_memory_mb, reset_peaks

def faults_of_a_block():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 * 2**20, dtype=np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    keep_freed_memory()
faults_of_a_block()
again = faults_of_a_block()
reset_peaks()
held = peak_memory_mb()
give_back_freed_memory()
reset_peaks()
print(again, held - peak_memory_mb())
"""


def measure(mode: str) -> tuple[float, float]:
    """Return the page faults of asking for 64 MiB a second time, and the MiB that were given back at the end."""
    answer = subprocess.run([sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True)
    faults, given_back = map(float, answer.stdout.split())
    return faults, given_back


def test_a_block_freed_and_asked_for_again_costs_no_page_faults_and_is_given_back_when_told() -> None:
    faults, given_back = measure("keep")
    usual, _ = measure("as it is")
    assert faults < 0.05 * usual
    assert given_back > 60
