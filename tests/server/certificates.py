"""Certificates for tests, made with the ``openssl`` program: authorities, and what they sign."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

OPENSSL = shutil.which("openssl")


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, as PEM files."""

    certificate: Path
    key: Path


def make_authority(folder: Path, name: str) -> Pair:
    """One that signs others; those who trust it trust them."""
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    subject = ["-subj", f"/CN={name}", "-days", "2"]
    _openssl("req", "-x509", *_new_key(pair.key, "ec"), *subject, "-out", pair.certificate)
    return pair


def make_certificate(folder: Path, name: str, authority: Pair, kind: str = "ec") -> Pair:
    """One for ``localhost`` and 127.0.0.1 with the common name ``name``; ``kind`` is ``ec`` or ``rsa``."""
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n")
    _openssl("req", "-new", *_new_key(pair.key, kind), "-subj", f"/CN={name}", "-out", request)
    signed_by = ["-CA", authority.certificate, "-CAkey", authority.key, "-CAcreateserial"]
    _openssl("x509", "-req", "-in", request, *signed_by, "-extfile", extensions, "-days", "2", "-out", pair.certificate)
    return pair


def encrypt(key: Path, to: Path) -> Path:
    """The same key under a passphrase."""
    _openssl("pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", to)
    return to


def _new_key(path: Path, kind: str) -> list[str | Path]:
    shape = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"] if kind == "ec" else ["rsa:2048"]
    return ["-newkey", *shape, "-nodes", "-keyout", path]


def _openssl(*arguments: str | Path) -> None:
    subprocess.run([str(OPENSSL), *map(str, arguments)], check=True, capture_output=True, timeout=20)
