"""The row of phases against starts that are written down."""

import pytest

from vllm_bench.measure.start_phases import LoggedPhase, in_a_row

LOG = [
    LoggedPhase("config", 0.01, ended=0.21),
    LoggedPhase("model files", 0.04, ended=0.25),
    LoggedPhase("tokenizer", 0.05, ended=0.31),
    LoggedPhase("engine imports", 0.10, ended=0.65),
    LoggedPhase("web framework", 0.45, ended=0.75),
    LoggedPhase("weights", 1.05, ended=1.70),
    LoggedPhase("listening", 0.05, ended=1.80),
]


def test_a_row_has_what_was_waited_for_and_names_every_gap():
    phases = in_a_row(LOG, healthy=1.81, first_token=1.90)
    assert phases.path == pytest.approx(
        {
            "python and imports": 0.20,
            "config": 0.01,
            "model files": 0.04,
            "engine process": 0.30,
            "engine imports": 0.10,
            "weights": 1.05,
            "before listening": 0.05,
            "between phases": 0.0,
            "listening": 0.05,
            "ready (/health)": 0.01,
            "first token": 0.09,
        }
    )
    assert next(iter(phases.path)) == "python and imports"
    assert sum(phases.path.values()) == pytest.approx(1.90)
    assert phases.beside == {"tokenizer": 0.05, "web framework": 0.45}
    assert phases.unnamed == pytest.approx(0.05)


def test_what_ran_beside_the_engine_is_in_the_row_when_it_was_the_last():
    late = [phase for phase in LOG if phase.name not in ("web framework", "listening")]
    late += [LoggedPhase("web framework", 1.45, ended=1.75), LoggedPhase("listening", 0.05, ended=1.80)]
    phases = in_a_row(late, healthy=1.80, first_token=1.80)
    assert phases.path["web framework"] == 1.45
    assert sum(phases.path.values()) == pytest.approx(1.80)
    assert phases.beside == {"tokenizer": 0.05, "engine imports": 0.10, "weights": 1.05}


def test_a_log_without_phases_leaves_only_what_the_client_saw():
    phases = in_a_row([], healthy=2.0, first_token=2.5)
    assert phases.path == {"ready (/health)": 2.0, "first token": 0.5}
    assert phases.beside == {}
