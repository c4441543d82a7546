# SPDX-License-Identifier: Apache-2.0
"""Splits a key among five people; any three of them recover it."""

from upseal import Opener, PrivateKey, Sealer
from upseal.integrations.escrow import BadShares, escrow, recover


def main() -> None:
    """Makes a safe and its shares, loses the key, and gets it back."""
    key = PrivateKey.generate()
    envelope = Sealer([key.public_key]).seal(b"disk 41%")
    safe, shares = escrow(key, threshold=3, shares=5)
    print("one of the shares:", shares[0].to_text().partition(" ")[0], "...")
    del key

    try:
        recover(safe, shares[:2])
    except BadShares as error:
        print("with two:", error)
    found = recover(safe, [shares[1], shares[3], shares[4]])
    print("recovered by shares 2, 4, 5:", Opener([found]).open(envelope).decode())


if __name__ == "__main__":
    main()
