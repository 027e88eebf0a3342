"""TLS: who is let in with which certificate, and new files taken up while streams go on."""

import argparse
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.server import fake_serve
from tests.server.certificates import OPENSSL, Pair, encrypt, make_authority, make_certificate
from tests.server.conftest import make_context, running
from tests.server.fake_llm import FakeLLM, letters, sse_events
from tests.server.process import Process, without_phases
from vllm_engine.errors import ConfigError
from vllm_server.config import ServerConfig, create_server_config
from vllm_server.running.tls import Tls, create_tls, load_context
from vllm_server.serve import add_arguments, run

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="certificates are made with the openssl program")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="session")
def authority(folder: Path) -> Pair:
    return make_authority(folder, "authority")


@pytest.fixture(scope="session")
def other_authority(folder: Path) -> Pair:
    return make_authority(folder, "other-authority")


@pytest.fixture(scope="session")
def server(folder: Path, authority: Pair) -> Pair:
    return make_certificate(folder, "first", authority)


@pytest.fixture(scope="session")
def new_server(folder: Path, authority: Pair) -> Pair:
    return make_certificate(folder, "second", authority, kind="rsa")


@pytest.fixture(scope="session")
def member(folder: Path, authority: Pair) -> Pair:
    return make_certificate(folder, "member", authority)


@pytest.fixture(scope="session")
def stranger(folder: Path, other_authority: Pair) -> Pair:
    return make_certificate(folder, "stranger", other_authority)


def trusting(authority: Pair, own: Pair | None = None) -> ssl.SSLContext:
    """A client that trusts ``authority`` and shows ``own``."""
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if own is not None:
        context.load_cert_chain(own.certificate, own.key)
    return context


def name_shown(url: str, context: ssl.SSLContext) -> str:
    """The common name in the certificate that a new connection gets."""
    parts = urlsplit(url)
    with (
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        certificate: Any = wrapped.getpeercert()
    return str(certificate["subject"][0][0][1])


def config_of(pair: Pair, **options: Any) -> ServerConfig:
    return create_server_config({"ssl_certfile": str(pair.certificate), "ssl_keyfile": str(pair.key), **options})


def is_let_in(url: str, context: ssl.SSLContext) -> bool:
    """Whether a request is answered. TLS 1.3 tells a client only after its handshake that it is not welcome."""
    try:
        return httpx.get(f"{url}/livez", verify=context).status_code == 200
    except (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
        return False


@pytest.fixture
def one_file(server: Pair, tmp_path: Path) -> Path:
    path = tmp_path / "both.pem"
    path.write_bytes(server.key.read_bytes() + server.certificate.read_bytes())
    return path


def test_clients_choose_among_the_ciphers_that_are_listed(authority: Pair, server: Pair) -> None:
    def cipher_of(offered: str) -> str | None:
        client = trusting(authority)
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        client.set_ciphers(offered)
        parts = urlsplit(url)
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as plain:
            try:
                with client.wrap_socket(plain, server_hostname="localhost") as wrapped:
                    return (wrapped.cipher() or (None,))[0]
            except ssl.SSLError:
                return None

    listed, other = "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256"
    with running(make_context(FakeLLM()), Tls(config_of(server, ssl_ciphers=listed)).context) as url:
        assert cipher_of(f"{other}:{listed}") == listed
        assert cipher_of(other) is None
    with running(make_context(FakeLLM()), Tls(config_of(server)).context) as url:
        assert cipher_of(other) == other


def test_ciphers_that_nobody_knows_are_named(server: Pair) -> None:
    for ciphers in ("NO-SUCH-CIPHER", ""):
        with pytest.raises(ConfigError, match="OpenSSL knows no cipher") as caught:
            Tls(config_of(server, ssl_ciphers=ciphers))
        assert caught.value.field == "ssl_ciphers"
    with pytest.raises(ConfigError, match="ssl_ciphers needs ssl_certfile"):
        create_server_config({"ssl_ciphers": "ECDHE+AESGCM"})


def test_requests_go_through_tls_and_nothing_else(authority: Pair, other_authority: Pair, server: Pair) -> None:
    with running(make_context(FakeLLM()), Tls(config_of(server)).context) as url:
        with httpx.Client(base_url=url, verify=trusting(authority)) as client:
            assert client.get("/v1/models").status_code == 200
            answer = client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 3, "stream": True})
            assert list(sse_events(answer.text))[-1] == "[DONE]"
        assert not is_let_in(url, trusting(other_authority))
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url.replace('https', 'http')}/livez")
        assert name_shown(url, trusting(authority)) == "first"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions_of_today_are_spoken(authority: Pair, server: Pair, version: ssl.TLSVersion) -> None:
    client = trusting(authority)
    client.minimum_version = client.maximum_version = version
    with running(make_context(FakeLLM()), Tls(config_of(server)).context) as url:
        assert is_let_in(url, client)


def test_versions_of_yesterday_are_not(server: Pair) -> None:
    assert load_context(config_of(server)).minimum_version >= ssl.TLSVersion.TLSv1_2


def test_the_key_may_stand_in_the_file_of_the_certificate(authority: Pair, one_file: Path) -> None:
    tls = create_tls(create_server_config({"ssl_certfile": str(one_file)}))
    assert tls is not None
    with running(make_context(FakeLLM()), tls.context) as url:
        assert is_let_in(url, trusting(authority))
    assert create_tls(create_server_config({})) is None


@pytest.mark.parametrize(
    ("wanted", "let_in"),
    [
        (0, {"none": True, "member": True, "stranger": True}),
        (1, {"none": True, "member": True, "stranger": False}),
        (2, {"none": False, "member": True, "stranger": False}),
    ],
)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_clients_are_asked_for_certificates(
    authority: Pair,
    server: Pair,
    member: Pair,
    stranger: Pair,
    wanted: int,
    let_in: dict[str, bool],
    version: ssl.TLSVersion,
) -> None:
    config = config_of(server, ssl_cert_reqs=wanted, ssl_ca_certs=str(authority.certificate))
    pairs = {"none": None, "member": member, "stranger": stranger}
    with running(make_context(FakeLLM()), Tls(config).context) as url:
        for name, expected in let_in.items():
            client = trusting(authority, pairs[name])
            client.maximum_version = version
            assert is_let_in(url, client) is expected, name


@pytest.fixture
def replaceable(server: Pair, authority: Pair, tmp_path: Path) -> Iterator[Path]:
    """A folder with ``cert``, ``key`` and ``ca``, which tests replace."""
    for pair_file, name in ((server.certificate, "cert"), (server.key, "key"), (authority.certificate, "ca")):
        shutil.copy(pair_file, tmp_path / name)
    return tmp_path


def put(source: Path, target: Path) -> None:
    """Put a file in the place of another at once, as those who renew certificates do."""
    copy = target.with_suffix(".new")
    shutil.copy(source, copy)
    os.replace(copy, target)


def files_in(folder: Path, **options: Any) -> ServerConfig:
    return create_server_config({"ssl_certfile": str(folder / "cert"), "ssl_keyfile": str(folder / "key"), **options})


def test_new_files_are_for_new_connections(replaceable: Path, authority: Pair, new_server: Pair) -> None:
    tls = Tls(files_in(replaceable))
    with (
        running(make_context(FakeLLM(delay=0.01)), tls.context) as url,
        httpx.Client(base_url=url, verify=trusting(authority)) as client,
    ):
        body = {"prompt": "hi", "max_tokens": 40, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            pieces = answer.iter_text()
            text = next(pieces)
            assert tls.refresh() is False
            put(new_server.certificate, replaceable / "cert")
            put(new_server.key, replaceable / "key")
            assert name_shown(url, trusting(authority)) == "first"
            assert tls.refresh() is True
            assert name_shown(url, trusting(authority)) == "second"
            text += "".join(pieces)
        assert len(list(sse_events(text))) == len(letters(40)) + 1
        assert client.get("/livez").status_code == 200
        assert tls.refresh() is False


def test_broken_files_are_told_and_not_used(
    replaceable: Path, authority: Pair, new_server: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "vllm_server.running.tls"]

    tls = Tls(files_in(replaceable))
    with running(make_context(FakeLLM()), tls.context) as url:
        put(new_server.certificate, replaceable / "cert")  # the key does not fit until it is replaced as well
        assert tls.refresh() is False
        assert "does not belong to the certificate" in told()[-1]
        assert name_shown(url, trusting(authority)) == "first"
        (replaceable / "key").unlink()
        assert tls.refresh() is False
        assert "cannot read" in told()[-1]
        (replaceable / "key").write_bytes(new_server.key.read_bytes()[:100])
        assert tls.refresh() is False
        assert "cannot be used" in told()[-1]
        assert tls.refresh() is False
        assert len(told()) == 3  # once for each change
        assert name_shown(url, trusting(authority)) == "first"
        put(new_server.key, replaceable / "key")
        assert tls.refresh() is True
        assert name_shown(url, trusting(authority)) == "second"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_authority_that_is_gone_is_trusted_no_more_not_even_in_an_old_session(
    replaceable: Path,
    authority: Pair,
    other_authority: Pair,
    member: Pair,
    stranger: Pair,
    version: ssl.TLSVersion,
) -> None:
    tls = Tls(files_in(replaceable, ssl_cert_reqs=2, ssl_ca_certs=str(replaceable / "ca")))
    client = trusting(authority, member)
    client.maximum_version = version
    with running(make_context(FakeLLM()), tls.context) as url:
        session = session_of(url, client)
        assert answers(url, client, session)
        put(other_authority.certificate, replaceable / "ca")
        assert tls.refresh() is True
        assert not answers(url, client, session)
        assert not is_let_in(url, trusting(authority, member))
        assert is_let_in(url, trusting(authority, stranger))


def session_of(url: str, context: ssl.SSLContext) -> ssl.SSLSession | None:
    """The session of a connection, by which a later one may spare itself the certificates."""
    return exchange(url, context, None)[1]


def answers(url: str, context: ssl.SSLContext, session: ssl.SSLSession | None) -> bool:
    """Whether a connection that offers to resume a session gets an answer."""
    try:
        return b" 200 " in exchange(url, context, session)[0]
    except OSError:
        return False


def exchange(url: str, context: ssl.SSLContext, session: ssl.SSLSession | None) -> tuple[bytes, ssl.SSLSession | None]:
    parts = urlsplit(url)
    with (
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost", session=session) as wrapped,
    ):
        wrapped.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return wrapped.recv(4096), wrapped.session


def test_the_process_speaks_tls_takes_up_files_and_stops_at_once(
    processes: list[Process], replaceable: Path, authority: Pair, new_server: Pair
) -> None:
    flags = ["--ssl-certfile", str(replaceable / "cert"), "--ssl-keyfile", str(replaceable / "key")]
    processes.append(process := Process(*flags, "--enable-ssl-refresh"))
    assert process.url.startswith("https://127.0.0.1:")
    curl = process.wait_for("try: curl ").removeprefix("try: ")
    if shutil.which("curl"):
        answer = subprocess.run(curl, shell=True, capture_output=True, text=True, check=True, timeout=20).stdout
        assert '"chat.completion"' in answer
    with httpx.Client(base_url=process.url, verify=trusting(authority)) as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "demo"
        assert name_shown(process.url, trusting(authority)) == "first"
        put(new_server.key, replaceable / "key")
        put(new_server.certificate, replaceable / "cert")
        deadline = time.monotonic() + 10
        while name_shown(process.url, trusting(authority)) == "first" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert name_shown(process.url, trusting(authority)) == "second"
        assert client.get("/livez").status_code == 200
        with socket.create_connection(("127.0.0.1", int(process.url.rpartition(":")[2]))) as junk:
            junk.sendall(b"GET / HTTP/1.1\r\n\r\n")
            junk.recv(100)
        process.signal(signal.SIGTERM)
        start = time.monotonic()
        assert process.end() == 0
        assert time.monotonic() - start < 9
    assert not [line for line in process.log if "Traceback" in line or "ERROR" in line]


def wrong_files(
    tmp_path: Path, server: Pair, new_server: Pair, member: Pair
) -> dict[str, tuple[dict[str, Any], str, str]]:
    """By name: settings, the one at fault, and a part of what is said."""
    good = {"ssl_certfile": str(server.certificate), "ssl_keyfile": str(server.key)}
    empty, text, torn, torn_key = (tmp_path / name for name in ("empty", "text", "torn", "torn-key"))
    empty.write_bytes(b"")
    text.write_text("no certificate")
    torn.write_bytes(server.certificate.read_bytes()[:200])
    torn_key.write_bytes(server.key.read_bytes()[:100])
    locked = encrypt(server.key, tmp_path / "locked")
    return {
        "no certificate": ({"ssl_keyfile": good["ssl_keyfile"]}, "ssl_keyfile", "needs ssl_certfile"),
        "ca alone": ({"ssl_ca_certs": good["ssl_certfile"]}, "ssl_ca_certs", "needs ssl_certfile"),
        "reqs alone": ({"ssl_cert_reqs": 2}, "ssl_cert_reqs", "needs ssl_certfile"),
        "refresh alone": ({"enable_ssl_refresh": True}, "enable_ssl_refresh", "needs ssl_certfile"),
        "reqs without ca": ({**good, "ssl_cert_reqs": 1}, "ssl_cert_reqs", "needs ssl_ca_certs"),
        "reqs out of range": ({**good, "ssl_cert_reqs": 3}, "ssl_cert_reqs", "must be one of 0, 1, 2"),
        "no such certificate": ({**good, "ssl_certfile": "no/file"}, "ssl_certfile", "cannot read no/file: No such"),
        "no such key": ({**good, "ssl_keyfile": "no/file"}, "ssl_keyfile", "cannot read no/file: No such"),
        "no such ca": ({**good, "ssl_ca_certs": "no/file"}, "ssl_ca_certs", "cannot read no/file: No such"),
        "a folder": ({**good, "ssl_certfile": str(tmp_path)}, "ssl_certfile", "Is a directory"),
        "empty certificate": ({**good, "ssl_certfile": str(empty)}, "ssl_certfile", "holds no certificate"),
        "text as key": ({**good, "ssl_keyfile": str(text)}, "ssl_keyfile", "holds no private key"),
        "text as ca": ({**good, "ssl_ca_certs": str(text)}, "ssl_ca_certs", "holds no certificate"),
        "swapped": (
            {"ssl_certfile": good["ssl_keyfile"], "ssl_keyfile": good["ssl_certfile"]},
            "ssl_certfile",
            "holds no certificate",
        ),
        "key missing": ({"ssl_certfile": good["ssl_certfile"]}, "ssl_certfile", "holds no private key"),
        "torn certificate": ({**good, "ssl_certfile": str(torn)}, "ssl_certfile", "cannot be used"),
        "torn key": ({**good, "ssl_keyfile": str(torn_key)}, "ssl_keyfile", "cannot be used"),
        "torn ca": ({**good, "ssl_cert_reqs": 1, "ssl_ca_certs": str(torn)}, "ssl_ca_certs", "cannot be used"),
        "other key": ({**good, "ssl_keyfile": str(new_server.key)}, "ssl_keyfile", "does not belong to"),
        "other key of the kind": ({**good, "ssl_keyfile": str(member.key)}, "ssl_keyfile", "does not belong to"),
        "encrypted key": ({**good, "ssl_keyfile": str(locked)}, "ssl_keyfile", "encrypted"),
    }


def test_what_cannot_be_used_is_refused_by_name(tmp_path: Path, server: Pair, new_server: Pair, member: Pair) -> None:
    for name, (options, field, said) in wrong_files(tmp_path, server, new_server, member).items():
        with pytest.raises(ConfigError) as error:
            create_tls(create_server_config(options))
        assert (error.value.field, said in str(error.value)) == (field, True), (name, str(error.value))


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize("name", ["no certificate", "reqs without ca", "no such certificate", "other key"])
def test_it_is_told_in_one_line_before_the_engine_starts(
    name: str,
    tmp_path: Path,
    server: Pair,
    new_server: Pair,
    member: Pair,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "vllm_engine.async_llm", fake_serve.module())
    options, field, _ = wrong_files(tmp_path, server, new_server, member)[name]
    flags = [part for key, value in options.items() for part in ("--" + key.replace("_", "-"), str(value))]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args(["demo", "--port", "0", *flags])) == 2
    captured = capsys.readouterr()
    (line,) = without_phases(captured.err)
    assert line.startswith(f"vllm serve: error: --{field.replace('_', '-')}")
    assert "engine launched" not in captured.out


def test_authorities_that_nobody_is_measured_by_are_told(server: Pair, caplog: pytest.LogCaptureFixture) -> None:
    config_of(server, ssl_ca_certs=str(server.certificate))
    assert caplog.messages == ["ssl_ca_certs has no effect while ssl_cert_reqs=0: no client is asked for a certificate"]
