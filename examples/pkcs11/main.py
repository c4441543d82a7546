# SPDX-License-Identifier: Apache-2.0
"""Opens reports with a P-256 key that never leaves a token.

Makes a SoftHSM2 token in a temporary folder (Debian: softhsm2), as an HSM's own tools would make
one. The last four lines are what a user writes.
"""

import os
import subprocess
import tempfile
from pathlib import Path

import pkcs11
from pkcs11.util.ec import encode_named_curve_parameters

from upseal import Opener, Sealer
from upseal.integrations.keys import open_key

PIN = "2468"


def make_token(folder: Path, module: str) -> str:
    """A token with one key; its URI."""
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder}/tokens\n")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    made = ["--init-token", "--free", "--label", "vault", "--so-pin", "13579111", "--pin", PIN]
    subprocess.run(["softhsm2-util", *made], check=True, capture_output=True)  # noqa: S603, S607
    library = pkcs11.lib(module)
    with library.get_token(token_label="vault").open(user_pin=PIN, rw=True) as session:  # noqa: S106
        curve = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
        parameters = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
        parameters.generate_keypair(store=True, label="server", id=b"\x01")
    library.finalize()
    (folder / "pin").write_text(PIN)
    (folder / "pin").chmod(0o600)
    return f"pkcs11:token=vault;object=server?module-path={module}&pin-source=file:{folder}/pin"


def main() -> None:
    """Seals to the public key, opens in the token."""
    module = os.environ.get("UPSEAL_PKCS11_MODULE", "/usr/lib/softhsm/libsofthsm2.so")
    with tempfile.TemporaryDirectory() as folder:
        uri = make_token(Path(folder), module)
        key = open_key(uri)
        print("the key in the token:", key.public_key.name, key.key_id.hex())
        envelope = Sealer([key.public_key]).seal(b"disk 41%")
        print("opened in the token:", Opener([key]).open(envelope).decode())


if __name__ == "__main__":
    main()
