import os
import subprocess
import sys

import pytest

from tests.cli.mock_openai import MockOpenAI
from tests.cli.terminal import Terminal


def vllm(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """``vllm`` with pipes all around, as in a script."""
    return subprocess.run(
        [sys.executable, "-m", "vllm_cli", *arguments], input=stdin, capture_output=True, text=True, timeout=30
    )


def count_words(body: dict) -> list[str]:
    """An answer that tells how much the model was given."""
    return [f"{len(body['messages'])} messages, last: ", body["messages"][-1]["content"]]


def test_quick_prints_one_answer_and_nothing_else(server):
    done = vllm("chat", "--url", f"{server.url}/v1", "-q", "Hi")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello wörld!\n", "")
    assert server.bodies == [{"model": "mock-model", "messages": [{"role": "user", "content": "Hi"}], "stream": True}]


def test_options_reach_the_server(server):
    url = f"{server.url}/v1/"
    done = vllm(
        "chat", "--url", url, "--model-name", "m", "--api-key", "k", "--system-prompt", "Be brief.", "--quick", "Hi"
    )
    assert done.returncode == 0
    assert server.headers_seen[0]["Authorization"] == "Bearer k"
    assert server.bodies[0]["model"] == "m"
    assert server.bodies[0]["messages"][0] == {"role": "system", "content": "Be brief."}


def test_piped_lines_are_one_conversation_without_prompts_or_colours(server):
    server.answer = count_words
    done = vllm("chat", "--url", f"{server.url}/v1", stdin="one\n\ntwo\n")
    assert done.stdout == "1 messages, last: one\n3 messages, last: two\n"
    assert (done.returncode, done.stderr) == (0, "")


def test_clear_forgets_all_but_the_system_prompt(server):
    server.answer = count_words
    done = vllm("chat", "--url", f"{server.url}/v1", "--system-prompt", "S", stdin="one\n/clear\ntwo\n/exit\nthree\n")
    assert [body["messages"][0]["content"] for body in server.bodies] == ["S", "S"]
    assert [len(body["messages"]) for body in server.bodies] == [2, 2]
    assert "anew" in done.stdout


def test_a_mistyped_slash_command_is_not_sent_to_the_model(server):
    done = vllm("chat", "--url", f"{server.url}/v1", stdin="/claer\n/usr/bin is what?\n")
    assert "/clear" in done.stdout
    assert [body["messages"][-1]["content"] for body in server.bodies] == ["/usr/bin is what?"]


def test_an_unreachable_server_exits_with_1_and_one_line():
    done = vllm("chat", "--url", "http://127.0.0.1:9/v1", "-q", "Hi")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("vllm: error: no answer from http://127.0.0.1:9/v1")
    assert done.stderr.count("\n") == 1


def test_a_failing_answer_keeps_what_came_and_exits_with_1(server):
    server.fail_after = 1
    done = vllm("chat", "--url", f"{server.url}/v1", "-q", "Hi")
    assert (done.returncode, done.stdout) == (1, "Hel\n")
    assert done.stderr.count("\n") == 1


def test_control_characters_reach_a_pipe_as_they_are(server):
    server.answer = lambda body: ["a\x1b[31mb"]
    assert vllm("chat", "--url", f"{server.url}/v1", "-q", "Hi").stdout == "a\x1b[31mb\n"


def test_a_lone_surrogate_from_a_model_does_not_end_the_program(server, monkeypatch):
    monkeypatch.setattr(
        "tests.cli.mock_openai._event", lambda content: b'data: {"choices": [{"delta": {"content": "a\\ud83d"}}]}\n\n'
    )
    done = vllm("chat", "--url", f"{server.url}/v1", "-q", "Hi")
    assert done.returncode == 0
    assert done.stdout.startswith("a?")


def test_a_reader_that_goes_away_ends_the_program_quietly(server):
    server.answer = lambda body: ["line\n"] * 20000
    command = f"'{sys.executable}' -m vllm_cli chat --url {server.url}/v1 -q Hi | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("line\n", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(server):
    command = f"'{sys.executable}' -m vllm_cli chat --url {server.url}/v1 -q Hi > /dev/full"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "No space left on device" in done.stderr


class TestOnATerminal:
    @pytest.fixture
    def terminal(self, server: MockOpenAI):
        with Terminal("chat", "--url", f"{server.url}/v1") as terminal:
            yield terminal

    def test_a_session_asks_answers_and_ends_with_ctrl_d(self, server, terminal):
        server.answer = count_words
        assert f"mock-model at {server.url}/v1" in terminal.wait_for("> ")
        terminal.type("one\n")
        terminal.wait_for("1 messages, last: one\r\n> ")
        terminal.type("two\n")
        terminal.wait_for("3 messages, last: two\r\n> ")
        terminal.type("\x04")
        assert terminal.exit_code() == 0

    def test_ctrl_c_stops_the_answer_and_keeps_the_session(self, server, terminal):
        server.answer = lambda body: ["tick "] * 2000 if len(body["messages"]) == 1 else count_words(body)
        server.next_token_seconds = 0.01
        terminal.wait_for("> ")
        terminal.type("count\n")
        terminal.wait_for("tick tick ")
        terminal.type("\x03")
        terminal.wait_for("[stopped]\r\n> ")
        assert server.disconnected.wait(10)
        terminal.type("more\n")
        terminal.wait_for("3 messages, last: more\r\n> ")
        assert server.bodies[1]["messages"][1]["role"] == "assistant"
        assert server.bodies[1]["messages"][1]["content"].startswith("tick tick ")

    def test_ctrl_c_at_the_prompt_drops_the_line(self, server, terminal):
        terminal.wait_for("> ")
        terminal.type("never mind")
        terminal.wait_for("never mind")
        terminal.type_until("\x03", "\r\n> ")
        terminal.type("/exit\n")
        assert terminal.exit_code() == 0
        assert server.bodies == []

    def test_an_answer_shows_before_it_is_complete(self, server, terminal):
        server.answer = lambda body: ["first", "second"]
        server.next_token_seconds = 60
        terminal.wait_for("> ")
        terminal.type("go\n")
        terminal.wait_for("first")

    def test_an_error_is_one_line_and_the_session_goes_on(self, server, terminal):
        terminal.wait_for("> ")
        server.refuse_with = (400, b'{"error": {"message": "too long"}}')
        terminal.type("x\n")
        terminal.wait_for("too long\r\n> ")
        server.refuse_with = None
        terminal.type("y\n")
        terminal.wait_for("Hello wörld!\r\n> ")
        assert len(server.bodies[1]["messages"]) == 1

    def test_the_arrow_key_brings_the_last_line_back(self, server, terminal):
        server.answer = count_words
        terminal.wait_for("> ")
        terminal.type("again\n")
        terminal.wait_for("last: again\r\n> ")
        terminal.type("\x1b[A\n")
        terminal.wait_for("3 messages, last: again\r\n> ")

    def test_a_model_cannot_steer_the_terminal(self, server, terminal):
        server.answer = lambda body: ["a\x1b]0;title\x07b\x9bc\td"]
        terminal.wait_for("> ")
        terminal.type("x\n")
        shown = terminal.wait_for("d\r\n> ")
        assert "a]0;titlebc" in shown
        assert "\x1b" not in shown
