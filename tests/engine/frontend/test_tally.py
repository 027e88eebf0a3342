"""Counts that several processes share, held to a plain counter."""

import os
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from vllm_engine.config import EngineArgs
from vllm_engine.errors import Overloaded
from vllm_engine.frontend.admission import Admission
from vllm_engine.frontend.tally import LocalTally, SharedTable

NAMES = ["", "light", "heavy"]
COLUMNS = ["requests", "tokens"]


@pytest.fixture
def file() -> Iterator[int]:
    file = SharedTable.create(COLUMNS, 3, NAMES)
    yield file
    os.close(file)


def tables(file: int) -> list[SharedTable]:
    return [SharedTable(file, COLUMNS, 3, NAMES, own) for own in range(3)]


def test_each_process_counts_its_own_and_sees_all(file: int) -> None:
    shared = [table.tally("tokens") for table in tables(file)]
    local = LocalTally()
    true: Counter[tuple[int, str]] = Counter()
    numbers = random.Random(1)
    for _ in range(300):
        row, name = numbers.randrange(3), numbers.choice(NAMES)
        count = numbers.randint(-true[row, name], 5)
        true[row, name] += count
        shared[row].add(name, count)
        local.add(name, count)
        for tally in (local, *shared):
            assert tally.total == true.total()
            assert [tally.of(one) for one in NAMES] == [sum(true[place, one] for place in range(3)) for one in NAMES]
            assert tally.holders() == {one for one in NAMES if local.of(one)}
        assert shared[row].own == sum(true[row, one] for one in NAMES)
        assert shared[row].own_of(name) == true[row, name]
    assert tables(file)[0].tally("requests").total == 0
    # Names that nobody knew of share one place, and a process that is gone has nothing any more.
    shared[0].add("new", 2)
    shared[1].add("other", 3)
    assert shared[2].of("unheard of") == 5
    gone = sum(true[1, one] for one in NAMES) + 3
    before = shared[0].total
    SharedTable(file, COLUMNS, 3, NAMES, None).clear(1, ["tokens"])
    assert shared[0].total == before - gone and shared[1].own == 0


def test_a_bound_holds_for_all_processes_together(file: int) -> None:
    settings = {"max_num_queued_reqs": 3, "max_num_seqs": 2, "scheduling_policy": "fair"}
    config = EngineArgs("demo", **settings).create_config().scheduler
    queues = [
        Admission(config, 2, requests=table.tally("requests"), tokens=table.tally("tokens")) for table in tables(file)
    ]
    for turn in range(5):
        queues[turn % 3].take(1, "heavy")
    for queue in queues:
        with pytest.raises(Overloaded, match="5 requests run or wait"):
            queue.take(1, "heavy")
    queues[0].take(2, "light")  # its share, whichever process is asked
    with pytest.raises(Overloaded):
        queues[1].take(1, "light")
    queues[0].leave(2, (), "light")
    queues[2].leave(1, (), "heavy")
    queues[0].take(1, "heavy")
