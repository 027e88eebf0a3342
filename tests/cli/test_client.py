import json
import socket

import pytest

from tests.cli.mock_openai import MockOpenAI
from vllm_cli.client import Client
from vllm_cli.command import CommandError

QUESTION = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def client(server: MockOpenAI):
    with Client(f"{server.url}/v1") as client:
        yield client


def error_of(pieces) -> str:
    with pytest.raises(CommandError) as caught:
        list(pieces)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_chat_answer_arrives_piece_by_piece(server, client):
    assert list(client.chat("m", QUESTION)) == ["Hel", "lo ", "wörld", "!"]
    assert server.bodies == [{"model": "m", "messages": QUESTION, "stream": True}]


def test_a_completion_arrives_piece_by_piece(server, client):
    assert list(client.complete("m", "Once", 5)) == ["Hel", "lo ", "wörld", "!"]
    assert server.bodies == [{"model": "m", "prompt": "Once", "max_tokens": 5, "stream": True}]


def test_the_server_decides_the_length_when_no_max_tokens_is_given(server, client):
    list(client.complete("m", "Once"))
    assert "max_tokens" not in server.bodies[0]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_an_answer_survives_being_cut_into_pieces_of_bytes(server, client, size):
    server.piece_bytes = size
    assert "".join(client.chat("m", QUESTION)) == "Hello wörld!"


def test_the_first_listed_model_is_the_default(server, client):
    server.models = ["one", "two"]
    assert client.first_model() == "one"


def test_an_empty_model_list_is_an_error(server, client):
    server.models = []
    with pytest.raises(CommandError, match="lists no model"):
        client.first_model()


def test_no_key_sends_no_authorization(server, client):
    client.first_model()
    assert "Authorization" not in server.headers_seen[0]


def test_the_key_comes_from_the_option_then_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "openai")
    with Client(f"{server.url}/v1") as client:
        client.first_model()
    monkeypatch.setenv("VLLM_API_KEY", "vllm\n")
    with Client(f"{server.url}/v1") as client:
        client.first_model()
    with Client(f"{server.url}/v1", "option") as client:
        client.first_model()
    assert [seen["Authorization"] for seen in server.headers_seen] == ["Bearer openai", "Bearer vllm", "Bearer option"]


def test_a_key_that_no_header_can_carry_is_refused_at_once(server):
    with pytest.raises(CommandError, match="API key") as caught:
        Client(f"{server.url}/v1", "schlüssel→")
    assert caught.value.exit_code == 2


def test_an_address_without_http_is_refused_at_once():
    with pytest.raises(CommandError, match="http://") as caught:
        Client("localhost:8000/v1")
    assert caught.value.exit_code == 2


def test_an_unreachable_server_is_named_with_the_way_to_start_one():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with Client(url) as client:
            for message in (error_of(client.chat("m", QUESTION)), error_of(iter(client.first_model, None))):
                assert url in message
                assert "vllm serve" in message


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with Client(f"{server.url}/v1") as client:
        assert client.first_model() == "mock-model"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "model m does not exist"}}', "model m does not exist"),
        (b'{"detail": "Not here"}', "Not here"),
        (b'{"error": "plain"}', "plain"),
        (b"<html>\n<p>Bad gateway</p></html>", "<html> <p>Bad gateway</p></html>"),
        (b"[1]", "[1]"),
    ],
)
def test_an_error_status_is_told_with_what_the_server_says(server, client, body, said):
    server.refuse_with = (400, body)
    message = error_of(client.chat("m", QUESTION))
    assert "400 Bad Request" in message
    assert message.endswith(said)


def test_a_404_hints_at_the_missing_v1(server):
    with Client(server.url) as client:
        assert "/v1" in error_of(client.chat("m", QUESTION))


def test_an_error_in_the_middle_of_an_answer_is_told_after_what_came_before(server, client):
    server.fail_after = 2
    pieces = client.chat("m", QUESTION)
    assert [next(pieces), next(pieces)] == ["Hel", "lo "]
    assert "the engine stumbled" in error_of(pieces)


def test_a_cut_connection_is_told(server, client):
    server.break_after = 1
    assert "middle of the answer" in error_of(client.chat("m", QUESTION))


@pytest.mark.parametrize("data", ["no json", "[]", "3", '{"x": 1}', '{"choices": [7]}', '{"choices": 5}'])
def test_a_chunk_that_is_no_completion_is_an_error_of_one_line(server, client, data, monkeypatch):
    monkeypatch.setattr("tests.cli.mock_openai._event", lambda content: f"data: {data}\n\n".encode())
    assert "no completion" in error_of(client.chat("m", QUESTION))


@pytest.mark.parametrize("chunk", [{"choices": [{"delta": None}]}, {"choices": [{}]}, {"choices": []}])
def test_a_chunk_without_text_is_skipped(server, client, chunk, monkeypatch):
    monkeypatch.setattr("tests.cli.mock_openai._event", lambda content: f"data: {json.dumps(chunk)}\n\n".encode())
    assert list(client.chat("m", QUESTION)) == []


def test_closing_an_answer_closes_the_connection(server, client):
    server.answer = lambda body: ["x"] * 1000
    server.next_token_seconds = 0.005
    pieces = client.chat("m", QUESTION)
    next(pieces)
    pieces.close()
    assert server.disconnected.wait(10)


def test_bytes_that_are_no_text_are_sent_escaped(server, client):
    assert list(client.complete("m", "\udcff"))
    assert server.bodies[0]["prompt"] == "\udcff"
