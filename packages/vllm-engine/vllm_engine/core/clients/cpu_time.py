"""Processor time of another process, or of a thread of this one."""

import time

_WHOLE_PROCESS = 2
"""The kind of clock that counts running time, in the lowest bits of its id (Linux)."""


def clock_seconds(clock: int | None) -> float | None:
    """The time of a clock of the system; None when there is no such clock, any more or at all."""
    try:
        return None if clock is None else time.clock_gettime(clock)
    except OSError:
        return None


def process_cpu_seconds(pid: int) -> float | None:
    """Processor time of all threads of a process; None when it is gone, or the system does not tell."""
    # What clock_getcpuclockid(3) makes of a process id on Linux; elsewhere there is no such clock.
    return clock_seconds((~pid << 3) | _WHOLE_PROCESS)
