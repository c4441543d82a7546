# SPDX-License-Identifier: Apache-2.0
"""Sealed columns in a real Ray Data: opened and sealed in its workers, with no key in the job."""

import os
import runpy
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest
from support import ROOT
from workers_support import (
    COUNTING,
    descendants,
    files_with,
    fleet_reports,
    forms,
    in_memory,
    key_file,
)

from upseal import Opener, PrivateKey

pytest.importorskip("ray", reason="`make analytics` installs it")

EXAMPLE = ROOT / "examples/ray/open_reports.py"


class Engine:
    """A Ray of its own, and the folder where all that it writes goes."""

    def __init__(self):
        # Not pytest's: names of Unix sockets are at most 107 bytes long.
        self.folder = Path(tempfile.mkdtemp(prefix="upseal-ray-"))
        self.key, self.keys = key_file(self.folder)
        self.other, _ = key_file(self.folder, "other.pem")
        modules = self.folder / "modules"
        modules.mkdir()
        (modules / "counting_keys.py").write_text(COUNTING)
        os.environ.update(
            COUNTED=str(self.folder / "counted"),
            COUNTED_KEY=str(self.folder / "server.pem"),
            RAY_TEST_KEY=self.other.to_pem().decode(),
            RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # to listen on 127.0.0.1 alone
            RAY_USAGE_STATS_ENABLED="0",
            RAY_AUTH_MODE="disabled",  # else it leaves a token in the home folder
            PYTHONPATH=str(modules),
        )
        import ray
        import ray.data

        for last in (
            False,
            False,
            True,
        ):  # Ray gives itself 30 seconds, and a busy machine needs more
            try:
                ray.init(
                    num_cpus=2,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    object_store_memory=200 * 2**20,
                    _temp_dir=str(self.folder / "t"),
                )
                break
            except Exception as error:
                if last or "timed out during startup" not in str(error):
                    raise
                ray.shutdown()
        with warnings.catch_warnings():
            # The first context sets options that Ray itself says are deprecated.
            warnings.filterwarnings("ignore", "`[a-z_0-9]+` is deprecated")
            ray.data.DataContext.get_current().enable_progress_bars = False

    def stop(self):
        import ray

        ray.shutdown()
        shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def engine():
    before = dict(os.environ)
    found = Engine()
    yield found
    found.stop()
    os.environ.clear()
    os.environ.update(before)


def dataset(reports, blocks=4, **columns):
    import pyarrow as pa
    import ray.data

    table = pa.table({"id": range(len(reports)), "report": reports, **columns})
    size = -(-len(reports) // blocks)
    return ray.data.from_arrow([table.slice(at, size) for at in range(0, len(reports), size)])


def opened(ds, name="report"):
    return {row["id"]: row[name] for row in ds.take_all()}


def actors(count):
    from ray.data import ActorPoolStrategy

    return ActorPoolStrategy(size=count)


def tasks():
    from ray.data import TaskPoolStrategy

    return TaskPoolStrategy()


def test_a_column_of_many_sessions_is_opened_by_actors_and_by_tasks(engine):
    from upseal.integrations.ray import open_column

    reports, sealed = fleet_reports(engine.key, 500, context=b"deployment 7")
    sealed[3] = reports[3] = None
    for compute in (None, tasks()):
        ds = open_column(
            dataset(sealed), "report", keys=engine.keys, context=b"deployment 7", compute=compute
        )
        assert opened(ds) == dict(enumerate(reports))


def test_all_other_columns_stay_as_they_are_and_the_class_can_be_used_as_it_is(engine):
    import pyarrow as pa

    from upseal.integrations.ray import OpenColumn, seal_column

    others = {
        "nested": [{"a": [1, None], "b": "ä"}, None, {"a": [], "b": ""}],
        "price": pa.array([1, None, 3], pa.decimal128(20, 4)),
        "at": pa.array([1, 2, None], pa.timestamp("us", "Europe/Berlin")),
    }
    clear = dataset([b"one", b"two", None], blocks=1, **others)
    sealed = seal_column(clear, "report", recipients=engine.key.public_key, compute=actors(1))
    given = {"column": "report", "keys": engine.keys, "into": "clear"}
    back = sealed.map_batches(
        OpenColumn, fn_constructor_kwargs=given, batch_format="pyarrow", compute=actors(1)
    ).materialize()
    (before,), (after,) = clear.to_arrow_refs(), back.to_arrow_refs()
    import ray

    before, after = ray.get(before), ray.get(after)
    assert after.drop_columns(["report", "clear"]).equals(before.drop_columns(["report"]))
    assert after.column_names == [*before.column_names, "clear"]
    assert after["clear"].to_pylist() == [b"one", b"two", None]
    assert Opener([engine.key]).open(after["report"][0].as_py()) == b"one"


def test_what_does_not_open_fails_the_job_or_becomes_null(engine):
    from ray.exceptions import RayError

    from upseal.integrations.ray import open_column

    reports, sealed = fleet_reports(engine.key, 100)
    sealed[40], reports[40] = b"garbage", None
    with pytest.raises(RayError, match="did not open") as caught:
        open_column(dataset(sealed), "report", keys=engine.keys, compute=tasks()).take_all()
    assert "secret report" not in str(caught.value)
    kept = open_column(
        dataset(sealed), "report", keys=engine.keys, errors="null", into="clear", compute=tasks()
    )
    assert opened(kept, "clear") == dict(enumerate(reports))
    assert opened(kept)[40] == b"garbage"


def test_sealed_at_rest_by_ray_and_read_by_anybody_with_the_key(engine, tmp_path):
    import pyarrow.parquet as pq
    import ray.data

    from upseal.integrations.arrow import open_array
    from upseal.integrations.ray import open_column, seal_column

    texts = [f"secret text {i}" for i in range(200)]
    folder = str(tmp_path / "sealed")
    recipients = [engine.key.public_key, PrivateKey.generate().public_key.to_pem()]
    sealed = seal_column(
        dataset(texts), "report", recipients=recipients, context=b"c", compute=tasks()
    )
    sealed.write_parquet(folder, compression="none")
    assert files_with(folder, [b"secret"]) == []
    assert files_with(folder, [b"report"])  # the column's name: so one can find things there
    table = pq.read_table(folder).sort_by("id")
    found = open_array(Opener([engine.key]), table["report"], b"c").to_pylist()
    assert found == [text.encode() for text in texts]
    read = ray.data.read_parquet(folder)
    back = open_column(read, "report", keys=engine.keys, context=b"c", compute=tasks())
    assert opened(back) == {i: text.encode() for i, text in enumerate(texts)}


def test_no_key_is_in_the_job_nor_in_what_ray_keeps(engine):
    from ray import cloudpickle

    from upseal.integrations.ray import open_column

    secrets, control = forms(engine.key), b"the context is found"
    key = [str(engine.folder / "server.pem")]
    reports, sealed = fleet_reports(engine.key, 300, context=control)
    ds = open_column(
        dataset(sealed), "report", keys=engine.keys, context=control, compute=actors(1)
    )
    job = cloudpickle.dumps(ds._logical_plan)
    reference = engine.keys.encode()
    assert control in job
    assert reference in job
    assert not any(secret in job for secret in secrets)
    assert opened(ds) == dict(enumerate(reports))
    # Logs and all else that Ray wrote: the key file alone has the key.
    assert any("logs" in name for name in files_with(engine.folder / "t", [b"MapBatches"]))
    assert files_with(engine.folder, secrets) == key
    # Nor is it in the memory of what keeps and hands out the job, and the object store with it.
    keepers = {}
    for pid, command in descendants(os.getpid()).items():
        name = command.split()[0].rpartition("/")[2] if command else ""
        if name in ("gcs_server", "raylet") and str(engine.folder) in command:
            keepers[name] = in_memory(pid, [b"OpenColumn", *secrets])
    assert keepers == {"gcs_server": {b"OpenColumn"}, "raylet": {b"OpenColumn"}}


def test_a_worker_process_reads_the_key_once_and_remembers_sessions(engine):
    from upseal.integrations.ray import open_column

    counted = Path(os.environ["COUNTED"])
    _, sealed = fleet_reports(engine.key, 400, sessions=5)
    ds = open_column(
        dataset(sealed, 8), "report", keys="counting_keys:key", compute=actors(1), batch_size=20
    )
    assert len(ds.take_all()) == 400  # count() would not open anything
    told = [line.split() for line in counted.read_text().splitlines()]
    assert len({pid for pid, _ in told}) == 1
    assert [what for _, what in told] == ["read"] + ["unwrap"] * 5


def test_a_key_of_the_workers_environment_and_none_in_settings(engine):
    from upseal.integrations.ray import open_column

    reports, sealed = fleet_reports(engine.other, 20)
    keys = [engine.keys, "env:RAY_TEST_KEY"]
    ds = open_column(dataset(sealed), "report", keys=keys, compute=tasks())
    assert opened(ds) == dict(enumerate(reports))
    asked = {"env_vars": {"RAY_TEST_KEY": "not a real one"}}
    with pytest.raises(ValueError, match=r"RAY_TEST_KEY in runtime_env"):
        open_column(dataset(sealed), "report", keys=keys, runtime_env=asked)


def test_a_key_that_a_worker_may_not_use_is_named_with_the_worker(engine):
    from ray.exceptions import RayError

    from upseal.integrations.ray import open_column

    _, reference = key_file(engine.folder, "open.pem")
    (engine.folder / "open.pem").chmod(0o644)
    ds = open_column(dataset([b"x"]), "report", keys=reference, compute=tasks())
    with pytest.raises(RayError, match=r"open\.pem cannot be used by the worker on .*chmod"):
        ds.take_all()
    (engine.folder / "open.pem").unlink()


def test_mistakes_are_said_before_there_is_a_job(engine):
    from upseal.integrations.ray import OpenColumn, open_column, seal_column

    ds = dataset([b"x"], blocks=1)
    for keys in (engine.key, engine.key.to_pem(), [engine.key.to_pem().decode()]):
        with pytest.raises(TypeError, match="give a reference"):
            open_column(ds, "report", keys=keys)
        with pytest.raises(TypeError, match="give a reference"):
            OpenColumn("report", keys)
    with pytest.raises(ValueError, match="0 columns are called 'missing'"):
        open_column(ds, "missing", keys=engine.keys)
    with pytest.raises(ValueError, match="there is a column 'id' already"):
        open_column(ds, "report", keys=engine.keys, into="id")
    with pytest.raises(ValueError, match="errors is"):
        open_column(ds, "report", keys=engine.keys, errors="ignore")
    with pytest.raises(TypeError, match="public_key"):
        seal_column(ds, "report", recipients=engine.key)
    with pytest.raises(ValueError, match="1 to 16 recipients"):
        seal_column(ds, "report", recipients=[])


def test_the_example_runs(engine, capsys):
    runpy.run_path(
        str(EXAMPLE), run_name="__main__"
    )  # in this Ray: another takes its time to start
    assert "machine 4: 2000 reports, fullest disk 96%" in capsys.readouterr().out
