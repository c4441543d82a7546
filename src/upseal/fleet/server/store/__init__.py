# SPDX-License-Identifier: Apache-2.0
"""The deployment's database, a module for each subject. `Store` says how they are used.

activity      what units and beacons tell of their clients (the server writes it)
alarms        ``sound``, ``listing``, ``count``, ``acknowledge``
audit         ``append``, ``entries``, ``verify``: the hash chain of administrative acts
challenges    ``put``, ``find``, ``unanswered``, ``answer``, ``prune``: readiness
clients       ``add``, ``renew``, ``find``, ``by_hop``, ``named``, ``listing``, ``count``,
              ``missing``, ``with_gaps``, ``mark_revoked``
coverage      ``note``, ``samples``, ``before``, ``thin``: clients over time
deadletters   ``put``, ``listing``, ``ask``, ``settle``, ``drop``, ``usage``
deletions     ``put``, ``left``, ``removed``, ``due``, ``drop``, ``stored_bytes``: of uploads
keys          ``add``, ``set_state``, ``set_ready``, ``remove``, ``find``, ``listing``,
              ``drain``, ``prune_use``
logins        ``add``, ``remove``, ``find``, ``listing``: of the page
manifests     ``newest``, ``add``, ``chain``
relays        ``put``, ``find``, ``listing``, ``set_listed``, ``put_key``, ``find_key``, ``keys``,
              ``set_ready``, ``set_key_certificate``, ``drop_keys``
retention     ``due``, ``drop``: reports that were kept long enough
tokens        ``add``, ``look``, ``redeem``, ``listing``, ``revoke``
trails        ``of_report``, ``of_unit``: what is known of one unit
units         ``add``, ``read``, ``totals``
uploads       ``note``, ``candidates``, ``put``, ``find``, ``receipts``, ``read``, ``totals``

All take a connection of `Store.reading` or `Store.writing` first (``read`` takes the store).
"""

from __future__ import annotations

from upseal.fleet.server.store.base import Store, StoreError, get_meta, now_ms

__all__ = ["Store", "StoreError", "get_meta", "now_ms"]
