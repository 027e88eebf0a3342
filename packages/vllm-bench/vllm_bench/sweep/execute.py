"""Does the runs of a sweep: starts a server, measures it by ``vllm bench serve`` in a process of its own, ends it."""

import contextlib
import itertools
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from vllm_bench.server_process import ServerProcess, free_port
from vllm_bench.startup_probe import StartupProbe
from vllm_bench.sweep.caches import reset_prefix_cache
from vllm_bench.sweep.plan import Run, Target
from vllm_bench.sweep.store import Store, status
from vllm_cli.command import CommandError

_POLL_SECONDS = 0.05
_LAST_LINES = 15
_END_SECONDS = 20.0
_INTERRUPTED = (130, 143)

Say = Callable[[str], None]


def execute(runs: Sequence[Run], store: Store, base_url: str | None, ready_seconds: float, say: Say) -> None:
    """Do those of ``runs`` that are not done; each result is in ``store`` when its run ends.

    A server that cannot be started fails its runs; one that ends during a run is started anew for the next.

    Args:
        base_url: of the running server, where none is launched.
        ready_seconds: how long a server may take to start.
        say: tells the user how it goes.
    """
    total = len(runs)
    numbers = {run.name: number for number, run in enumerate(runs, 1)}
    for target, of_target in itertools.groupby(runs, lambda run: run.target):
        pending = [run for run in of_target if not store.is_done(run)]
        while pending:
            try:
                with _reachable(target, base_url, ready_seconds, say) as (url, check):
                    while pending:
                        run = pending.pop(0)
                        say(f"run {numbers[run.name]} of {total}: {run.name}")
                        say(_outcome(_measure(run, url, store)))
                        check()
            except _NotReady as error:
                say(f"  failed: {error}")
                for run in pending:
                    store.fail(run, str(error))
                pending = []
            except CommandError as error:
                say(f"  the server is gone: {error}")


class _NotReady(Exception):
    """A server did not start."""


@contextmanager
def _reachable(
    target: Target, base_url: str | None, ready_seconds: float, say: Say
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The URL of a server that runs meanwhile, and a check that raises ``CommandError`` when it does not any more."""
    if base_url is not None:
        yield base_url, lambda: None
        return
    port = free_port()
    settings = target.settings
    url = f"{'https' if settings.tls else 'http'}://127.0.0.1:{port}"
    say(f"starting a server: {target.combination.name or 'as it is'}")
    probe = StartupProbe(port, tls=settings.tls)
    command = [*target.command, "--host", "127.0.0.1", "--port", str(port)]
    with contextlib.ExitStack() as stack:
        try:
            # The routes for development have the one that empties the prefix cache.
            server = stack.enter_context(ServerProcess(command, {"VLLM_SERVER_DEV_MODE": "1"}, dies_with_us=True))
            while not probe.is_healthy():
                server.check(server.launched + ready_seconds)
                time.sleep(_POLL_SECONDS)
        except (CommandError, OSError) as error:
            raise _NotReady(str(error)) from error
        yield url, lambda: server.check(math.inf)


def _measure(run: Run, url: str, store: Store) -> dict[str, Any]:
    """The result of one run, as it is kept."""
    cold = reset_prefix_cache(url, run.target.settings.api_key)
    result = store.unfinished
    result.unlink(missing_ok=True)
    words = [*run.words, "--save-result", "--result-dir", str(result.parent), "--result-filename", result.name]
    key = run.target.settings.api_key
    command = [sys.executable, "-m", "vllm_cli", "bench", "serve", *words, "--base-url", url]
    code, said = _call(command, {} if key is None else {"VLLM_API_KEY": key})
    if code in _INTERRUPTED:
        raise SystemExit(code)
    kept = store.take(run, prefix_cache_reset=cold)
    if kept is None:
        last = "\n".join(said.splitlines()[-_LAST_LINES:])
        kept = store.fail(run, f"`vllm bench serve` ended with code {code}: {last or '(no words)'}")
    return kept


def _call(command: list[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """Exit code and words of a command; when we are interrupted, it is told to end."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, **environment},
    )
    try:
        said, _ = process.communicate()
    except BaseException:
        process.terminate()
        try:
            process.communicate(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        raise
    return process.returncode, said.decode(errors="replace")


def _outcome(result: dict[str, Any]) -> str:
    about = result["sweep"]
    if about["error"]:
        return f"  {status(result)}: {about['error']}"
    throughput = result.get("output_throughput", result.get("request_throughput"))
    mark = "" if result.get("trusted", True) else "; NOT TO BE TRUSTED"
    unit = "output tokens/s" if "output_throughput" in result else "requests/s"
    return f"  {status(result)}: {throughput:.1f} {unit}{mark}"
