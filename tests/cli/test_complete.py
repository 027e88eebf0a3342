import pytest

from tests.cli.terminal import Terminal
from tests.cli.test_chat import vllm


def test_quick_prints_one_completion(server):
    done = vllm("complete", "--url", f"{server.url}/v1", "-q", "Once upon", "--max-tokens", "4")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello wörld!\n", "")
    assert server.bodies == [{"model": "mock-model", "prompt": "Once upon", "max_tokens": 4, "stream": True}]


def test_every_piped_line_is_a_prompt_of_its_own(server):
    server.answer = lambda body: [body["prompt"].upper()]
    done = vllm("complete", "--url", f"{server.url}/v1", stdin="one\n/two\n")
    assert done.stdout == "ONE\n/TWO\n"


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_length_that_is_no_count_is_refused(value):
    done = vllm("complete", "-q", "x", f"--max-tokens={value}")
    assert done.returncode == 2
    assert "--max-tokens" in done.stderr


def test_a_session_on_a_terminal_ends_with_ctrl_d(server):
    with Terminal("complete", "--url", f"{server.url}/v1") as terminal:
        terminal.wait_for("> ")
        terminal.type("Once\n")
        terminal.wait_for("Hello wörld!\r\n> ")
        terminal.type("\x04")
        assert terminal.exit_code() == 0
