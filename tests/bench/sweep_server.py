"""The mock server as a command with a port and a way to behave: ``sweep_server.py --mode M --port P``."""

import argparse
import asyncio
import os
import selectors
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench import mock_server
from tests.bench.mock_server import Plan

PLANS = {
    "good": [Plan(0.002, 0.001)],
    "slow": [Plan(0.3, 0.1)],
    "steady": [Plan(0.05, 0.005)],
    "die": [Plan(0.002, 0.001)],
}


class _Server(mock_server._Server):
    dies = False

    def admit(self, served: Any) -> Plan:
        if self.dies and len(self.served) == 1:
            os._exit(1)
        return super().admit(served)


class _Connection(mock_server._Connection):
    def _post(self, path: str, body: dict[str, Any], headers: dict[str, str], arrived: float) -> None:
        if path == "/reset_prefix_cache" and os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
            self._send(200, {})
        else:
            super()._post(path, body, headers, arrived)


async def _forever(server: _Server, port: int) -> None:
    listening = await asyncio.get_running_loop().create_server(lambda: _Connection(server), "127.0.0.1", port)
    await listening.serve_forever()


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", required=True)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    if options.mode == "refuse":
        sys.exit("I will not start")
    server = _Server(PLANS[options.mode], tokenize=True, max_model_len=4096)
    server.dies = options.mode == "die"
    # select() knows microseconds; epoll, the default, would wake up to a millisecond late.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(_forever(server, options.port))


if __name__ == "__main__":
    _main()
