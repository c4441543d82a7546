# SPDX-License-Identifier: Apache-2.0
"""Manifests that a liar could show, and that nobody may believe."""

import dataclasses
import json

from fleet_support import DAY_MS, Authority

from upseal import PrivateKey
from upseal.fleet import jws
from upseal.fleet.encoding import b64url
from upseal.fleet.identity import SigningKey
from upseal.fleet.manifest import EncryptionKey, State


def manifests_of(world):
    """The newest manifest, all that lead to it, and the key that signs them."""
    key = SigningKey.from_pem((world.deployment / "signing.pem").read_bytes())
    tokens = [token for (token,) in world.query("SELECT jws FROM manifests ORDER BY serial")]
    with world.admin() as admin, admin.view() as view:
        return view.manifest, tokens, key


def attacks(world, liar):
    """Manifests that must change nothing: (what, text)."""
    newest, tokens, key = manifests_of(world)
    own = PrivateKey.generate("x25519").public_key
    mine = Authority.make("liar")
    swapped = (EncryptionKey(mine.certify(own), None, newest.generation),)
    following = newest.serial + 1

    def signed(by, **changes):
        manifest = dataclasses.replace(newest, **{"serial": following, **changes})
        return jws.sign(manifest.claims(), by, jws.MANIFEST, include_key=True)

    stripped = {"state": State.DISABLED, "encryption": (), "pending": ()}
    head, claims, _ = signed(liar.key, **stripped).split(".")
    with world.admin() as admin:
        late = admin.authority().certify(own, "late", newest.issued, 1)
    yield "stripped", signed(liar.key, **stripped)
    none = b64url(json.dumps({"alg": "none", "typ": jws.MANIFEST}).encode())
    yield "not signed", f"{none}.{claims}."
    yield "its signature of another", f"{head}.{claims}.{tokens[-1].split('.')[2]}"
    yield "swapped", signed(liar.key, encryption=swapped, authorities=(mine.certificate,))
    yield "swapped key, true signature", signed(key, encryption=swapped)
    yield "an expired certificate", signed(
        key, encryption=(EncryptionKey(late, None, newest.generation),),
        issued=newest.issued + 2 * DAY_MS, expires=newest.issued + 30 * DAY_MS,
    )  # fmt: skip
    switched = {"signing_keys": (liar.key.public,)}
    yield "a signing key of its own", signed(liar.key, **switched)
    both = (*newest.signing_keys, liar.key.public)
    yield "one beside ours", signed(liar.key, signing_keys=both, **stripped)
    yield "rolled back", tokens[0]
    yield "all of the past", "\n".join(tokens[:-1])
    yield "the same serial", signed(key, serial=newest.serial, **stripped)
