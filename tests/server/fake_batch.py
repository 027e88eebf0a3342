"""``vllm run-batch`` with the scripted engine instead of the real one: ``python -m tests.server.fake_batch [flags]``.

The environment variable ``FAKE`` is that of ``fake_serve``.
"""

import argparse
import sys

from tests.server import fake_serve
from vllm_server.batch.command import add_arguments, run


def main() -> int:
    """Parse the flags as the command line does, and answer the requests of the file."""
    sys.modules["vllm_engine.async_llm"] = fake_serve.module()
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
