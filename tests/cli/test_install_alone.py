"""``pip install ./packages/vllm-cli`` and nothing else is enough to talk to a server."""

import subprocess
import sys
from pathlib import Path

import pytest

import vllm_cli
from tests.cli.terminal import Terminal

FOLDER = Path(__file__).parents[2] / "packages" / "vllm-cli"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of a new environment with vllm-cli alone."""
    home = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    installed = subprocess.run([*pip, "install", str(FOLDER)], capture_output=True, text=True)
    if installed.returncode != 0:
        probe = [*pip, "download", "--no-deps", "--no-cache-dir", "--dest", str(home), "hatchling"]
        if subprocess.run(probe, capture_output=True).returncode != 0:
            pytest.skip("there is no package index to install from")
        pytest.fail(installed.stderr)
    return home / "bin"


def vllm(fresh: Path, *arguments: str) -> str:
    # Away from the checkout, so that nothing is imported from it.
    command = [str(fresh / "vllm"), *arguments]
    return subprocess.run(command, cwd=fresh, check=True, capture_output=True, text=True, timeout=60).stdout


pytestmark = pytest.mark.slow


def test_neither_torch_nor_another_wheel_comes_along(fresh: Path):
    listed = subprocess.run([str(fresh / "python"), "-m", "pip", "list"], check=True, capture_output=True, text=True)
    names = {line.split()[0].lower() for line in listed.stdout.splitlines()[2:]}
    assert "vllm-cli" in names
    assert not names & {"torch", "numpy", "vllm-server", "vllm-engine", "vllm-kernels", "vllm-bench"}
    assert len(names) <= 15


def test_version_help_and_collect_env_work(fresh: Path):
    assert vllm(fresh, "--version") == f"{vllm_cli.__version__}\n"
    assert 'comes with "vllm-cli[bench]"' in vllm(fresh, "--help")
    report = vllm(fresh, "collect-env")
    assert "torch: not installed" in report
    assert str(fresh) in report


def test_chat_and_complete_work(fresh: Path, server):
    assert vllm(fresh, "chat", "--url", f"{server.url}/v1", "-q", "Hi") == "Hello wörld!\n"
    assert vllm(fresh, "complete", "--url", f"{server.url}/v1", "-q", "Once") == "Hello wörld!\n"


def test_a_session_on_a_terminal_works(fresh: Path, server):
    with Terminal("chat", "--url", f"{server.url}/v1", python=str(fresh / "python")) as terminal:
        terminal.wait_for("> ")
        terminal.type("Hi\n")
        terminal.wait_for("Hello wörld!\r\n> ")
        terminal.type("\x04")
        assert terminal.exit_code() == 0


def test_serve_says_what_to_install(fresh: Path):
    done = subprocess.run([str(fresh / "vllm"), "serve", "demo"], cwd=fresh, capture_output=True, text=True)
    assert done.returncode == 2
    assert 'pip install "vllm-cli[serve]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1
