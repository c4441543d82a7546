# SPDX-License-Identifier: Apache-2.0
"""The program ``openssl``: CMS, and for files the plain counter mode, which checks nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

from peers.base import Peer, find_program, pipe, run, scratch


class Cms(Peer):
    """CMS AuthEnvelopedData: AES-256-GCM under a key transported by RSA-2048."""

    name = "openssl cms"
    amortises = "nothing; its process is started for each report"
    program = True
    reports = True

    def __init__(self) -> None:
        self._openssl = find_program("openssl")
        folder = scratch()
        self._key = folder / "key.pem"
        self._certificate = folder / "certificate.pem"
        command = [
            self._openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-subj", "/CN=bench", "-keyout", self._key, "-out", self._certificate,
        ]  # fmt: skip
        subprocess.run(command, capture_output=True, check=True)

    def version(self) -> str:
        done = subprocess.run(
            [self._openssl, "version"], capture_output=True, text=True, check=True
        )
        return " ".join(done.stdout.split()[:2])

    def seal(self, report: bytes) -> bytes:
        how = ["-encrypt", "-binary", "-aes-256-gcm", "-outform", "DER"]
        return pipe([self._openssl, "cms", *how, self._certificate], report)

    def open(self, sealed: bytes) -> bytes:
        how = ["-decrypt", "-binary", "-inform", "DER", "-inkey", self._key]
        return pipe([self._openssl, "cms", *how, "-recip", self._certificate], sealed)


class Enc(Peer):
    """``openssl enc -aes-256-ctr``: neither recipients nor authentication."""

    name = "openssl enc ctr"
    amortises = "the key is given, and nothing is authenticated"
    program = True
    files = True

    version = Cms.version

    def __init__(self) -> None:
        self._openssl = find_program("openssl")

    def seal_file(self, source: Path, target: Path) -> int:
        return self._run(source, target)

    def open_file(self, source: Path, target: Path) -> int:
        return self._run(source, target, "-d")

    def _run(self, source: Path, target: Path, *how: str) -> int:
        key = ["-K", "00" * 32, "-iv", "00" * 16]
        return run(
            [self._openssl, "enc", *how, "-aes-256-ctr", *key, "-in", source, "-out", target]
        )


PEERS = [Cms, Enc]
