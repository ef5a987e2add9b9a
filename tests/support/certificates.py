"""Certificates as an operator makes them with `openssl`: an authority, and a server certificate that it signed."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Certificates:
    """Paths of PEM files. `stranger` is another authority, which signed none of them."""

    authority: Path
    stranger: Path
    certificate: Path
    key: Path


def make(folder: Path, names: str = "IP:127.0.0.1") -> Certificates:
    """For a server with these `names` (a subjectAltName, x509v3_config(5))."""
    if shutil.which("openssl") is None:
        if os.environ.get("CI"):
            pytest.fail("no openssl is installed")
        pytest.skip("no openssl is installed")
    made = Certificates(*(folder / name for name in ("authority.crt", "stranger.crt", "server.crt", "server.key")))
    for certificate in (made.authority, made.stranger):
        _openssl(
            "req", "-x509", *_NEW, folder / f"{certificate.stem}.key", "-out", certificate, "-subj", "/CN=authority"
        )
    (folder / "names").write_text(f"subjectAltName={names}\n")
    request = folder / "server.csr"
    _openssl("req", *_NEW, made.key, "-out", request, "-subj", "/CN=redis")
    signed_by = ("-CA", made.authority, "-CAkey", folder / "authority.key", "-CAcreateserial")
    _openssl("x509", "-req", "-in", request, *signed_by, "-extfile", folder / "names", "-out", made.certificate)
    return made


_NEW = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout")


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=30)
