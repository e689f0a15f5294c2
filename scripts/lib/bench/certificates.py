"""Certificates for the rows with TLS: an authority and a server's, both for this run only."""

from __future__ import annotations

import subprocess
from pathlib import Path

from system import BenchError


def make(directory: Path) -> Path:
    """A directory with ca-cert.pem, server-cert.pem and server-key.pem, as libnbd and nbdkit want them."""
    place = directory / "pki"
    place.mkdir(exist_ok=True)
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    _openssl(place, "req", "-x509", "-days", "2", *curve, "-subj", "/CN=benchmark authority",
             "-keyout", "ca-key.pem", "-out", "ca-cert.pem")
    _openssl(place, "req", *curve, "-subj", "/CN=localhost",
             "-keyout", "server-key.pem", "-out", "server.csr")
    (place / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    _openssl(place, "x509", "-req", "-in", "server.csr", "-CA", "ca-cert.pem",
             "-CAkey", "ca-key.pem", "-CAcreateserial", "-days", "2", "-extfile", "names",
             "-out", "server-cert.pem")
    return place


def _openssl(place: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=place, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"openssl {arguments[0]}: {done.stderr[-300:].strip()}")
