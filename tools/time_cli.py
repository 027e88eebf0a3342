"""Print the median of seven wall times of the commands that should be there in a moment.

Usage: ``python tools/time_cli.py``, with the Python that vllm-cli is installed in.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 7
COMMANDS = (["--version"], ["--help"], ["chat", "--help"], ["serve", "--help"], ["run-batch", "--help"])


def wall_seconds(command: list[str]) -> float:
    """Seconds from the launch of ``command`` to its end; raises ``CalledProcessError`` when it fails."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Time every command, after one run that warms the file cache."""
    vllm = str(Path(sys.executable).with_name("vllm"))
    for arguments in COMMANDS:
        command = [vllm, *arguments]
        try:
            wall_seconds(command)
        except subprocess.CalledProcessError as error:
            print(f"vllm {' '.join(arguments):<14} failed with code {error.returncode}")
            continue
        walls = [wall_seconds(command) for _ in range(RUNS)]
        spread = f"of {RUNS}: {min(walls):.3f} to {max(walls):.3f}"
        print(f"vllm {' '.join(arguments):<14} {statistics.median(walls):.3f} s   ({spread})")


if __name__ == "__main__":
    main()
