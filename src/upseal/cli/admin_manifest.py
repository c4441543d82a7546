# SPDX-License-Identifier: Apache-2.0
"""``upseal admin`` on the deployment itself: init, status, renew, signing-key, audit."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from upseal.cli.admin_common import (
    add_act,
    ago,
    columns,
    deployment_class,
    folder_of,
    moment,
    opened,
    tell,
)
from upseal.cli.common import OK, USAGE, Failure, positive, say, say_json
from upseal.cli.keyfiles import passphrase_of
from upseal.cli.keygen import KINDS


def add(acts: Any) -> None:
    """The commands."""
    make = add_act(acts, "init", "make a deployment in a new folder", _init, signs=False)
    make.add_argument("--name", help="what it is called (default: as its folder)")
    make.add_argument("-t", "--type", choices=KINDS, help="kind of encryption keys (x25519)")
    make.add_argument("--fips", action="store_true", help="approved primitives only (keys: p256)")
    make.add_argument(
        "--database", metavar="FILE|URL", help="SQLite's file, or postgresql://... (server.db)"
    )
    make.add_argument("--ca-cert", metavar="FILE", help="certificate of your own CA")
    make.add_argument("--ca-key", metavar="FILE", help="its key; it stays where it is")
    make.add_argument(
        "--passphrase",
        action="store_true",
        help="encrypt signing key and CA key (UPSEAL_PASSPHRASE, or asked for)",
    )
    make.add_argument(
        "--passphrase-file", metavar="FILE", help="encrypt them: the file's first line"
    )

    add_act(
        acts, "status", "show state, keys, coverage, alarms and orphans", _status, changes=False
    )

    again = add_act(
        acts, "renew", "sign a manifest that expires later", _renew,
        force="sign although the clock stands before the newest manifest",
    )  # fmt: skip
    again.add_argument("--ca-cert", metavar="FILE", help="with --ca-key: change to this CA")

    back = add_act(
        acts, "recover", "bring a database that was restored from a backup forward", _recover,
        signs=False,
    )  # fmt: skip
    back.add_argument(
        "--trust", metavar="FILE", help="trust.json of a client or relay that has seen more"
    )

    sign = add_act(
        acts, "signing-key", "change the key that signs manifests", _signing_key,
        force="switch although clients have not had the time to hear of it",
    )  # fmt: skip
    sign.add_argument(
        "what", nargs="?", choices=("status", "announce", "switch", "cancel"), default="status"
    )
    sign.add_argument("--replace", action="store_true", help="announce another one")

    log = add_act(acts, "audit", "show the log of acts", _audit, changes=False)
    log.add_argument("--verify", action="store_true", help="check that no row was changed")
    log.add_argument("--limit", type=positive, metavar="N", help="the newest N only")


def _init(args: argparse.Namespace) -> int:
    if (args.ca_key is None) != (args.ca_cert is None):
        raise Failure(USAGE, "--ca-key and --ca-cert belong together; give both or none")
    encrypted = args.passphrase or args.passphrase_file is not None
    folder = folder_of(args)

    def new_passphrase() -> bytes:
        name = os.path.join(folder, "signing.pem")
        return passphrase_of(name, args.passphrase_file, new=True)

    outcome = deployment_class().init(
        folder,
        name=args.name,
        key_type=args.type,
        fips=args.fips,
        database=args.database,
        ca_cert=args.ca_cert,
        ca_key=args.ca_key,
        new_passphrase=new_passphrase if encrypted else None,
        passphrase=lambda path: passphrase_of(str(path), args.passphrase_file),
        dry_run=args.dry_run,
    )
    return tell(args, outcome)


def _renew(args: argparse.Namespace) -> int:
    ca = None
    if args.ca_cert is not None:
        if args.ca_key is None:
            raise Failure(USAGE, "--ca-cert needs --ca-key; give both")
        ca = (Path(args.ca_cert).absolute(), Path(args.ca_key).absolute())
    with opened(args) as deployment:
        return tell(args, deployment.renew(ca, dry_run=args.dry_run, force=args.force))


def _recover(args: argparse.Namespace) -> int:
    with opened(args) as deployment:
        return tell(args, deployment.recover(args.trust, dry_run=args.dry_run))


def _signing_key(args: argparse.Namespace) -> int:
    if args.replace and args.what != "announce":
        raise Failure(USAGE, "--replace goes with `signing-key announce`")
    with opened(args) as deployment:
        if args.what == "announce":
            outcome = deployment.announce_signing_key(replace=args.replace, dry_run=args.dry_run)
        elif args.what == "switch":
            outcome = deployment.switch_signing_key(dry_run=args.dry_run, force=args.force)
        elif args.what == "cancel":
            outcome = deployment.cancel_signing_key(dry_run=args.dry_run)
        else:
            return _show_signing_key(args, deployment.signing_keys())
    return tell(args, outcome)


def _show_signing_key(args: argparse.Namespace, found: dict[str, Any]) -> int:
    if args.json:
        say_json(found)
        return OK
    lines = [f"present  {found['present']['key_id']}  {found['present']['fingerprint']}"]
    for key in found["next"]:
        lines.append(f"next     {key['key_id']}  {key['fingerprint']}")
        lines.append(f"announced {moment(found['announced_at'])}, may sign from "
                     f"{moment(found['switch_from'])} on")  # fmt: skip
    say("".join(f"{line}\n" for line in lines))
    return OK


def _audit(args: argparse.Namespace) -> int:
    with opened(args) as deployment:
        found = deployment.audit(verify=args.verify, limit=args.limit)
    if args.json:
        say_json(found)
        return OK
    rows = [
        [
            str(entry["id"]), moment(entry["at"]), entry["actor"], entry["act"],
            json.dumps(entry["details"], sort_keys=True),
        ]
        for entry in found["entries"]
    ]  # fmt: skip
    say(columns(["row", "when", "who", "act", "details"], rows))
    if args.verify:
        say(f"whole: {found['rows']} rows; write the last hash down elsewhere: {found['hash']}\n")
    return OK


def _status(args: argparse.Namespace) -> int:
    with opened(args) as deployment:
        found = deployment.status()
    if args.json:
        say_json(found.facts())
        return OK
    facts, now = found.facts(), found.now
    say(
        f"{facts['name']} ({facts['deployment']}): encryption is {facts['state']}\n"
        f"manifest {facts['serial']}, issued {moment(facts['issued'])}, "
        f"good until {moment(facts['expires'])}, signed by {facts['signing']['present']['key_id']}"
        f"\ndefault level: {facts['default_level'] or 'each client has its own'}"
        f", {facts['levels']} clients have one of their own here\n\n"
    )
    keys = [
        [k["key_id"], k["suite"], str(k["generation"]), f"{k['state']}, {k['holder']}",
         moment(k["certificate_ends"]) if k["certificate_ends"] is not None else "no certificate"]
        for k in facts["keys"]
    ] + [
        [d["key_id"], "", str(d["generation"]),
         f"old: {d['last_hour']} reports in the last hour, {len(d['clients'])} clients on it",
         f"safe to retire {'now' if d['safe_from'] <= now and not d['clients'] else 'from ' + moment(d['safe_from'])}"]  # noqa: E501
        for d in facts["old_keys"]
    ]  # fmt: skip
    if keys:
        say(columns(["key", "suite", "generation", "state", "ends"], keys) + "\n")
    for holder in facts["readiness"]:
        say(f"{holder['name']}: {holder['why'] or 'ready'}\n")
    counts = facts["coverage"]
    words = ", ".join(f"{counts[word]} {word}" for word in counts if word != "clients")
    say(f"{counts['clients']} clients: {words}\n")
    for title, orphans in (
        ("orphaned", facts["orphans"]),
        ("would be orphaned by `disable`", facts["orphans_if_disabled"]),
    ):
        if orphans:
            names = ", ".join(orphan["name"] for orphan in orphans[:10])
            say(f"{title}: {len(orphans)} ({names}{', ...' if len(orphans) > 10 else ''})\n")
    for alarm in facts["alarms"]:
        who = f" of {alarm['subject']}" if alarm["subject"] else ""
        say(f"alarm: {alarm['kind']}{who}, {alarm['times']} times, {ago(alarm['last'], now)}\n")
    for warning in facts["warnings"]:
        say(f"to do: {warning}\n")
    return OK
