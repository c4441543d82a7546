# SPDX-License-Identifier: Apache-2.0
"""What all tests share: engines, keys, and how long hypothesis may look."""

import os

import pytest
import support
from hypothesis import HealthCheck, settings

_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile("dev", max_examples=25, deadline=None, suppress_health_check=_QUIET)
settings.register_profile(
    "ci", max_examples=150, deadline=None, print_blob=True, suppress_health_check=_QUIET
)
settings.register_profile("long", max_examples=5000, deadline=None, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_collection_modifyitems(config, items):
    """Leaves slow tests out, and says so, unless the command line chooses by marker."""
    if any(str(arg).startswith("-m") for arg in config.invocation_params.args):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: ask for it by -m slow or -m ''"))


@pytest.fixture(params=support.ENGINES, scope="session")
def engine(request):
    """Each engine and backend in turn; what cannot run here is skipped, visibly."""
    return support.engine(request.param)


@pytest.fixture(params=["aes-256-gcm", "chacha20-poly1305"], scope="session")
def cipher(request):
    return request.param


@pytest.fixture(scope="session")
def key():
    """An X25519 key, where it does not matter which."""
    return support.key("x25519-a")


@pytest.fixture
def sealer(engine, key):
    return support.Sealer([key.public_key], engine=engine)


@pytest.fixture
def opener(engine, key):
    return support.Opener([key], engine=engine)
