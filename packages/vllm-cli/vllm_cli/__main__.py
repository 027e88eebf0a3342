"""``python -m vllm_cli`` is the ``vllm`` command."""

import sys

from vllm_cli.main import main

sys.exit(main())
