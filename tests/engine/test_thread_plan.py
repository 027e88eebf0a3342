"""Which cores the threads that compute get, on machines that are trees of files, and that this machine's get theirs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_engine import envs
from vllm_engine.errors import ConfigError
from vllm_engine.execution.cgroup import cpu_quota, memory_limits
from vllm_engine.execution.cores import Node, numbers, ranges, usable_nodes
from vllm_engine.execution.memory import main_memory
from vllm_engine.execution.thread_plan import ThreadPlan, plan_threads

GIB = 2**20  # in KiB, as the system counts


def make_machine(root: Path, nodes: dict[int, tuple[str, int]], siblings: list[str]) -> Path:
    """A tree like ``/sys/devices/system``: node -> its list of CPUs and its free GiB; each core's hardware threads."""
    for number, (cpus, free) in nodes.items():
        folder = root / "node" / f"node{number}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(cpus + "\n")
        (folder / "meminfo").write_text(
            f"Node {number} MemTotal:       {64 * GIB} kB\n"
            f"Node {number} MemFree:        {free * GIB} kB\n"
            f"Node {number} MemUsed:        {60 * GIB} kB\n"
            f"Node {number} Active(file):   {GIB} kB\n"
            f"Node {number} Inactive(file): {2 * GIB} kB\n"
        )
    for threads in siblings:
        for cpu in numbers(threads):
            folder = root / "cpu" / f"cpu{cpu}" / "topology"
            folder.mkdir(parents=True)
            (folder / "thread_siblings_list").write_text(threads + "\n")
    return root


@pytest.fixture
def two_sockets(tmp_path: Path) -> Path:
    """Two nodes of four cores with two hardware threads each, numbered as servers do. Node 1 has more free memory."""
    return make_machine(tmp_path, {0: ("0-3,8-11", 10), 1: ("4-7,12-15", 40)}, [f"{i},{i + 8}" for i in range(8)])


def plan(system: Path, usable: set[int], bind: Any = "auto", reserved: int = 0, **options: Any) -> ThreadPlan:
    return plan_threads(bind, reserved, usable_nodes(usable, system), usable, **options)


ALL = set(range(16))


def test_the_nodes_are_read_with_one_hardware_thread_of_each_core(two_sockets: Path) -> None:
    first, second = usable_nodes(ALL, two_sockets)
    assert first == Node(0, (0, 1, 2, 3, 8, 9, 10, 11), (0, 1, 2, 3), 64 * GIB * 1024, 13 * GIB * 1024)
    assert (second.cores, second.free) == ((4, 5, 6, 7), 43 * GIB * 1024)


def test_only_what_the_process_may_use_counts(two_sockets: Path) -> None:
    (node,) = usable_nodes({5, 13, 14, 15}, two_sockets)
    assert (node.number, node.cpus, node.cores) == (1, (5, 13, 14, 15), (5, 14, 15))


def test_a_system_that_tells_nothing_is_one_node_of_cores(tmp_path: Path) -> None:
    assert usable_nodes({3, 1}, tmp_path) == [Node(0, (1, 3), (1, 3))]


def test_a_node_without_cores_is_no_place_for_threads(tmp_path: Path) -> None:
    system = make_machine(tmp_path, {0: ("0-1", 10), 1: ("", 500)}, ["0", "1"])
    assert plan(system, {0, 1}) == ThreadPlan(2)


def test_auto_takes_the_cores_of_the_node_with_most_free_memory(two_sockets: Path) -> None:
    assert plan(two_sockets, ALL) == ThreadPlan(4, (4, 5, 6, 7), memory_nodes=(1,))


def test_auto_takes_the_node_with_most_cores_first(two_sockets: Path) -> None:
    assert plan(two_sockets, {0, 1, 2, 4}) == ThreadPlan(3, (0, 1, 2), memory_nodes=(0,))


def test_one_node_without_second_hardware_threads_needs_no_binding(tmp_path: Path) -> None:
    assert plan(make_machine(tmp_path, {0: ("0-1", 10)}, ["0", "1"]), {0, 1}) == ThreadPlan(2)


def test_one_node_with_second_hardware_threads_is_bound_to_one_of_each_core(tmp_path: Path) -> None:
    system = make_machine(tmp_path, {0: ("0-7", 10)}, ["0,4", "1,5", "2,6", "3,7"])
    assert plan(system, set(range(8))) == ThreadPlan(4, (0, 1, 2, 3))


def test_reserved_cores_are_left_to_others(two_sockets: Path) -> None:
    assert plan(two_sockets, ALL, reserved=1) == ThreadPlan(3, (4, 5, 6), memory_nodes=(1,))
    assert plan(two_sockets, ALL, bind="nobind", reserved=3) == ThreadPlan(5)
    with pytest.raises(ConfigError, match="VLLM_CPU_NUM_OF_RESERVED_CPU=4 leaves none of the 4 cores") as caught:
        plan(two_sockets, ALL, reserved=4)
    assert caught.value.field == "VLLM_CPU_NUM_OF_RESERVED_CPU"


@pytest.mark.parametrize(("quota", "count"), [(2.5, 2), (0.5, 1), (100.0, 4), (None, 4)])
def test_a_quota_limits_the_threads_and_not_the_cores(two_sockets: Path, quota: float | None, count: int) -> None:
    assert plan(two_sockets, ALL, quota=quota) == ThreadPlan(count, (4, 5, 6, 7), memory_nodes=(1,))


def test_nobind_counts_cores_and_binds_nothing(two_sockets: Path) -> None:
    assert plan(two_sockets, ALL, bind="nobind") == ThreadPlan(8)


def test_a_list_has_a_thread_on_each_of_its_cores(two_sockets: Path) -> None:
    assert plan(two_sockets, ALL, bind=[[2, 0, 3]]) == ThreadPlan(3, (2, 0, 3), one_each=True, memory_nodes=(0,))
    assert plan(two_sockets, ALL, bind=[[0, 12], [1]]) == ThreadPlan(2, (0, 12), one_each=True, memory_nodes=(0, 1))


def test_the_number_of_threads_that_was_asked_for_wins(two_sockets: Path) -> None:
    assert plan(two_sockets, ALL, asked=3).count == 3
    assert plan(two_sockets, ALL, asked=6).count == 6
    assert plan(two_sockets, ALL, bind=[[0, 1, 2]], asked=2).count == 2
    assert plan(two_sockets, ALL, bind=[[0, 1]], asked=8).count == 2


@pytest.mark.parametrize(
    ("cores", "message"),
    [
        ([0, 1, 16, 17], r"names cores that this process may not use: 16-17 \(it may use 0-15\)"),
        ([0, 1, 0], "names a core twice: 0,1,0"),
    ],
)
def test_cores_that_cannot_be_are_refused(two_sockets: Path, cores: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match="VLLM_CPU_OMP_THREADS_BIND " + message) as caught:
        plan(two_sockets, ALL, bind=[cores])
    assert caught.value.field == "VLLM_CPU_OMP_THREADS_BIND"


# ---- the variable ----


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("auto", "auto"),
        (" nobind ", "nobind"),
        ("all", "nobind"),
        ("5", [[5]]),
        ("0-3", [[0, 1, 2, 3]]),
        ("0,2,4-7", [[0, 2, 4, 5, 6, 7]]),
        ("0-1|2-3", [[0, 1], [2, 3]]),
    ],
)
def test_the_documented_forms_are_read(text: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", text)
    assert envs.get("VLLM_CPU_OMP_THREADS_BIND") == value


@pytest.mark.parametrize("text", ["some", "0-", "-1", "3-1", "0,,1", "0|", "0-99999999", "1.5", "0;1", "²"])
def test_other_forms_are_refused_with_the_name(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", text)
    with pytest.raises(ConfigError, match=r"VLLM_CPU_OMP_THREADS_BIND=.* expected auto, nobind, or cores such as"):
        envs.get("VLLM_CPU_OMP_THREADS_BIND")


def test_cores_are_written_as_they_are_read() -> None:
    assert ranges(numbers("0-3,8,10-11")) == "0-3,8,10-11"


# ---- control groups ----


def test_quotas_of_both_versions_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    monkeypatch.setattr("vllm_engine.execution.cgroup._OWN", own)
    root = tmp_path / "mount"
    (root / "cpu,cpuacct" / "outer" / "inner").mkdir(parents=True)
    (root / "outer").mkdir()
    own.write_text("4:cpu,cpuacct:/outer/inner\n0::/outer\n")
    assert cpu_quota(root) is None
    (root / "outer" / "cpu.max").write_text("max 100000\n")
    (root / "cpu,cpuacct" / "outer" / "cpu.cfs_quota_us").write_text("-1\n")
    (root / "cpu,cpuacct" / "outer" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(root) is None
    (root / "cpu,cpuacct" / "outer" / "cpu.cfs_quota_us").write_text("350000\n")
    assert cpu_quota(root) == 3.5
    (root / "cpu.max").write_text("150000 100000\n")
    assert cpu_quota(root) == 1.5


def test_the_memory_of_version_1_groups_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    monkeypatch.setattr("vllm_engine.execution.cgroup._OWN", own)
    own.write_text("7:memory:/elsewhere\n")
    (tmp_path / "memory").mkdir()
    for name, text in {
        "memory.limit_in_bytes": "1000",
        "memory.usage_in_bytes": "900",
        "memory.stat": "inactive_file 1\ntotal_inactive_file 500\n",
    }.items():
        (tmp_path / "memory" / name).write_text(text)
    assert list(memory_limits(tmp_path)) == [(1000, 600)]
    memory = main_memory(cgroup=tmp_path, nodes=[Node(1, (0,), (0,), total=700, free=650)])
    assert (memory.total, memory.free) == (700, 600)


# ---- this machine ----

_SCRIPT = """
import os, sys, threading, torch
from vllm_engine.execution.thread_binding import ThreadBinding
from vllm_engine.execution.thread_plan import plan_for_this_machine
from vllm_kernels.cpu.threads import team_thread_ids
before = os.sched_getaffinity(0)
torch.set_num_threads(2)
plan = plan_for_this_machine(None)
binding = ThreadBinding(plan)
binding.bind_caller()
started = []
thread = threading.Thread(target=lambda: started.append(os.sched_getaffinity(0)))
thread.start(); thread.join()
binding.bind_team(2)
torch.ones(1 << 20).exp()
print([sorted(os.sched_getaffinity(i)) for i in team_thread_ids(2)], sorted(started[0]))
binding.undo()
print(os.sched_getaffinity(0) == before, all(os.sched_getaffinity(i) == before for i in team_thread_ids(2)))
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system binds no threads")
def test_each_thread_stays_on_its_core_until_it_is_let_go() -> None:
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        pytest.skip("takes two cores")
    first, second = usable[-1], usable[0]
    environment = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": f"{first},{second}"}
    done = subprocess.run([sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"[[{first}], [{second}]] {sorted([first, second])}", "True True"]
