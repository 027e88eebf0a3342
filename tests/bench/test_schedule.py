"""Which item is due when, with a clock that is an argument."""

from vllm_bench.load.schedule import Schedule
from vllm_bench.workload.item import WorkItem


def schedule(*offsets: float | None, stop: float = float("inf")) -> Schedule:
    return Schedule(iter([WorkItem(f"{number}", offset=offset) for number, offset in enumerate(offsets)]), 10.0, stop)


def taken(due) -> tuple[str, float] | None:
    return None if due is None else (due.item.prompt, due.arrival)


def test_an_item_is_taken_when_its_moment_has_come_and_not_before():
    items = schedule(1.0, 2.0)
    assert items.next_arrival() == 11.0
    assert items.take(10.9) is None
    assert taken(items.take(11.0)) == ("0", 11.0)
    assert items.next_arrival() == 12.0
    assert taken(items.take(20.0)) == ("1", 12.0)
    assert items.next_arrival() is None
    assert items.take(21.0) is None


def test_items_without_a_moment_are_due_from_the_begin():
    items = schedule(None, None)
    assert items.next_arrival() == 10.0
    assert [taken(items.take(10.0)) for _ in range(3)] == [("0", 10.0), ("1", 10.0), None]


def test_after_the_end_nothing_is_due():
    items = schedule(1.0, 2.0, None, stop=12.0)
    assert taken(items.take(11.5)) == ("0", 11.0)
    assert items.next_arrival() is None
    assert items.take(11.9) is None
    items = schedule(None, None, stop=12.0)
    assert items.take(12.0) is None
    assert items.next_arrival() is None
