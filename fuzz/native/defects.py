# SPDX-License-Identifier: Apache-2.0
"""Shows that the fuzz targets can fail: ``defects.py [DEFECT ...]``.

Each defect takes something away in a copy of native/ and must be found within a minute by the
target it is given to, which begins with the seeds and nothing else.  Exit code 1 if one is not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from typing import NamedTuple

from programs import OUT, ROOT, TARGETS, build, clang, command, ippcp
from run import last_number

SECONDS = 60


class Defect(NamedTuple):
    """In ``file``, ``old`` becomes ``new``; ``target`` is to find it."""

    target: str
    file: str
    old: str
    new: str


DEFECTS = {
    "padding of any length": Defect(
        "batch",
        "records.c",
        "if (len == 0 || upseal_padded_len(len - 1) != len) return 0;",
        "if (len == 0) return 0;",
    ),
    "any marker": Defect(
        "envelopes",
        "records.c",
        "wrong |= marker & (byte ^ 0x80);",
        "wrong |= marker & 0;",
    ),
    "no marker": Defect(
        "padding",
        "records.c",
        "*bad = ~seen | (0",
        "*bad = (~seen & 0) | (0",
    ),
    "padding looked at too far": Defect(
        "padding",
        "records.c",
        "end = len - padme_step(len - 1); i-- > end;",
        "end = len - padme_step(len - 1) - 1; i-- > end;",
    ),
    "steps of padding": Defect(
        "padding",
        "records.c",
        "(exponent - bit_length(exponent));",
        "(exponent - bit_length(exponent - 1));",
    ),
    "room for an envelope": Defect(
        "envelopes",
        "records.c",
        "            if (out_len - (size_t)out_offsets[i] < len - front - UPSEAL_TAG_LEN)",
        "            if (0)",
    ),
    "room for a batch": Defect(
        "batch",
        "records.c",
        "if (out_len < (uint64_t)(offsets[count]",
        "if (out_len + 8 < (uint64_t)(offsets[count]",
    ),
    "offsets that fall": Defect(
        "batch",
        "records.c",
        "        if (offsets[i + 1] < offsets[i]) return 0;\n",
        "        ;\n",
    ),
    "offsets that leave": Defect(
        "envelopes",
        "records.c",
        "return (uint64_t)(offsets[count] - offsets[0]) <= values_len;",
        "return values_len + 1 > 0;",
    ),
    "length of what is sealed": Defect(
        "envelope",
        "records.c",
        "if (out_len != sealed_len + (uint64_t)front * count) goto fail;",
        "if (out_len > sealed_len + (uint64_t)front * count) goto fail;",
    ),
    "batch not cleared": Defect(
        "batch",
        "records.c",
        "fail:\n"
        "    if (out && out_len) upseal_wipe(out, out_len);\n"
        "    if (out_offsets) memset(out_offsets, 0, (count + 1) * sizeof *out_offsets);\n"
        "done:",
        "fail:\n"
        "    if (out_offsets) memset(out_offsets, 0, (count + 1) * sizeof *out_offsets);\n"
        "done:",
    ),
    "forgery not cleared": Defect(
        "envelopes",
        "aead_openssl.c",
        "    if (status != UPSEAL_OK) OPENSSL_cleanse(out, len);\n",
        "",
    ),
    "subkey kept too long": Defect(
        "envelopes",
        "records.c",
        "subkey_of, use.aead->salt_len) != 0",
        "subkey_of, 8) != 0",
    ),
    "index added": Defect(
        "batch",
        "records.c",
        "upseal_read_u32(nonce + 20) ^ index",
        "upseal_read_u32(nonce + 20) + index",
    ),
    "index from 0": Defect(
        "batch",
        "records.c",
        "upseal_write_u32(aad + 1, first + (uint32_t)i);",
        "upseal_write_u32(aad + 1, (uint32_t)i);",
    ),
    "places past the end": Defect(
        "batch",
        "records.c",
        "first <= UPSEAL_RECORDS_MAX - count;",
        "first <= UPSEAL_RECORDS_MAX;",
    ),
    "table too short": Defect(
        "padding",
        "records.c",
        "UPSEAL_TAG_LEN + (padded ? 1u : 0u)",
        "UPSEAL_TAG_LEN + (padded & 0u)",
    ),
    "long associated data": Defect(
        "envelope",
        "aead.h",
        "aad_len > 0x7fffffff || ",
        "(aad_len & 0) || ",
    ),
    "part of the tag": Defect(
        "envelope",
        "aead_ippcp.c",
        "upseal_equal(tag, in + len, UPSEAL_TAG_LEN)",
        "upseal_equal(tag, in + len, UPSEAL_TAG_LEN - 1)",
    ),
    "chunks past 2^32": Defect(
        "chunks",
        "chunks.c",
        "i < 8; i++) iv[11 - i]",
        "i < 4; i++) iv[11 - i]",
    ),
    "chunks past the limit": Defect(
        "chunks",
        "chunks.c",
        "first <= UPSEAL_CHUNKS_MAX - count;",
        "first <= UPSEAL_CHUNKS_MAX;",
    ),
    "short last chunk": Defect(
        "chunks",
        "chunks.c",
        "(last && rest < UPSEAL_TAG_LEN) || ",
        "",
    ),
    "room for chunks": Defect(
        "chunks",
        "chunks.c",
        "if (out_len < in_len - UPSEAL_TAG_LEN * (whole + (last ? 1 : 0)))",
        "if (0)",
    ),
    "chunks not taken back": Defect(
        "chunks",
        "chunks.c",
        "    if (status != UPSEAL_OK && opened) upseal_wipe(out, opened);\n",
        "",
    ),
    "length of a key": Defect(
        "keys",
        "core.c",
        "material_len != UPSEAL_KEY_LEN && material_len != UPSEAL_KEY_LEN + UPSEAL_BASE_NONCE_LEN",
        "material_len < UPSEAL_KEY_LEN",
    ),
    "slot of another key": Defect(
        "arena",
        "arena.c",
        "while (taken >> bit & 1) bit++;",
        "while (bit < 20 && taken >> bit & 1) bit++;",
    ),
    "key of no session": Defect(
        "arena",
        "derive.c",
        "session->has_others && ",
        "",
    ),
    "key of the call before": Defect(
        "sequence",
        "aead_openssl.c",
        "    openssl_state *s = opaque;\n    return EVP_EncryptInit_ex2(s->sealing",
        "    openssl_state *s = opaque;\n"
        "    const uintptr_t part = 256u | (key[0] & 0xf0);\n"
        "    if ((uintptr_t)EVP_CIPHER_CTX_get_app_data(s->sealing) == part) return UPSEAL_OK;\n"
        "    EVP_CIPHER_CTX_set_app_data(s->sealing, (void *)part);\n"
        "    return EVP_EncryptInit_ex2(s->sealing",
    ),
}


def seconds_to_find(cc: str, defect: Defect) -> tuple[float, int] | None:
    """How long it took, and how many executions; None if it was not found."""
    place = OUT / "defects"
    for old in ("native", "corpus", "crashes"):
        shutil.rmtree(place / old, ignore_errors=True)
    shutil.copytree(ROOT / "native", place / "native")
    source = place / "native" / defect.file
    text = source.read_text()
    assert defect.old in text, f"{defect.file} no longer says {defect.old!r}"
    source.write_text(text.replace(defect.old, defect.new))
    build(cc, [defect.target], coverage=False, native=place / "native", out=place)
    target = TARGETS[defect.target]
    line = command(target, place / target.name, place / "corpus", place / "crashes", seed=1)
    start = time.monotonic()
    done = subprocess.run(  # noqa: S603
        [*line, f"-max_total_time={SECONDS}"],
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ,
        check=False,
        timeout=SECONDS + 120,
    )
    took = time.monotonic() - start
    (place / "log").write_text(done.stderr)
    found = done.returncode != 0 and list((place / "crashes").iterdir())
    count = last_number(done.stderr, r"stat::number_of_executed_units: (\d+)")
    return (took, count) if found else None


def main(names: list[str]) -> int:
    """Tries each; prints what found it."""
    cc = clang()
    if cc is None:
        print("left out: no clang with libFuzzer, or no OpenSSL headers, is here")
        return 0
    missed = 0
    for name, defect in DEFECTS.items():
        if names and name not in names:
            continue
        if defect.file == "aead_ippcp.c" and ippcp() is None:
            print(f"{name:28}{defect.target:12}left out: that backend is not here")
            continue
        found = seconds_to_find(cc, defect)
        missed += found is None
        result = "NOT FOUND" if found is None else f"{found[0]:6.1f} s{found[1]:10} executions"
        print(f"{name:28}{defect.target:12}{result}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
