# SPDX-License-Identifier: Apache-2.0
"""Ingest beyond one server, by NATS JetStream: fronts take reports, any number of openers store.

::

    from upseal.fleet.server.settings import read_settings
    from upseal.integrations.nats import read_nats, run_front, run_opener

    settings = read_settings("/srv/upseal")
    broker = read_nats(settings.folder, settings.deployment)
    run_opener(settings, broker)            # what `upseal server open` does

``pip install 'upseal[nats]'``.
"""

try:
    import nats as _nats  # noqa: F401 - the rest of this package is of no use without it
except ModuleNotFoundError as error:
    if error.name != "nats":
        raise
    raise ImportError("this needs the package nats-py; pip install 'upseal[nats]'") from error

from upseal.integrations.nats.front import run as run_front
from upseal.integrations.nats.opener import run as run_opener
from upseal.integrations.nats.settings import Broker, NatsSettings, read_nats
from upseal.integrations.nats.streams import Unfit

__all__ = ["Broker", "NatsSettings", "Unfit", "read_nats", "run_front", "run_opener"]
