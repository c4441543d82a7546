# SPDX-License-Identifier: Apache-2.0
"""Arrow columns: every type, nulls, forgeries in mixtures of sessions, and no Python objects."""

import concurrent.futures
import gc
import pickle
import random
import subprocess
import sys
import tracemalloc

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import support
from hypothesis import given, settings
from hypothesis import strategies as st

from upseal import Limits, Opener, OpenError, Padding, Sealer, UnknownRecipient
from upseal.integrations import arrow
from upseal.integrations.arrow import (
    RowsError,
    layout,
    open_array,
    open_batches,
    open_column,
    seal_array,
    seal_batches,
    seal_column,
)

REPORTS = [b"one", None, b"two", b"six", None, b"ten", b"end", b"odd"]
KINDS = {
    "binary": (pa.binary(), pa.binary()),
    "string": (pa.string(), pa.binary()),
    "large_binary": (pa.large_binary(), pa.large_binary()),
    "large_string": (pa.large_string(), pa.large_binary()),
    "binary_view": (pa.binary_view(), pa.large_binary()),
    "string_view": (pa.string_view(), pa.large_binary()),
    "fixed_size": (pa.binary(3), pa.binary()),
}


def opened_one_by_one(opener, column, context=b""):
    """What must come out: each row on its own."""
    reports, bad = [], []
    for row, envelope in enumerate(column.to_pylist()):
        try:
            reports.append(None if envelope is None else opener.open(envelope, context))
        except OpenError:
            reports.append(None)
            bad.append(row)
    return reports, bad


@pytest.mark.parametrize(("kind", "result"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("cut", [slice(None), slice(1, 7), slice(2, 4), slice(3, 3)], ids=str)
def test_every_type_and_slice_comes_back_with_its_nulls(sealer, opener, kind, result, cut):
    array = pa.array(REPORTS, pa.binary()).cast(kind)[cut]
    sealed = seal_array(sealer, array, b"c")
    sealed.validate(full=True)
    assert sealed.type == result
    assert sealed.null_count == array.null_count
    assert opened_one_by_one(opener, sealed, b"c") == (REPORTS[cut], [])
    opened = open_array(opener, sealed, b"c")
    opened.validate(full=True)
    assert (opened.type, opened.to_pylist()) == (result, REPORTS[cut])
    # What is sealed may come in any type of bytes, and from a slice.
    whole = pa.concat_arrays([sealed.slice(0, 0), pa.array([b"x"], result), sealed])
    again = open_array(opener, whole.cast(pa.large_binary())[1:], b"c")
    assert again.to_pylist() == REPORTS[cut]


def test_dictionaries_extensions_and_columns_of_nulls_are_taken(sealer, opener):
    words = pa.array(["up", "down", None, "up"])
    for column in (words.dictionary_encode(), pa.array(["1", "{}", None, "[2]"], pa.json_())):
        opened = open_array(opener, seal_array(sealer, column))
        assert opened.cast(pa.string()).to_pylist() == column.cast(pa.string()).to_pylist()
    sealed = seal_array(sealer, words.dictionary_encode()).to_pylist()
    assert sealed[0] != sealed[3]  # equal reports do not show
    for nothing in (pa.nulls(3), pa.nulls(3, pa.binary()), pa.array([], pa.string())):
        assert open_array(opener, seal_array(sealer, nothing)).to_pylist() == nothing.to_pylist()


def test_what_lies_under_a_null_is_neither_sealed_nor_opened(sealer, opener):
    offsets = pa.array([0, 3, 9, 12], pa.int32()).buffers()[1]
    valid = pa.array([True, False, True]).buffers()[1]
    array = pa.Array.from_buffers(pa.binary(), 3, [valid, offsets, pa.py_buffer(b"onehiddentwo")])
    sealed = seal_array(sealer, array)
    whole = [len(e.as_py()) for e in sealed if e.is_valid]
    assert len(whole) == 2
    assert sealed.buffers()[2].size == sum(whole)  # no envelope of a null
    offsets = pa.array([0, 5, 5 + whole[0]], pa.int32()).buffers()[1]
    junk = pa.py_buffer(b"trash" + sealed[0].as_py())
    valid = pa.array([False, True]).buffers()[1]
    array = pa.Array.from_buffers(pa.binary(), 2, [valid, offsets, junk])
    assert open_array(opener, array).to_pylist() == [None, b"one"]


def test_a_null_counts_as_no_message_of_the_session(key):
    sealer = Sealer([key.public_key], Limits(max_messages=4))
    column = pa.array([b"a", None, None, None, b"b"])
    made = [seal_array(sealer, column)[row].as_py() for row in (0, 4)]
    assert made[0][:100] == made[1][:100]  # one session had room for both calls


def test_padded_reports_come_back(engine, key, opener):
    sealer = Sealer([key.public_key], padding=Padding.PADME, engine=engine)
    column = pa.array([b"x" * n for n in range(0, 700, 7)])
    assert open_array(opener, seal_array(sealer, column)).equals(column)


# -- without a Python object per row ------------------------------------------------


def bytes_and_objects(work):
    """Of Python's memory: the most in use while it works, in bytes, and objects that stay."""
    gc.collect()
    tracemalloc.start()
    try:
        kept = sys.getallocatedblocks()
        result = work()
        kept = sys.getallocatedblocks() - kept
        return tracemalloc.get_traced_memory()[1], kept, result
    finally:
        tracemalloc.stop()


def test_a_hundred_thousand_rows_make_no_objects(key):
    rows = 100_000
    sealer, opener = Sealer([key.public_key]), Opener([key])
    offsets = pa.array(range(0, 16 * rows + 1, 16), pa.int64()).buffers()[1]
    values = pa.py_buffer(bytes(16 * rows))
    column = pa.Array.from_buffers(pa.large_binary(), rows, [None, offsets, values])
    some = pc.if_else(pc.equal(pc.bit_wise_and(pa.arange(0, rows), 7), 0), None, column)
    sealers = [Sealer([key.public_key]) for _ in range(50)]
    mixed = pa.concat_arrays([seal_array(one, column[: rows // 50]) for one in sealers])
    mixed = mixed.take(pa.array(random.Random(1).sample(range(rows), rows)))
    sealed = seal_array(sealer, column)
    open_array(opener, sealed)  # imports, and first contact
    forged = pa.concat_arrays([sealed.slice(1), pa.array([b"forged"], pa.large_binary())])
    size = sealed.buffers()[2].size
    # An object is at least 28 bytes, and 8 for what refers to it.
    for work, values in (
        (lambda: seal_array(sealer, column), size),
        (lambda: seal_array(sealer, some), size),
        (lambda: open_array(opener, sealed), size),
        (lambda: open_array(opener, seal_array(sealer, some)), 2 * size),
        (lambda: open_array(opener, mixed), size),
        (lambda: open_array(opener, forged, errors="null"), size),
    ):
        most, kept, result = bytes_and_objects(work)
        assert len(result) == rows
        assert most - values < 32 * rows, (most - values) / rows
        assert kept < 1000
    # The meter sees objects where there are some.
    most, kept, _ = bytes_and_objects(lambda: opener.open_many(sealed.to_pylist()))
    assert most - size > 32 * rows
    assert kept > rows // 2


# -- mixtures and forgeries ---------------------------------------------------------


@pytest.fixture(scope="module")
def strangers():
    """Sealers to a key of ours; the last two to others as well, or to others alone."""
    ours, other = support.key("x25519-a"), support.key("p256-a")
    return [
        *(Sealer([ours.public_key]) for _ in range(4)),
        Sealer([ours.public_key], padding=Padding.PADME),
        Sealer([other.public_key, ours.public_key]),
        Sealer([other.public_key]),
    ]


def damaged(envelope, how, at):
    if how == "flip":
        at %= len(envelope)
        return envelope[:at] + bytes([envelope[at] ^ 1]) + envelope[at + 1 :]
    return {"cut": envelope[: at % len(envelope)], "junk": bytes([at % 256]) * (at % 99)}[how]


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 6),
            st.binary(max_size=30),
            st.sampled_from(["", "", "", "", "null", "flip", "cut", "junk"]),
            st.integers(0, 1000),
        ),
        max_size=40,
    ),
    st.integers(0, 40),
)
def test_whatever_stands_among_them_each_row_is_as_on_its_own(strangers, rows, cut):
    opener = Opener([support.key("x25519-a")])
    column = []
    for who, report, how, at in rows:
        envelope = strangers[who].seal(report)
        column.append(None if how == "null" else damaged(envelope, how, at) if how else envelope)
    array = pa.array(column, pa.binary())
    reports, bad = opened_one_by_one(opener, array)
    for one in (array, pa.chunked_array([array[:cut], array[cut:]], pa.binary())):
        opened = open_array(opener, one, errors="null")
        opened.validate(full=True)
        assert opened.to_pylist() == reports
        if bad:
            with pytest.raises(RowsError) as caught:
                open_array(opener, one)
            assert (caught.value.rows.to_pylist(), caught.value.total) == (bad, len(rows))
        else:
            assert open_array(opener, one).to_pylist() == reports


@pytest.mark.parametrize("place", [0, 1, 500, 998, 999])
def test_one_forged_row_costs_no_other_its_place(sealer, opener, place):
    reports = [b"%d" % i for i in range(1000)]
    rows = sealer.seal_many(reports)
    rows[place] = rows[place][:-1] + bytes([rows[place][-1] ^ 1])
    opened = open_array(opener, pa.array(rows), errors="null").to_pylist()
    assert opened == [*reports[:place], None, *reports[place + 1 :]]
    with pytest.raises(RowsError, match=f"1 of 1000 rows did not open; row {place} cannot") as one:
        open_array(opener, pa.array(rows))
    assert one.value.rows.to_pylist() == [place]


def test_rows_made_to_need_round_after_round_are_opened_all_the_same(key):
    # Each begins like a session's envelope and ends early: none says anything of the next.
    sealer, opener = Sealer([key.public_key]), Opener([key])
    good = [sealer.seal(b"%d" % i) for i in range(20)]
    rows = [one[:140] for one in good] + [one[:30] for one in good] + good
    rows += [b"USL\1\1\x10" + one for one in good]
    opened = open_array(opener, pa.array(rows), errors="null").to_pylist()
    assert opened == [None] * 40 + [b"%d" % i for i in range(20)] + [None] * 20
    assert opener.sessions.opened == 1  # what is cut off costs no public-key operation


def test_what_is_sealed_to_others_or_for_another_context_says_so_much(sealer, opener):
    other = Sealer([support.key("p256-a").public_key])
    column = seal_array(other, pa.array([b"a", b"b"]))
    with pytest.raises(RowsError, match=r"2 of 2 .*none of the keys at hand") as caught:
        open_array(opener, column)
    assert isinstance(caught.value.first, UnknownRecipient)
    assert caught.value.__cause__ is caught.value.first
    with pytest.raises(RowsError, match="another context"):
        open_array(opener, seal_array(sealer, pa.array([b"a"]), b"1"), b"2")


def test_the_report_of_rows_crosses_processes(opener):
    with pytest.raises(RowsError) as caught:
        open_array(opener, pa.array([None, b"junk"]))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.rows.to_pylist(), copy.total) == (str(caught.value), [1], 2)
    assert type(copy.first) is type(caught.value.first)
    assert str(RowsError("made anew")) == "made anew"  # as Polars does


# -- chunks, threads, limits ----------------------------------------------------------


def test_chunks_stay_chunks_and_an_array_one_whatever_the_threads(key, monkeypatch):
    monkeypatch.setattr(layout, "_SHARE", 1)  # so that little is worth a thread
    sealer, opener = Sealer([key.public_key]), Opener([key])
    whole = pa.array([None if i % 5 == 0 else b"%d" % i for i in range(1000)], pa.large_binary())
    chunks = pa.chunked_array([whole[:10], whole[10:10], whole[10:700], whole[700:]])
    for threads in (None, 1, 3):
        sealed = seal_array(sealer, chunks, threads=threads)
        assert [len(chunk) for chunk in sealed.chunks] == [10, 0, 690, 300]
        assert open_array(opener, sealed, threads=threads).equals(chunks)
        assert open_array(opener, seal_array(sealer, whole, threads=threads)).equals(whole)
        rows = sealed.to_pylist()
        rows[701], rows[3] = b"", b"x"
        with pytest.raises(RowsError) as caught:
            open_array(opener, pa.chunked_array([rows[:10], rows[10:]]), threads=threads)
        assert caught.value.rows.to_pylist() == [3, 701]


def test_threads_may_share_a_sealer_and_an_opener(key):
    sealer, opener = Sealer([key.public_key], Limits(max_messages=1000)), Opener([key], cache=3)
    column = pa.array([b"%d" % i for i in range(400)])

    def work(_):
        sealed = seal_array(sealer, column)
        assert open_array(opener, sealed).equals(column)
        return sealed.to_pylist()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = [row for rows in pool.map(work, range(40)) for row in rows]
    head = len(made[0]) - 24 - 16 - 1
    assert len({row[: head + 24] for row in made}) == len(made)  # no session and nonce twice


def test_more_than_a_call_can_seal_is_sealed_in_parts(key, opener, monkeypatch):
    monkeypatch.setattr(arrow, "BATCH_MAX", 100)
    column = pa.array([None, *(b"%d" % i for i in range(450)), None])
    for one, calls in ((column, 5), (pa.chunked_array([column, column]), 10)):
        sealed = seal_array(Sealer([key.public_key]), one)
        assert open_array(opener, sealed).equals(one)
        # All but the end of a nonce is drawn afresh for each call of the core.
        head = len(sealed[1].as_py()) - len(one[1].as_py()) - 24 - 16
        rows = sealed.drop_null().to_pylist()
        assert len({row[head : head + 20] for row in rows}) == calls


@pytest.mark.slow
def test_more_than_a_million_rows(key):
    rows = 2**20 + 1
    column = pa.nulls(rows, pa.large_binary()).fill_null(b"")
    sealed = seal_array(Sealer([key.public_key]), column)
    assert open_array(Opener([key]), sealed).equals(column)


def test_envelopes_too_long_for_32_bit_offsets_are_refused_and_not_cut(key, monkeypatch):
    monkeypatch.setattr(layout, "_SMALL_MAX", 1000)
    sealer = Sealer([key.public_key])
    column = pa.array([b"x" * 100] * 9)
    with pytest.raises(ValueError, match="cast the column to large_binary"):
        seal_array(sealer, column)
    assert seal_array(sealer, column.cast(pa.large_binary())).type == pa.large_binary()
    chunks = pa.chunked_array([column[i : i + 1] for i in range(9)])
    assert seal_array(sealer, chunks).type == pa.binary()


def test_mistakes_are_named(sealer, opener, key):
    for work in (lambda a: seal_array(sealer, a), lambda a: open_array(opener, a)):
        with pytest.raises(TypeError, match="binary or string is sealed and opened, not of int64"):
            work(pa.array([1]))
        with pytest.raises(TypeError, match="expected an Arrow array, not list"):
            work([b"x"])
    column = pa.array([b"x"])
    with pytest.raises(ValueError, match="'raise' or 'null', not 'ignore'"):
        open_array(opener, column, errors="ignore")
    with pytest.raises(ValueError, match="threads is 1 or more, not 0"):
        seal_array(sealer, column, threads=0)
    with pytest.raises(TypeError, match="context must be bytes"):
        seal_array(sealer, column, "text")
    long = pa.array([b"", bytes(2**24 + 1)])
    with pytest.raises(ValueError, match="16777217 bytes long, and at most 16 MiB"):
        seal_array(Sealer([key.public_key]), long)


# -- tables, batches, files -----------------------------------------------------------


@pytest.mark.parametrize("make", [pa.table, pa.record_batch])
def test_a_column_of_a_table_is_sealed_where_it_stands(sealer, opener, make):
    field = pa.field("report", pa.string(), nullable=False, metadata={"unit": "none"})
    schema = pa.schema([("id", pa.int64()), field, ("at", pa.int64())], metadata={"k": "v"})
    table = make({"id": [1, 2], "report": ["a", "b"], "at": [3, 4]}, schema=schema)
    sealed = seal_column(sealer, table, "report", b"c")
    assert type(sealed) is type(table)
    assert sealed.schema.equals(schema.set(1, field.with_type(pa.binary())), check_metadata=True)
    opened = open_column(opener, sealed, "report", b"c")
    assert opened.column("report").to_pylist() == [b"a", b"b"]
    forged = sealed.set_column(1, sealed.schema.field(1), pa.array([b"x", b"y"]))
    with pytest.raises(RowsError):
        open_column(opener, forged, "report", b"c")
    nulls = open_column(opener, forged, "report", b"c", errors="null")
    assert nulls.schema.field("report").nullable
    with pytest.raises(KeyError, match="0 columns are called 'none'"):
        seal_column(sealer, table, "none")


def test_batches_hold_many_rows_each_and_open_whole_or_not_at_all(sealer, opener):
    column = pa.array([b"%d" % i for i in range(250)])
    for one in (column, pa.chunked_array([column[:99], column[99:]])):
        blobs = seal_batches(sealer, one, b"c", rows=100)
        assert len(blobs) == 3
        opened = open_batches(opener, blobs, b"c")
        assert [len(chunk) for chunk in opened.chunks] == [100, 100, 50]
        assert opened.to_pylist() == column.to_pylist()
    rows = blobs.to_pylist()
    rows[1] = rows[1][:-1] + b"\0"
    with pytest.raises(RowsError, match="row 1 cannot be opened") as caught:
        open_batches(opener, pa.array(rows), b"c")
    assert caught.value.rows.to_pylist() == [1]
    with pytest.raises(RowsError):
        open_batches(opener, pa.array([rows[0], None]), b"c")
    with pytest.raises(ValueError, match="no nulls, and here are 1"):
        seal_batches(sealer, pa.array([b"a", None]))
    with pytest.raises(ValueError, match="rows is 1 to"):
        seal_batches(sealer, column, rows=0)
    with pytest.raises(TypeError):
        seal_batches(sealer, pa.array([1]))
    assert len(open_batches(opener, seal_batches(sealer, column[:0]))) == 0


def test_a_parquet_file_holds_the_column_sealed_and_no_plaintext(sealer, opener, tmp_path):
    reports = [None if i % 9 == 0 else f"the disk of host {i} is full" for i in range(900)]
    table = pa.table({"id": range(900), "report": reports})
    path = tmp_path / "sealed.parquet"
    pq.write_table(seal_column(sealer, table, "report"), path, row_group_size=200)
    assert b"disk" not in path.read_bytes()
    with pq.ParquetFile(path) as file:
        got = [open_column(opener, batch, "report") for batch in file.iter_batches(200)]
    texts = [text for batch in got for text in batch.column("report").cast(pa.string()).to_pylist()]
    assert texts == reports


# -- the package ------------------------------------------------------------------------


def python(*arguments, **more):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **more)


@pytest.mark.parametrize("name", ["arrow", "duckdb", "polars"])
def test_a_missing_package_says_what_to_install(name):
    package = {"arrow": "pyarrow"}.get(name, name)
    code = f"import sys; sys.modules[{package!r}] = None; import upseal.integrations.{name}"
    done = python("-c", code)
    assert "ImportError: " in done.stderr
    assert f"pip install 'upseal[{name}]'" in done.stderr


def test_the_core_imports_no_arrow():
    code = "import sys, upseal; upseal.Sealer; upseal.Opener; print('pyarrow' in sys.modules)"
    assert python("-c", code).stdout == "False\n"


def test_the_example_runs(tmp_path):
    done = python(support.ROOT / "examples/arrow/columns.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "row 3 cannot be opened" in done.stdout
