"""Input and output of a batch over HTTP: against a server that fails in every way that a server can."""

import asyncio
import json
import logging
import os
import signal
import ssl
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.batch_folder import Folder, line, start
from tests.server.certificates import OPENSSL, make_authority, make_certificate
from tests.server.file_server import FileServer, serving
from vllm_engine.errors import ConfigError
from vllm_server.batch import transfer as batch_transfer
from vllm_server.batch.config import create_batch_config
from vllm_server.batch.errors import BatchFileError, TransferRefused
from vllm_server.batch.output import UrlOutput
from vllm_server.batch.transfer import fetch, upload
from vllm_server.batch.url import shown_url

LOGIN, SECRETS = "anna:geheim%21", ("anna", "geheim", "signed", "YW5uYTpnZWhlaW0h")
"""User and password in a URL; what must not be shown: them, the query, and the header that they become."""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_transfer, "WAITS", (0.01, 0.01))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(b"".join(b"%d\n" % number for number in range(100_000))) as server:
        yield server


@pytest.fixture
def other() -> Iterator[FileServer]:
    with serving(b"other") as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def with_secrets(server: FileServer, path: str = "/in.jsonl") -> str:
    return f"{server.url.replace('//', f'//{LOGIN}@')}{path}?key=signed#signed"


async def fetched(server: FileServer, folder: Path | None = None) -> bytes:
    with await fetch(with_secrets(server), str(folder) if folder else None) as file:
        file.seek(0)
        return file.read()


# ---- attempts ----


@pytest.mark.parametrize(
    "script",
    [[], [500], [503, 429], ["drop"], ["cut", "drop"], ["cut", "cut"], [408]],
    ids=lambda script: "-".join(map(str, script)) or "well",
)
async def test_what_may_go_well_the_next_time_is_tried_again(
    server: FileServer, tmp_path: Path, script: list[Any]
) -> None:
    server.script[:] = script
    assert await fetched(server, tmp_path) == server.content
    assert len(server.seen) == len(script) + 1
    assert [seen.path for seen in server.seen] == ["/in.jsonl?key=signed"] * len(server.seen)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", [[], [500], [503, 429], ["drop"]], ids=str)
async def test_the_answers_are_sent_whole_in_the_attempt_that_goes_well(
    server: FileServer, tmp_path: Path, script: list[Any]
) -> None:
    server.script[:] = script
    path = tmp_path / "answers"
    path.write_bytes(os.urandom(3 * 2**20 + 1))
    await upload(path, with_secrets(server))
    assert server.stored == path.read_bytes()
    assert len(server.seen) == len(script) + 1
    last = server.seen[-1]
    assert (last.method, last.path) == ("PUT", "/in.jsonl?key=signed")
    assert last.headers["content-length"] == str(path.stat().st_size)
    assert "transfer-encoding" not in last.headers and "content-type" not in last.headers


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 204, 206, 304])
async def test_a_refusal_is_told_at_once(server: FileServer, status: int) -> None:
    server.script[:] = [status]
    with pytest.raises(TransferRefused, match=f"cannot fetch {server.url}/in.jsonl: it answered {status} "):
        await fetched(server)
    assert len(server.seen) == 1


async def test_a_refusal_before_the_body_is_read_is_understood(server: FileServer, tmp_path: Path) -> None:
    server.script[:] = ["early", "early", "early"]
    path = tmp_path / "answers"
    path.write_bytes(b"x")
    with pytest.raises(TransferRefused, match="it answered 403 Forbidden"):
        await upload(path, server.url)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ([500] * 3, "it answered 500 Internal Server Error, 3 times"),
        ([599] * 3, "it answered 599, 3 times"),
        (["drop"] * 3, r"the connection broke \(RemoteProtocolError\), 3 times"),
        (["cut"] * 3, r"the connection broke \(RemoteProtocolError\), 3 times"),
        (["silent"] * 3, "it was silent for too long, 3 times"),
    ],
)
async def test_patience_has_an_end(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, script: list[Any], message: str
) -> None:
    monkeypatch.setattr(batch_transfer, "SILENCE_SECONDS", 0.1)
    server.script[:] = script
    with pytest.raises(BatchFileError, match=message) as caught:
        await fetched(server)
    assert not isinstance(caught.value, TransferRefused)
    assert len(server.seen) == 3


async def test_a_server_that_is_not_there_is_named() -> None:
    with serving() as gone:
        url = with_secrets(gone)
    with pytest.raises(
        BatchFileError, match=rf"cannot fetch {gone.url}/in.jsonl: it cannot be reached \(.*\), 3 times"
    ):
        await fetch(url, None)


# ---- redirects ----


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_get_follows_redirects(server: FileServer, status: int) -> None:
    server.script[:] = [(status, "/elsewhere?again=1"), (status, "third")]
    assert await fetched(server) == server.content
    assert [seen.path for seen in server.seen] == ["/in.jsonl?key=signed", "/elsewhere?again=1", "/third"]
    assert all(seen.headers["authorization"].startswith("Basic ") for seen in server.seen)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_put_stays_a_put_with_all_its_body(server: FileServer, tmp_path: Path, status: int) -> None:
    server.script[:] = [(status, "/elsewhere")]
    path = tmp_path / "answers"
    path.write_bytes(b"answers")
    await upload(path, server.url)
    assert [(seen.method, seen.body) for seen in server.seen] == [("PUT", b"answers")] * 2


async def test_a_put_that_is_sent_to_look_elsewhere_has_failed(server: FileServer, tmp_path: Path) -> None:
    server.script[:] = [(303, "/elsewhere")]
    with pytest.raises(TransferRefused, match="it answered 303 See Other"):
        await upload(Path(__file__), server.url)


async def test_user_and_password_are_for_one_server_only(server: FileServer, other: FileServer) -> None:
    server.script[:] = [(302, f"{other.url}/there")]
    assert await fetched(server) == b"other"
    assert "authorization" in server.seen[0].headers
    assert "authorization" not in other.seen[0].headers


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/x", "file:///etc/passwd", "mailto:anna"])
async def test_a_redirect_to_what_is_no_url_for_files_is_refused(server: FileServer, target: str) -> None:
    server.script[:] = [(302, target)]
    with pytest.raises(TransferRefused):
        await fetched(server)


async def test_redirects_in_a_circle_end(server: FileServer) -> None:
    server.script[:] = [(302, "/in.jsonl")] * 50
    with pytest.raises(TransferRefused, match="more than 10 redirects"):
        await fetched(server)
    assert len(server.seen) == 11


@pytest.mark.skipif(OPENSSL is None, reason="there is no openssl program")
async def test_over_tls_the_server_is_known_and_the_way_stays_encrypted(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = make_authority(tmp_path, "authority")
    certificate = make_certificate(tmp_path, "server", authority)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate.certificate, certificate.key)
    with serving(b"secure", tls) as secure:
        with pytest.raises(BatchFileError, match=r"it cannot be reached \(.*CERTIFICATE_VERIFY_FAILED"):
            await fetched(secure)
        assert secure.seen == []
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
        secure.script[:] = [(302, "/elsewhere")]
        assert await fetched(secure) == b"secure"
        secure.script[:] = [(302, f"{server.url}/in.jsonl")]
        with pytest.raises(TransferRefused, match="it redirects to a connection that is not encrypted"):
            await fetched(secure)
    assert server.seen == []


# ---- secrets ----


async def test_no_message_and_no_log_tells_a_secret(
    server: FileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even with a log of everything: the HTTP library would write URLs and headers into it."""
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "httpcore.http11"):
        caplog.set_level(logging.DEBUG, logger=name)
    path = tmp_path / "answers"
    path.write_bytes(b"answers")
    messages = []
    for script in (
        [500, "drop", 200],
        [404],
        [500] * 3,
        ["drop"] * 3,
        [(302, "/x?key=signed"), 403],
        [(302, "ftp://x")],
    ):
        for transfer in (fetch(with_secrets(server), None), upload(path, with_secrets(server))):
            server.script[:] = script
            try:
                result = await transfer
                if result is not None:
                    result.close()
            except BatchFileError as error:
                messages.append(str(error))
    assert len(messages) == 10
    assert all(f"{server.url}/in.jsonl" in message for message in messages)
    told = "\n".join([*messages, caplog.text])
    assert "another attempt follows" in told
    assert [secret for secret in (*SECRETS, "secret-words", "it said no") if secret in told] == []
    assert logging.getLogger("httpx").level == logging.DEBUG


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "https:///in.jsonl?key=signed",
        "http://anna:geheim@/x",
        "http://anna:ge/heim@host/",
        "http://host:99999/?signed",
        "http://host:0/?signed",
        "http://ho st/?signed",
        "http://[::1/?signed",
        "http://host/\n?signed",
    ],
)
@pytest.mark.parametrize("field", ["input_file", "output_file"])
def test_a_url_that_cannot_be_called_is_told_before_anything_and_not_shown(url: str, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_batch_config({"input_file": "a", "output_file": "b", field: url})
    assert str(caught.value) == f"{field} begins like a URL and is none"
    assert caught.value.field == field


def test_a_url_is_shown_without_what_may_let_others_in() -> None:
    for url, shown in (
        ("https://anna:geheim@host/a/b.jsonl?X-Amz-Signature=signed#f", "https://host/a/b.jsonl"),
        ("HTTP://anna@[::1]:80/x", "http://[::1]:80/x"),
        ("https://host", "https://host"),
    ):
        assert shown_url(url) == shown
        config = create_batch_config({"input_file": url, "output_file": url})
        assert "geheim" not in repr(config) and "signed" not in repr(config)


# ---- memory and places ----


async def test_a_long_file_is_not_held_in_memory(server: FileServer, tmp_path: Path) -> None:
    server.content = bytes(40 * 2**20)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        with await fetch(server.url, str(tmp_path)) as file:
            assert file.tell() == 40 * 2**20
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most - before < 8 * 2**20


async def test_a_folder_that_is_not_there_is_named(server: FileServer) -> None:
    with pytest.raises(ConfigError, match="output_tmp_dir: cannot write to no/such: No such file"):
        await fetch(server.url, "no/such")


def test_without_a_folder_answers_wait_where_only_their_user_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    url = "https://anna:geheim@host/a/out%20put.jsonl?key="
    places = {UrlOutput(url + key).place for key in ("1", "2")}
    (place,) = places  # the same for each signature
    assert place.folder.parent == tmp_path
    assert place.folder.stat().st_mode & 0o777 == 0o700
    assert place.stem.startswith("out_20put.jsonl.")
    assert UrlOutput("https://host/b/out%20put.jsonl").place != place
    assert UrlOutput("https://host").place.stem.startswith("output.")
    place.folder.chmod(0o755)
    with pytest.raises(ConfigError) as caught:
        UrlOutput(url)
    assert caught.value.field == "output_tmp_dir"


# ---- the whole of it ----


def ended(*flags: str, folder: Path | None = None, **script: Any) -> tuple[int, str, str]:
    with start(*flags, folder=folder, **script) as process:
        out, error = process.communicate(timeout=30)
    return process.returncode, out, error


def test_from_a_url_to_a_url(server: FileServer, folder: Folder) -> None:
    folder.write(line("1", prompt="hi", max_tokens=2), "wrong", line("2", prompt="hi", max_tokens=3))
    server.content = folder.input.read_bytes()
    server.script[:] = [503, 200, 503, 201]
    flags = ["-i", with_secrets(server), "-o", with_secrets(server, "/out.jsonl"), "--output-tmp-dir"]
    code, out, error = ended(*flags, str(folder.path))
    assert (code, error) == (0, "")
    assert out.splitlines()[-1] == f"3 requests, 1 failed: {server.url}/out.jsonl"
    assert [json.loads(item)["custom_id"] for item in server.stored.splitlines()] == ["1", None, "2"]
    assert list(folder.path.iterdir()) == [folder.input]


def test_answers_that_nobody_took_are_kept_and_sent_by_the_next_run(server: FileServer, folder: Folder) -> None:
    folder.write(line("1", prompt="hi", max_tokens=2))
    flags = ["-i", str(folder.input), "-o", with_secrets(server), "--max-num-seqs", "4"]
    server.script[:] = [403]
    code, out, error = ended(*flags, folder=folder.path)
    assert code == 1
    (partial,) = folder.path.glob("vllm-run-batch-*/*.partial")
    assert error == (
        f"vllm run-batch: error: cannot send the answers to {server.url}/in.jsonl: it answered 403 Forbidden; "
        f"1 answers are in {partial}, and the same command goes on after them\n"
    )
    answers = partial.read_bytes()
    # With another signature, and no engine is started.
    code, out, error = ended(*flags[:3], f"{server.url}/in.jsonl?key=new", folder=folder.path, fails="dead")
    assert (code, out) == (0, f"1 requests, 0 failed: {server.url}/in.jsonl\n"), error
    assert error == f"vllm run-batch: 1 of 1 answers are there from an earlier run: {partial}\n"
    assert server.stored == answers
    assert not partial.exists()


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ([404], 2, "error: --input-file: cannot fetch URL: it answered 404 Not Found\n"),
        ([(302, "/")] * 20, 2, "error: --input-file: cannot fetch URL: more than 10 redirects\n"),
    ],
)
def test_an_input_that_is_not_there_ends_the_run(
    server: FileServer, folder: Folder, script: list[Any], code: int, message: str
) -> None:
    server.script[:] = script
    ending = ended("-i", with_secrets(server), "-o", str(folder.output))
    assert ending == (code, "", "vllm run-batch: " + message.replace("URL", f"{server.url}/in.jsonl"))
    assert list(folder.path.iterdir()) == []


def test_ctrl_c_while_the_answers_are_sent_keeps_them(server: FileServer, folder: Folder) -> None:
    folder.write(line("1", prompt="hi", max_tokens=1))
    server.script[:] = ["silent"]
    with start("-i", str(folder.input), "-o", with_secrets(server), folder=folder.path) as process:
        deadline = time.monotonic() + 20
        while not server.seen and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=10)
    assert process.returncode == 130
    assert error.startswith("vllm run-batch: interrupted; 1 answers are in ")
    assert len(list(folder.path.glob("vllm-run-batch-*/*.partial"))) == 1


@pytest.mark.parametrize("step", ["silent", 503])
def test_ctrl_c_ends_a_transfer_at_once(server: FileServer, folder: Folder, step: Any) -> None:
    server.script[:] = [step] * 5
    with start("-i", with_secrets(server), "-o", str(folder.output)) as process:
        deadline = time.monotonic() + 20
        while not server.seen and time.monotonic() < deadline:
            time.sleep(0.01)
        asked = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
    assert (process.returncode, error) == (130, "vllm run-batch: interrupted; there is no answer yet\n")
    assert time.monotonic() - asked < 10


async def test_the_library_is_loaded_for_urls_only() -> None:
    script = "import sys, vllm_server.batch.run, vllm_server.batch.output; sys.exit('httpx' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    assert await process.wait() == 0
