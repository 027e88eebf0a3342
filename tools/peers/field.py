"""Where contests are fought: starts both parties, lets them work in turn, and ends them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from vllm_bench.server_process import free_port
from vllm_bench.startup import measure_start
from vllm_bench.startup_probe import StartupProbe
from vllm_cli.command import CommandError

from .driver import SCRIPTS, Driver, DriverError
from .environment import export_openvino
from .generate import generate
from .outcome import Outcome, alternate
from .shape import Shape
from .works import MAX_MODEL_LEN, Contest, Work

_START_TIMEOUT = 900.0
_READ_BYTES = 2**30
_PEAK_SIZE = 4096
_ENGINE_OPTIONS = {"dtype": "bfloat16", "max_model_len": MAX_MODEL_LEN, "enable_prefix_caching": False}
_OPENVINO_OPTIONS = {"cache_size": 4, "enable_prefix_caching": False, "max_num_batched_tokens": 4096}


@dataclass
class Field:
    """Everything that the contests share.

    Args:
        folder: for models, logs and caches.
        model: the checkpoint.
        shape: of it.
        pythons: Python of each peer's environment.
        peer_settings: environment variables of each peer.
        rounds: of each contest.
        say: takes a line about the progress.
    """

    folder: Path
    model: Path
    shape: Shape
    pythons: dict[str, Path]
    peer_settings: dict[str, dict[str, str]]
    rounds: int
    say: Callable[[str], None]

    def fight(self, contests: list[Contest]) -> Iterator[Outcome]:
        """The outcome of each contest, as soon as it is known; a refusal ends its own contests only."""
        for _, group in groupby(contests, key=lambda contest: contest.pairing):
            outcomes = [Outcome(contest) for contest in group]
            try:
                self._fight_pair(outcomes)
            except (DriverError, CommandError, RuntimeError) as error:
                for outcome in outcomes:
                    if len(outcome.peer) < self.rounds or len(outcome.ours) < self.rounds:
                        outcome.refused = str(error)
                        self.say(f"{outcome.contest.title}: {error}")
            yield from outcomes

    def _fight_pair(self, outcomes: list[Outcome]) -> None:
        contest = outcomes[0].contest
        if contest.work.kind == "startup":
            self._start_both(outcomes[0])
        elif contest.work.kind == "multiply":
            self._multiply(outcomes[0])
        else:
            with self._ours(contest) as ours, self._peer(contest) as peer:
                for outcome in outcomes:
                    self._generate(outcome, ours, peer)

    def _generate(self, outcome: Outcome, ours: Driver, peer: Driver) -> None:
        contest, work = outcome.contest, outcome.contest.work
        warm = Work("generate", min(2, work.requests), work.input_len, min(4, work.output_len))
        for driver in (ours, peer):
            self._seconds(driver, warm, "warm-ups", 0)
        first = Work("generate", work.requests, work.input_len, 1)

        def measure(driver: Driver, times: list[float], first_times: list[float], number: int) -> None:
            driver.others = 0.0
            times.append(self._seconds(driver, work, "prompts", number))
            outcome.others = max(outcome.others or 0.0, driver.others)
            if contest.measure_bandwidth:
                first_times.append(self._seconds(driver, first, "prompts", number))

        with ExitStack() as stack:
            kernels = stack.enter_context(self._kernels()) if contest.measure_bandwidth else None

            def measure_ours(number: int) -> None:
                if kernels is not None:
                    answer = kernels.ask("read", num_bytes=_READ_BYTES, repeats=5)
                    outcome.read_bandwidth.append(answer["bytes_per_second"])
                measure(ours, outcome.ours, outcome.our_first, number)

            def measure_peer(number: int) -> None:
                measure(peer, outcome.peer, outcome.peer_first, number)

            self._alternate(outcome, measure_ours, measure_peer)

    def _alternate(self, outcome: Outcome, ours: Callable[[int], None], peer: Callable[[int], None]) -> None:
        def say_ours(number: int) -> None:
            ours(number)
            self.say(f"{outcome.contest.title}, round {number + 1}: ours {outcome.ours[-1]:.3f} s")

        def say_peer(number: int) -> None:
            peer(number)
            self.say(f"{outcome.contest.title}, round {number + 1}: {outcome.contest.peer} {outcome.peer[-1]:.3f} s")

        alternate(say_ours, say_peer, self.rounds)

    def _start_both(self, outcome: Outcome) -> None:
        """Launch of a server to the first streamed token of a chat, as in ``vllm bench startup``; files are warm."""
        with (self.model / "model.safetensors").open("rb") as weights:
            while weights.read(2**24):
                pass
        options = ["--dtype", "bfloat16", "--max-model-len", str(MAX_MODEL_LEN)]
        peer_python = str(self.pythons[outcome.contest.peer])
        programs = {
            "ours": (outcome.ours, [sys.executable, "-m", "vllm_cli"], {}),
            "peer": (
                outcome.peer,
                [peer_python, "-m", "vllm.entrypoints.cli.main"],
                {**self.peer_settings[outcome.contest.peer], "PYTHONPATH": ""},
            ),
        }

        def start(party: str) -> Callable[[int], None]:
            times, program, settings = programs[party]
            variables = [f"{name}={value}" for name, value in {**settings, "HF_HUB_OFFLINE": "1"}.items()]

            def measure(number: int) -> None:
                port = free_port()
                address = ["--host", "127.0.0.1", "--port", str(port)]
                command = ["env", *variables, *program, "serve", str(self.model), *address, *options]
                timing = measure_start(command, StartupProbe(port), timeout=_START_TIMEOUT)
                times.append(timing.first_token_seconds)

            return measure

        self._alternate(outcome, start("ours"), start("peer"))

    def _multiply(self, outcome: Outcome) -> None:
        work = outcome.contest.work
        with self._kernels() as kernels:
            for _ in range(self.rounds):
                sizes = {"rows": work.requests, "inner": work.input_len, "columns": work.output_len}
                answer = kernels.ask("multiply", **sizes, repeats=9)
                outcome.ours.append(answer["ours"])
                outcome.peer.append(answer["torch"])
            outcome.peak_flops = kernels.ask("peak", size=_PEAK_SIZE, repeats=3)["flops"]
            outcome.others = kernels.others

    @contextmanager
    def _ours(self, contest: Contest) -> Iterator[Driver]:
        with self._driver("ours", [sys.executable, str(SCRIPTS / "vllm_api.py"), "vllm_engine"], {}) as driver:
            self._load(driver, "ours", self.model, {**_ENGINE_OPTIONS, **contest.ours})
            yield driver

    @contextmanager
    def _peer(self, contest: Contest) -> Iterator[Driver]:
        python = self.pythons[contest.peer]
        model: Path = self.model
        options = _ENGINE_OPTIONS
        script = [str(SCRIPTS / "vllm_api.py"), "vllm"]
        if contest.peer == "openvino":
            script = [str(SCRIPTS / "openvino_genai_api.py")]
            options = _OPENVINO_OPTIONS
            model = self.model.with_name(f"{self.model.name}-openvino-{contest.peer_weights}")
            export_openvino(python, self.model, contest.peer_weights, model, self.say)
        settings = {**self.peer_settings[contest.peer], "PYTHONPATH": ""}  # what is ours is not theirs
        with self._driver(contest.peer, [str(python), *script], settings) as driver:
            self._load(driver, contest.peer, model, options)
            yield driver

    def _kernels(self) -> Driver:
        return self._driver("kernels", [sys.executable, str(SCRIPTS / "our_operations.py")], {})

    def _driver(self, name: str, command: list[str], settings: dict[str, str]) -> Driver:
        settings = {**settings, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        return Driver(command, settings, self.folder / f"{name}.log")

    def _load(self, driver: Driver, name: str, model: Path, options: dict[str, object]) -> None:
        try:
            answer = driver.ask("load", model=str(model), options=options)
        except DriverError as error:
            raise DriverError(f"{name} cannot load: {error}") from error
        self.say(f"{name} loaded in {answer['seconds']:.1f} s")

    def _seconds(self, driver: Driver, work: Work, purpose: str, seed: int) -> float:
        return generate(driver, work, self.shape, purpose, seed)
