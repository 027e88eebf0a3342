#!/usr/bin/env python
"""Random models, settings and requests through the engine, against transformers and plain arithmetic.

``make fuzz-engine ARGS="--seed 1000 --seconds 600"``: one case for each seed, and the whole of each fault. A seed is
the same case every time. What a case is, and what must hold, is in ``tests/engine/fuzzing``.
"""

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "VLLM_CHECK_INVARIANTS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""Of the environment, before torch is loaded."""


def main() -> int:
    """Returns 1 when there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--cases", type=int, default=1_000_000, help="at most so many")
    parser.add_argument("--seconds", type=float, default=300, help="no case begins after so long")
    arguments = parser.parse_args()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)

    from transformers import logging

    from tests.engine.fuzzing.case import run_case

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    counts: Counter[str] = Counter()
    started = time.monotonic()
    for seed in range(arguments.seed, arguments.seed + arguments.cases):
        if time.monotonic() - started > arguments.seconds:
            break
        counts["cases"] += 1
        with tempfile.TemporaryDirectory(prefix="fuzz-engine-") as folder:
            try:
                counts += run_case(seed, Path(folder))
            except Exception:
                counts["faults"] += 1
                print(f"seed {seed}:\n{traceback.format_exc()}", flush=True)
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    return 1 if counts["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
