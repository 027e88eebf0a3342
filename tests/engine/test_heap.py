"""Memory that a step frees is there for the next one, without fresh pages from the system."""

import subprocess
import sys

import pytest

_COUNT_FAULTS = """
import resource, torch
from vllm_engine.execution.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.empty(48 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before = faults()
done = keep_freed_memory()
faults(), faults()  # the heap grows to its size
print(done, before, faults())
"""


def run(**environment: str) -> tuple[bool, int, int]:
    command = [sys.executable, "-c", _COUNT_FAULTS]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    done, before, after = printed.split()
    return done == "True", int(before), int(after)


@pytest.mark.skipif(sys.platform != "linux", reason="for glibc")
def test_a_freed_tensor_is_not_given_back() -> None:
    done, before, after = run()
    if not done:
        pytest.skip("the allocator is not glibc's")
    # 48 MiB are 12,288 pages of 4 KiB, or 24 of 2 MiB.
    assert before >= 5 * 24
    assert after < before / 10


def test_settings_of_the_environment_win() -> None:
    done, before, after = run(MALLOC_MMAP_THRESHOLD_="1000000")
    assert not done
    assert after > before / 2
