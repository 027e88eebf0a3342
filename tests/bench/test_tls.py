"""``vllm bench serve`` against an https server: the certificate is checked unless the user says otherwise."""

from pathlib import Path

import pytest

from tests.bench.mock_server import Plan, running
from tests.server.certificates import OPENSSL, Pair, make_authority, make_certificate
from vllm_cli.main import main

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="certificates are made with openssl")

SHORT = ["--num-prompts", "3", "--max-concurrency", "2", "--input-len", "4", "--output-len", "3"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def pem(authority: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's certificate and key in one file."""
    pair = make_certificate(tmp_path_factory.mktemp("server"), "server", authority)
    both = pair.certificate.parent / "both.pem"
    both.write_text(pair.certificate.read_text() + pair.key.read_text())
    return both


def test_a_certificate_of_a_trusted_authority_is_accepted(monkeypatch, authority: Pair, pem: Path):
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    with running([Plan(0.01, 0.001)], "--certificate", str(pem)) as server:
        assert main(["bench", "serve", "--base-url", server.url, *SHORT]) == 0
        assert len(server.log()) == 3


def test_another_certificate_is_refused_in_one_line_unless_none_is_asked_for(capsys, pem: Path):
    with running([Plan(0.01, 0.001)], "--certificate", str(pem)) as server:
        assert main(["bench", "serve", "--base-url", server.url, *SHORT]) == 1
        error = capsys.readouterr().err
        assert "certificate" in error
        assert error.count("\n") == 1
        assert server.log() == []
        assert main(["bench", "serve", "--base-url", server.url, "--insecure", *SHORT]) == 0
        assert len(server.log()) == 3
