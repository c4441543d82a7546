# SPDX-License-Identifier: Apache-2.0
"""Reports in an established session: one, many, batches of lists and of packed buffers."""

import os

import pytest
import subjects


def group(verb, size):
    return f"{verb} reports of {size} B"


def test_seal(rows, subject, size):
    report = os.urandom(size)
    rows(group("seal", size), 1, size=size)(subject.sealer.seal, report)


def test_open(rows, subject, size):
    sealed = subject.sealer.seal(os.urandom(size))
    rows(group("open", size), 1, size=size)(subject.opener.open, sealed)


def test_seal_many(rows, subject, size, count):
    items = subjects.reports(size, count)
    rows(group("seal", size), count, size=size)(subject.sealer.seal_many, items)


def test_open_many(rows, subject, size, count):
    sealed = subject.sealer.seal_many(subjects.reports(size, count))
    rows(group("open", size), count, size=size)(subject.opener.open_many, sealed)


def test_list_to_batch(rows, subject, size, count):
    items = subjects.reports(size, count)
    rows(group("seal", size), count, size=size)(subject.sealer.seal_batch, items)


def test_batch_to_list(rows, subject, size, count):
    items = subjects.reports(size, count)
    sealed = subject.sealer.seal_batch(items)

    def opened():
        return list(subject.opener.open_batch(sealed))

    assert rows(group("open", size), count, size=size)(opened) == items


def test_seal_packed(rows, subject, size, count):
    values, offsets = subjects.packed(size, count)
    rows(group("seal", size), count, size=size)(subject.sealer.seal_packed, values, offsets)


def test_open_packed(rows, subject, size, count):
    values, offsets = subjects.packed(size, count)
    sealed = subject.sealer.seal_packed(values, offsets)
    opened, _ = rows(group("open", size), count, size=size)(subject.opener.open_packed, sealed)
    assert opened == values


@pytest.mark.parametrize("verb", ["seal", "open"])
def test_bare_c_key_given(rows, native, cipher, size, count, verb):
    """The ceiling: one direct call, nothing allocated."""
    from bare import Bare

    bare = Bare(native, 1 + subjects.CIPHERS.index(cipher))
    call = (bare.seal_batch if verb == "seal" else bare.open_batch)(size, count)
    assert rows(group(verb, size), count, size=size)(call) == 0
