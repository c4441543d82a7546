# SPDX-License-Identifier: Apache-2.0
"""A real FIPS provider for the tests, in processes of their own.

`cryptography`'s wheels carry an OpenSSL beside the system's, and one loaded ``fips.so`` serves one
of the two, so each gets a copy. Both read OPENSSL_MODULES when they are first used: a
``sitecustomize`` has ``cryptography`` do so before the other. (docs/fips.md says how it is done
without that; `test_fips.test_as_the_page_says` does it so.)
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_FIRST = """
import os
if "TEST_FIPS_FIRST" in os.environ:
    os.environ["OPENSSL_MODULES"] = os.environ["TEST_FIPS_FIRST"]
    import cryptography.hazmat.backends.openssl.backend
    os.environ["OPENSSL_MODULES"] = os.environ["TEST_FIPS_SECOND"]
    os.environ["OPENSSL_CONF"] = os.environ["TEST_FIPS_CONFIGURATION"]
"""
# For the C core's: the default provider is there as well, and the core alone asks for fips=yes.
_MIXED = (
    ("default_properties = fips=yes", ""),
    ("base = base_sect", "base = base_sect\ndefault = base_sect"),
)
_CONFIGURATION = """\
config_diagnostics = 1
openssl_conf = openssl_init
.include {module}
[openssl_init]
providers = provider_sect
alg_section = algorithm_sect
[provider_sect]
fips = fips_sect
base = base_sect
[base_sect]
activate = 1
[algorithm_sect]
default_properties = fips=yes
"""


class Fips:
    """Two copies of a provider, and what has processes use them."""

    def __init__(self, folder):
        subprocess.run([ROOT / "scripts" / "fips-provider"], check=True, timeout=200)
        source = ROOT / "build" / "fips" / "fips.so"
        self.folder = folder
        self.first, self.second = folder / "first", folder / "second"
        for copy in (self.first, self.second):
            copy.mkdir()
            shutil.copy(source, copy / "fips.so")
        self.module = folder / "fipsmodule.cnf"
        subprocess.run(
            ["openssl", "fipsinstall", "-module", self.first / "fips.so", "-out", self.module],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        self.configuration = folder / "openssl.cnf"
        self.configuration.write_text(_CONFIGURATION.format(module=self.module))
        mixed = self.configuration.read_text()
        for strict, loose in _MIXED:
            mixed = mixed.replace(strict, loose)
        self.mixed = folder / "mixed.cnf"
        self.mixed.write_text(mixed)
        (folder / "sitecustomize.py").write_text(_FIRST)

    def environment(self, **more):
        """Of a process in which both OpenSSLs have the provider, and FIPS mode is on."""
        return {
            "UPSEAL_FIPS": "1",
            "OPENSSL_CONF": str(self.configuration),
            "TEST_FIPS_FIRST": str(self.first),
            "TEST_FIPS_SECOND": str(self.second),
            "TEST_FIPS_CONFIGURATION": str(self.mixed),
            "PYTHONPATH": os.pathsep.join(
                [str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            **more,
        }

    def python(self, code, *arguments, **more):
        """Runs it there."""
        return python(code, *arguments, **self.environment(**more))


def python(code, *arguments, **environment):
    """Runs a program, or with ``-m upseal`` the command; of this process's UPSEAL_ it has none."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("UPSEAL_", "OPENSSL_"))}
    command = ["-m", "upseal"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *command, *map(str, arguments)],
        env={**kept, **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
