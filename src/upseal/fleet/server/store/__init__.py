# SPDX-License-Identifier: Apache-2.0
"""The deployment's database, a module for each subject. `Store` says how they are used.

activity      what units and beacons tell of their clients (the server writes it)
alarms        ``sound``, ``listing``, ``count``
audit         ``append``, ``entries``, ``verify``: the hash chain of administrative acts
challenges    ``put``, ``find``, ``unanswered``, ``answer``, ``prune``: readiness
clients       ``add``, ``renew``, ``find``, ``by_hop``, ``named``, ``listing``, ``count``,
              ``mark_revoked``
deadletters   ``put``, ``listing``, ``ask``, ``settle``, ``drop``, ``usage``
keys          ``add``, ``set_state``, ``set_ready``, ``set_certificate``, ``remove``, ``find``,
              ``listing``, ``drain``, ``prune_use``
manifests     ``newest``, ``add``, ``chain``
relays        ``put``, ``find``, ``listing``, ``set_listed``, ``put_key``, ``find_key``, ``keys``,
              ``set_ready``, ``set_key_certificate``, ``drop_keys``
tokens        ``add``, ``redeem``, ``listing``, ``revoke``
units         ``add``, ``read``, ``totals``

All take a connection of `Store.reading` or `Store.writing` first (`units.read` takes the store).
"""

from __future__ import annotations

from upseal.fleet.server.store.base import Store, StoreError, get_meta, now_ms

__all__ = ["Store", "StoreError", "get_meta", "now_ms"]
