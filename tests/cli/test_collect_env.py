import os
import platform

import pytest

import vllm_cli
from vllm_cli import environment
from vllm_cli.main import main


def test_the_report_names_this_python_and_the_wheels(capsys):
    assert main(["collect-env"]) == 0
    out = capsys.readouterr().out
    assert f"  python: {platform.python_version()} " in out
    assert f"  vllm-cli: {vllm_cli.__version__}\n" in out
    for section in ("system", "cpu", "memory", "gpu", "wheels", "dependencies", "environment"):
        assert f"{section}:\n" in out


def test_a_distribution_that_is_absent_is_said_to_be():
    assert environment.versions(["no-such-distribution-here"]) == {"no-such-distribution-here": "not installed"}


@pytest.mark.parametrize("name", ["VLLM_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", "HUGGING_FACE_HUB_TOKEN"])
def test_secrets_are_only_said_to_be_set(monkeypatch, name):
    monkeypatch.setenv(name, "s3cr3t")
    assert environment.variables()[name] == "(set, not shown)"


def test_a_password_in_a_proxy_address_is_hidden(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:s3cr3t@proxy:3128/")
    assert environment.variables()["HTTPS_PROXY"] == "http://***@proxy:3128/"


def test_settings_are_shown_and_strangers_are_not(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("MY_DIARY", "private")
    found = environment.variables()
    assert found["OMP_NUM_THREADS"] == "2"
    assert found["TOKENIZERS_PARALLELISM"] == "false"
    assert "MY_DIARY" not in found


@pytest.mark.skipif(not os.path.exists("/proc/meminfo"), reason="reads Linux's /proc")
def test_memory_is_what_the_kernel_says():
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    total = float(environment.collect()["memory"]["total"].removesuffix(" GiB"))
    assert total == pytest.approx(pages, abs=0.1)


def test_the_tightest_limit_of_the_cgroups_above_counts(monkeypatch):
    files = {
        "/proc/self/cgroup": "0::/outer/inner",
        "/sys/fs/cgroup/outer/inner/memory.max": "max",
        "/sys/fs/cgroup/outer/memory.max": str(4 * 2**30),
        "/sys/fs/cgroup/memory.max": str(8 * 2**30),
        "/sys/fs/cgroup/outer/inner/cpu.max": "max 100000",
        "/sys/fs/cgroup/outer/cpu.max": "150000 100000",
    }
    monkeypatch.setattr(environment, "_read", lambda path: files.get(str(path), ""))
    assert environment._cgroup_memory() == "4.0 GiB"
    assert environment._cgroup_cpus() == "1.5"


def test_no_cgroup_limit_is_left_out(monkeypatch):
    files = {"/proc/self/cgroup": "5:memory:/x", "/sys/fs/cgroup/memory/x/memory.limit_in_bytes": str(2**63 - 4096)}
    monkeypatch.setattr(environment, "_read", lambda path: files.get(str(path), ""))
    assert environment._cgroup_memory() == ""


def test_a_tool_that_fails_or_hangs_says_nothing(monkeypatch):
    monkeypatch.setattr(environment, "_TOOL_SECONDS", 0.1)
    assert environment._output(["false"]) == ""
    assert environment._output(["sleep", "5"]) == ""
    assert environment._output(["no-such-tool-here"]) == ""
