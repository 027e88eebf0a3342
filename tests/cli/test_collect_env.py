import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vllm_cli
from vllm_cli import environment, machine
from vllm_cli.main import main
from vllm_engine.envs import VARIABLES


def test_the_report_names_this_python_and_the_wheels(capsys):
    assert main(["collect-env"]) == 0
    out = capsys.readouterr().out
    assert f"  python: {platform.python_version()} " in out
    assert f"  vllm-cli: {vllm_cli.__version__}\n" in out
    for section in "system cpu memory gpu wheels dependencies torch kernels environment".split():
        assert f"{section}:\n" in out


def test_a_distribution_that_is_absent_is_said_to_be():
    assert environment.versions(["no-such-distribution-here"]) == {"no-such-distribution-here": "not installed"}


def test_json_says_the_same(capsys, monkeypatch):
    monkeypatch.setattr(environment, "torch_facts", lambda: {"torch": {"version": "1"}, "kernels": {}})
    assert main(["collect-env"]) == 0
    text = capsys.readouterr().out
    assert main(["collect-env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    sections = re.findall(r"^(\w+):$", text, flags=re.MULTILINE)
    assert list(facts) == sections
    for section in set(sections) - {"memory"}:  # which changes from one moment to the next
        for name, value in facts[section].items():
            assert f"  {name}: {value}\n" in text


def test_torch_and_the_kernels_tell_what_this_process_sees(monkeypatch):
    import torch

    from vllm_kernels import ops

    monkeypatch.setenv("VLLM_KERNELS_FACE", "reference")
    facts = environment.torch_facts()
    assert facts["torch"]["version"] == torch.__version__
    assert facts["torch"]["built for"] == (f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only")
    assert facts["torch"]["cpu kernels"] == torch.backends.cpu.get_cpu_capability()
    operations = sorted(path.stem for path in Path(ops.__file__).parent.glob("[a-z]*.py"))
    assert facts["kernels"]["cpu"] == f"reference for {', '.join(operations)}"


def test_the_native_library_tells_its_level(monkeypatch):
    from vllm_kernels.cpu import native

    monkeypatch.delenv("VLLM_KERNELS_FACE", raising=False)
    monkeypatch.delenv("VLLM_KERNELS_CPU_LEVEL", raising=False)
    facts = environment.torch_facts()["kernels"]
    assert facts["native library"] == (str(native.LIBRARY) if native.LIBRARY.exists() else "not built")
    if native.why_not() is not None:
        assert facts["native level"] == f"none ({native.why_not()})"
        assert facts["cpu"].startswith("eager for ")
        return
    best = native.machine_level()
    assert facts["native level"] == best
    assert "native level forced" not in facts
    assert facts["cpu"].startswith("cpu for ")
    monkeypatch.setenv("VLLM_KERNELS_CPU_LEVEL", "avx2")
    facts = environment.torch_facts()["kernels"]
    expected = "avx2" if best == "avx2" else f"avx2 (VLLM_KERNELS_CPU_LEVEL; this machine has {best})"
    assert facts["native level"] == expected
    assert facts["native level forced"] == "VLLM_KERNELS_CPU_LEVEL=avx2"
    monkeypatch.setenv("VLLM_KERNELS_CPU_LEVEL", "sse")
    facts = environment.torch_facts()["kernels"]
    assert "VLLM_KERNELS_CPU_LEVEL must be one of avx2" in facts["native level"]
    assert "got 'sse'" in facts["cpu"]


def test_a_face_that_does_not_exist_is_a_line_and_no_error(monkeypatch):
    monkeypatch.setenv("VLLM_KERNELS_FACE", "fast")
    assert "VLLM_KERNELS_FACE must be one of" in environment.torch_facts()["kernels"]["cpu"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import os; os.abort()", "the process that imports torch ended with code -6"),
        ("print('{}')", "the process that imports torch ended with code 0"),
        ("import time; time.sleep(60)", "importing torch takes more than 0.5 s"),
    ],
)
def test_a_torch_that_breaks_its_process_is_a_line_and_no_error(monkeypatch, script, reason):
    real = subprocess.run
    monkeypatch.setattr(environment, "_TORCH_SECONDS", 0.5)
    monkeypatch.setattr(
        environment.subprocess, "run", lambda command, **how: real([sys.executable, "-c", script], **how)
    )
    assert environment.torch_facts() == {"torch": {"not available": reason}, "kernels": {"not available": reason}}


def test_without_torch_its_absence_is_a_line(tmp_path):
    # As after `pip install vllm-cli` alone: only this wheel can be imported.
    (tmp_path / "vllm_cli").symlink_to(Path(vllm_cli.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-m", "vllm_cli.torch_facts"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    facts = json.loads(done.stdout)
    assert facts["torch"] == facts["kernels"] == {"not available": "ModuleNotFoundError: No module named 'torch'"}


@pytest.mark.parametrize(
    "name",
    [
        "VLLM_API_KEY",
        "VLLM_APIKEYS",
        "HF_TOKEN",
        "OPENAI_API_KEY",
        "HUGGING_FACE_HUB_TOKEN",
        "S3_SECRET_ACCESS_KEY",
        "S3_ACCESS_KEY_ID",
        "VLLM_DB_PASSWORD",
        "HF_AUTH",
        "TOKENIZERS_TOKEN",
    ],
)
def test_secrets_are_only_said_to_be_set(monkeypatch, name):
    monkeypatch.setenv(name, "s3cr3t")
    assert environment.variables()[name] == "(set, not shown)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:s3cr3t@proxy:3128/", "http://***@proxy:3128/"),
        ("http://me:s3/cr@3t@proxy:3128", "http://***@proxy:3128"),
        ("me:s3cr3t@proxy:3128", "***@proxy:3128"),
        ("https://s3cr3t@one/ https://you:s3cr3t@two/", "https://***@one/ https://***@two/"),
        ("http://a:s3cr3t@one,http://b:s3cr3t@two", "http://***@two"),
        ("https://host/path?X-Sig=s3cr3t&x=1", "https://host/path?***"),
        ("use hf_s3cr3ts3cr3ts3cr3t now", "use *** now"),
        ("sk-s3cr3ts3cr3ts3cr3t", "***"),
        ("http://proxy:3128/path", "http://proxy:3128/path"),
    ],
)
def test_what_is_secret_in_a_harmless_variable_is_hidden(monkeypatch, text, shown):
    for name in ("HTTPS_PROXY", "VLLM_USAGE_STATS_SERVER"):
        monkeypatch.setenv(name, text)
        assert environment.variables()[name] == shown


def test_settings_are_shown_and_strangers_are_not(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("MY_DIARY", "private")
    found = environment.variables()
    assert found["OMP_NUM_THREADS"] == "2"
    assert found["TOKENIZERS_PARALLELISM"] == "false"
    assert "MY_DIARY" not in found


def test_every_variable_that_the_engine_knows_is_shown(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "x")
    found = environment.variables()
    for name in VARIABLES:
        secret = re.search("KEY|TOKEN|SECRET", name) is not None
        assert found[name] == ("(set, not shown)" if secret else "x")


@pytest.mark.skipif(not os.path.exists("/proc/meminfo"), reason="reads Linux's /proc")
def test_memory_is_what_the_kernel_says():
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    total = float(machine.memory()["total"].removesuffix(" GiB"))
    assert total == pytest.approx(pages, abs=0.1)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no affinity")
def test_the_cpus_of_this_process_are_those_that_it_may_use():
    usable = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(usable)})
        assert machine.cpu()["usable by this process"] == f"1 (cpus {min(usable)})"
    finally:
        os.sched_setaffinity(0, usable)


def test_lists_of_cpus_are_written_as_the_kernel_writes_them():
    for text, numbers in (("0-3,8", [0, 1, 2, 3, 8]), ("5", [5]), ("0,2,4", [0, 2, 4]), ("", [])):
        assert machine._numbers(text) == numbers
        assert machine._ranges(numbers) == text
    assert machine._numbers("no-cpus") == []


@pytest.mark.skipif(not os.path.exists("/sys/devices/system/node/node0"), reason="reads Linux's /sys")
def test_every_cpu_stands_in_a_numa_node():
    nodes = [value for name, value in machine.cpu().items() if name.startswith("numa node")]
    cpus = [number for node in nodes for number in machine._numbers(node.split()[1].rstrip(","))]
    assert os.sched_getaffinity(0) <= set(cpus)


def test_the_tightest_limit_of_the_cgroups_above_counts(monkeypatch):
    files = {
        "/proc/self/cgroup": "0::/outer/inner",
        "/sys/fs/cgroup/outer/inner/memory.max": "max",
        "/sys/fs/cgroup/outer/memory.max": str(4 * 2**30),
        "/sys/fs/cgroup/memory.max": str(8 * 2**30),
        "/sys/fs/cgroup/outer/inner/cpu.max": "max 100000",
        "/sys/fs/cgroup/outer/cpu.max": "150000 100000",
    }
    monkeypatch.setattr(machine, "_read", lambda path: files.get(str(path), ""))
    assert machine._cgroup_memory() == "4.0 GiB"
    assert machine._cgroup_cpus() == "1.5"


def test_no_cgroup_limit_is_left_out(monkeypatch):
    files = {"/proc/self/cgroup": "5:memory:/x", "/sys/fs/cgroup/memory/x/memory.limit_in_bytes": str(2**63 - 4096)}
    monkeypatch.setattr(machine, "_read", lambda path: files.get(str(path), ""))
    assert machine._cgroup_memory() == ""


def test_a_tool_that_fails_or_hangs_says_nothing(monkeypatch):
    monkeypatch.setattr(machine, "_TOOL_SECONDS", 0.1)
    assert machine._output(["false"]) == ""
    assert machine._output(["sleep", "5"]) == ""
    assert machine._output(["no-such-tool-here"]) == ""
