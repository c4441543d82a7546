# SPDX-License-Identifier: Apache-2.0
"""Shows that the targets find what is broken: python fuzz/python/defects.py [SECONDS] [DEFECT ...]

Each defect takes one check away in a copy of the product (build/fuzz/python/defects); its target
must find that within SECONDS (60). Ends with 1 if one of them does not.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from upfuzz import ROOT

BUILD = ROOT / "build" / "fuzz" / "python" / "defects"


_SAID = re.compile(r"Uncaught Python exception: ===\n(.*)")


class Defect(NamedTuple):
    """Texts of a file, each there once, and what stands there instead."""

    target: str
    file: str
    changes: tuple


DEFECTS = {
    "two-entries-of-one-key": Defect(
        "header", "core/header.py", (("if (code, key_id) in seen:", "if False:"),)
    ),
    "explain-short-upload": Defect(
        "explain", "core/explain.py", (("if chunks < 0:", "if chunks < -9:"),)
    ),
    "any-padding": Defect(
        "envelope", "engine/padding.py", ((" or padded_len(len(marked) - 1) != len(padded)", ""),)
    ),
    "session-commitment": Defect(
        "envelope", "core/session.py",
        (("if not compare_digest(derived[96:], header.commitment)", "if False"),),
    ),
    "bytes-behind-a-batch": Defect(
        "batch", "core/bodies.py", (("if size - records_at > total:", "if False:"),)
    ),
    "upload-commitment": Defect(
        "upload", "core/uploads.py",
        (("if not compare_digest(commitment, front[SALT:]):", "if False:"),),
    ),
    "length-unproved": Defect(
        "upload", "core/reader.py",
        (("        opened = self._open_at(last_chunk, 1, self._buffer)\n"
          "        self._start, self._held = last_chunk * CHUNK, self._buffer[:opened]\n", ""),),
    ),
    "another-purpose": Defect("jws", "fleet/jws.py", (('if head["typ"] != typ:', "if False:"),)),
    "two-spellings": Defect(
        "token", "fleet/encoding.py", (("if b64url(data) != text:", "if False:"),)
    ),
    "signing-key-for-receipts": Defect(
        "manifest", "fleet/manifest_checks.py",
        (("_check(signer not in manifest.receipt_keys,", "_check(True,"),),
    ),
    "yes-without-the-administrator": Defect(
        "capabilities", "fleet/capabilities.py",
        (("if relay is not None and not relay.accepts_sealed:", "if False:"),),
    ),
    "proof-of-another-body": Defect(
        "credential", "fleet/hops.py", (('or claims.get("b") != b64url(body_digest)', ""),)
    ),
    "enrolled-by-another-key": Defect(
        "enrol", "fleet/credentials.py", (("if request.identity != key:", "if False:"),)
    ),
    "bytes-behind-a-bundle": Defect("units", "fleet/units.py", (("if at != total:", "if False:"),)),
    "records-not-counted": Defect(
        "units", "fleet/units.py", (("            and self.whole()\n", ""),)
    ),
    "memory-as-claimed": Defect(
        "units", "fleet/units.py",
        ((" or count * 4 > total - 8:", ":"),
         ("    parts: list[memoryview] = []\n    at = 8",
          "    parts: list[memoryview] = [data] * count\n    parts.clear()\n    at = 8")),
    ),
    "receipt-of-another-deployment": Defect(
        "receipt", "fleet/statements.py", (("        or owner != deployment\n", ""),)
    ),
    "header-twice": Defect(
        "ticket", "fleet/uploads/words.py", (("if name.lower() in said:", "if False:"),)
    ),
    "results-nested": Defect(
        "results", "fleet/http/results.py", (("except (ValueError, RecursionError):\n"
        "        raise MalformedResults(\"this is not JSON\")",
        "except ValueError:\n        raise MalformedResults(\"this is not JSON\")"),),
    ),
    "unsigned-units": Defect(
        "server", "fleet/server/intake.py", (("if not unit.verify(known.key):", "if False:"),)
    ),
    "bundle-in-a-relay": Defect(
        "relay", "fleet/relay/app.py",
        (("    except ValueError as error:\n"
          "        raise Problem(\"malformed\", str(error)) from None\n    return [body]",
          "    except KeyError:\n        raise\n    return [body]"),),
    ),
}  # fmt: skip


def build(name):
    """A copy of the product with that defect."""
    defect, copy = DEFECTS[name], BUILD / name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / "upseal" / defect.file
    text = path.read_text()
    for before, after in defect.changes:
        if text.count(before) != 1:
            raise SystemExit(f"{name}: {defect.file} has {before!r} {text.count(before)} times")
        text = text.replace(before, after)
    path.write_text(text)
    return copy


def find(name, seconds):
    """Seconds until its target finds it, or None; and what it says."""
    copy, defect = build(name), DEFECTS[name]
    command = [sys.executable, str(Path(__file__).with_name("run.py")), defect.target, str(seconds)]
    environment = {
        **os.environ, "PYTHONPATH": str(copy), "UPFUZZ_BUILD": str(copy / "fuzz"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    begun = time.monotonic()
    with open(copy / "log", "wb") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env=environment, cwd=ROOT)
    took = time.monotonic() - begun
    found = list((copy / "fuzz" / "crashes").glob("*"))
    said = _SAID.search((copy / "log").read_text("utf-8", "replace"))
    return took if done.returncode and found else None, said[1][:90] if said else ""


def main(arguments):
    seconds = int(arguments.pop(0)) if arguments and arguments[0].isdecimal() else 60
    missed = []
    for name in arguments or DEFECTS:
        took, words = find(name, seconds)
        if took is None:
            missed.append(name)
        said = (
            f"NOT FOUND: {BUILD / name / 'log'}"
            if took is None
            else f"found in {took:.0f} s: {words}"
        )
        print(f"{name:30} {DEFECTS[name].target:14} {said}", flush=True)
        if took is not None:
            shutil.rmtree(BUILD / name)
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
