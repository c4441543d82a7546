# SPDX-License-Identifier: Apache-2.0
"""A relay that lies about files stands below an honest one: it costs time, and nothing else."""

from contextlib import ExitStack

import pytest
from fleet_liar import liar_of
from fleet_nodes import forms
from fleet_upload_liar_support import FILE_LIES, FileLiar
from fleet_upload_world_support import (
    check_files,
    counters,
    files_extra,
    files_world,
    make_and_give,
    rows,
)
from fleet_world import eventually, seed_of

from upseal.fleet.http.serving import in_thread

SIZE = 600_000


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An agent directly below the liar, one that may send clear, and one with a relay between."""
    chance = seed_of("test_fleet_upload_liars")
    with (
        ExitStack() as stack,
        files_world(
            tmp_path_factory.mktemp("liars"), agents={}, passing=False, direct=False,
            extra=files_extra(),
        ) as made,
    ):  # fmt: skip
        made.liar = liar_of(made, stack, made.folder / "liar", chance, FileLiar)
        made.chance = chance
        address = stack.enter_context(in_thread(made.liar.app))
        between = made.add_relay("between", address.url, decrypting=False)
        for name, level, url in (
            ("must", "required", address.url), ("may", "optional", address.url),
            ("below", "required", between),
        ):  # fmt: skip
            made.add_agent(name, level, url)
        made.start_agents()
        made.report(5)
        made.check(wire=False)  # some true receipts, to forge others with
        yield made


def test_no_lie_about_a_file_ends_it(world):
    """All files stay with their agents (or with the honest relay) as long as it lies, whatever it
    says, and come once, as they were, when it does no more; what is sealed it never sees."""
    liar, lies = world.liar, list(FILE_LIES)
    world.chance.shuffle(lies)
    given = [make_and_give(world, m, SIZE, world.chance) for m in world.members.values()]
    for lie in lies:
        liar.begin(lie)
        eventually(lambda lie=lie: liar.told[lie] >= 12, f"lies: {dict(liar.told)}")
        for one in given:
            assert counters(one.member).waiting == 1
            assert one.upload not in rows(world, one.member)
        world.restart_agents()  # which need not wait after what failed
    print(lies, dict(liar.told))
    liar.begin(None)
    world.nodes["between"].restart()
    world.restart_agents()
    check_files(world, wire=False)
    assert not liar.knows(*forms(world.secret_file))
    assert not world.alarms() & {"arrived-clear", "contradiction", "cannot-open"}
