"""When a core counts as stalled: a clock, messages and processor time that the test decides."""

import pytest

from vllm_engine.core.clients.pulse import LONGEST_STEP_SECONDS, LOOK_SECONDS, STALL_SECONDS, Pulse


class Core:
    """A core that answers pings or not, and uses processor time or not."""

    def __init__(self) -> None:
        self.now = 100.0
        self.cpu: float | None = 7.0
        self.answers = True
        self.computes = False
        self.pings: list[float] = []
        self.pulse = Pulse(self.ping, lambda: self.cpu, lambda: self.now)

    def ping(self) -> None:
        self.pings.append(self.now)
        if self.answers:
            self.pulse.heard()

    def live(self, seconds: float, look: float = LOOK_SECONDS) -> None:
        for _ in range(round(seconds / look)):
            self.now += look
            if self.cpu is not None and self.computes:
                self.cpu += 0.9 * look
            self.pulse.look()


def test_an_idle_core_that_answers_is_well_and_is_woken_less_than_once_a_second() -> None:
    core = Core()
    core.live(60)
    assert not core.pulse.stalled
    assert 30 <= len(core.pings) <= 60


def test_a_core_that_sends_is_not_asked() -> None:
    core = Core()
    for _ in range(20):
        core.pulse.heard()
        core.live(LOOK_SECONDS)
    assert core.pings == []


def test_a_core_that_stops_is_noticed_in_time_and_asked_once() -> None:
    core = Core()
    core.pulse.heard()
    core.answers = False
    stopped = core.now
    while not core.pulse.stalled:
        core.live(LOOK_SECONDS)
    assert STALL_SECONDS <= core.now - stopped <= 4
    core.live(3600)
    assert core.pulse.stalled and len(core.pings) == 1
    assert core.pulse.silent_seconds == pytest.approx(3600, abs=5)
    core.pulse.heard()  # it goes on, and answers
    assert not core.pulse.stalled and core.pulse.silent_seconds == 0
    core.answers = True
    core.live(10)
    assert not core.pulse.stalled


def test_a_long_step_that_computes_is_progress_and_one_that_waits_is_none() -> None:
    core = Core()
    core.answers, core.computes = False, True
    core.live(60)
    assert not core.pulse.stalled
    core.computes = False
    core.live(STALL_SECONDS)
    assert core.pulse.stalled
    core.computes = True
    core.live(LOOK_SECONDS)
    assert not core.pulse.stalled
    core.live(LONGEST_STEP_SECONDS)
    assert core.pulse.stalled, "it turns in circles"


def test_work_that_is_no_step_may_take_as_long_as_it_computes() -> None:
    """Weights of some models take longer to read than any step may."""
    core = Core()
    reads = True
    core.pulse = Pulse(core.ping, lambda: core.cpu, lambda: core.now, has_other_work=lambda: reads)
    core.answers, core.computes = False, True
    core.live(2 * LONGEST_STEP_SECONDS)
    assert not core.pulse.stalled
    reads = False
    assert core.pulse.stalled
    reads, core.computes = True, False
    core.live(STALL_SECONDS)
    assert core.pulse.stalled, "it is stopped"


def test_where_processor_time_is_unknown_a_silent_core_may_compute() -> None:
    core = Core()
    core.answers, core.cpu = False, None
    core.live(60)
    assert not core.pulse.stalled


def test_a_pause_of_the_one_who_looks_is_no_stall() -> None:
    core = Core()
    core.answers = False
    core.live(60, look=60)
    assert not core.pulse.stalled
