# SPDX-License-Identifier: Apache-2.0
"""The sections of the report: each makes HTML from one result."""

from __future__ import annotations

from html import escape
from typing import Any

from charts import Bar, Line, bars, curves
from figures import SCALE, amount, gigabytes, nanoseconds, size

KEY = (
    '<div class="key"><span class="ours"></span>upseal<span class="peer"></span>others'
    '<span class="limit"></span>{limit}</div>'
)
MIB = 1 << 20


def one_core(result: dict[str, Any]) -> str:
    """The same table, where nobody could use a second core."""
    table = promises(result).replace("<h2>Promises", "<h2>On one core", 1)
    return f"<details><summary>The same on one core</summary>{table}</details>"


def promises(result: dict[str, Any]) -> str:
    """The table of `ratios.py`."""
    rows = []
    for contest in result["contests"]:
        for claim in contest["claims"]:
            rows.append(_promise(claim))
    counted = [c for k in result["contests"] for c in k["claims"] if c["counts"]]
    met = sum(bool(claim["met"]) for claim in counted)
    quick = " A quick run: few rounds, to be taken lightly." if result.get("quick") else ""
    return (
        f"<h2>Promises: {met} of {len(counted)} met</h2><p>Subject and peer ran by turns in one "
        "process; a ratio is the median of the ratios of all rounds, and a percentage is the "
        f"peer's time as a share of upseal's. Noisy: the best rounds say something else by more "
        f"than 15 %.{quick}</p><table><tr><th>what</th>"
        '<th class="n">upseal</th><th class="n">peer</th><th class="n">measured</th>'
        f'<th class="n">promised</th><th></th></tr>{"".join(rows)}</table>'
    )


def _promise(claim: dict[str, Any]) -> str:
    what = escape(claim["text"])
    if claim["value"] is None:
        return f'<tr class="soft"><td>{what}</td><td colspan="5">not measured</td></tr>'
    sign = "\u2264" if claim["unit"] in SCALE else "\u2265"
    told = gigabytes if claim["per"] == "byte" else nanoseconds
    peer = told(claim["peer_ns"]) if claim["peer_ns"] else ""
    word, style = ("met", "good") if claim["met"] else ("missed", "bad")
    if not claim["counts"]:
        word, style = "to know", "soft"
    if claim.get("noisy"):
        word += ", noisy"
    promised = f"{sign} {amount(claim['target'], claim['unit'])}" if claim["counts"] else ""
    cells = [told(claim["subject_ns"]), peer, amount(claim["value"], claim["unit"])]
    numbers = "".join(f'<td class="n">{escape(cell)}</td>' for cell in [*cells, promised])
    return f'<tr><td>{what}</td>{numbers}<td class="{style}">{word}</td></tr>'


def _contest(result: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((c for c in result["contests"] if c["name"] == name), None)


def _bars(contest: dict[str, Any], logarithmic: bool) -> str:
    items = []
    for time in sorted(contest["times"], key=lambda t: t["median_ns"]):
        name = time["name"]
        kind = "limit" if name.startswith("bare C") else "ours" if _is_ours(name) else "peer"
        text = nanoseconds(time["median_ns"])
        items.append(Bar(name, time["median_ns"], text, kind, time["note"]))
    return bars(items, logarithmic)


def _is_ours(name: str) -> bool:
    ours = ("upseal", "seal_", "open_", "list(open", "writer", "reader", "fresh session")
    return name.startswith(ours) or name in ("seal", "open")


def reports(result: dict[str, Any]) -> str:
    """One report with everybody, and batches beside their ceiling."""
    parts = [
        "<h2>Reports of 1 KiB</h2><p>Time for each report; shorter is better. Hold the pointer "
        "over a bar to see what it leaves out, or pays once for many reports.</p>"
        + KEY.format(limit="the C core alone: the ceiling")
    ]
    for name, logarithmic in (
        ("peers-seal", True), ("peers-open", True), ("batch-seal-1000", False),
        ("batch-open-1000", False), ("many-seal", True), ("many-open", True), ("single", False),
    ):  # fmt: skip
        contest = _contest(result, name)
        if contest:
            scale = " (logarithmic)" if logarithmic else ""
            title = f"<h3>{escape(contest['title'])}{scale}</h3>"
            parts.append(title + _bars(contest, logarithmic))
    return "".join(parts)


def sizes(result: dict[str, Any]) -> str:
    """Rates by the size of a report."""
    series: dict[str, list[tuple[float, float]]] = {}
    for contest in result["contests"]:
        if contest["name"].startswith("size-"):
            for time in contest["times"]:
                rate = contest["size"] / time["median_ns"]
                series.setdefault(time["name"], []).append((contest["size"], rate))
    lines = [Line(name, points, name.startswith("bare C")) for name, points in series.items()]
    ticks = sorted({x for line in lines for x, _ in line.points})
    drawn = curves(
        lines,
        ("size of a report", size, True),
        ("GB/s, one core", lambda y: f"{y:g}" if y in (int(y), 0.1, 0.01) else f"{y:.2f}", True),
        ticks,
    )
    intro = "<h2>By size</h2><p>Sealing reports, both axes logarithmic; dashed is the ceiling.</p>"
    return intro + drawn if drawn else ""


def threads(result: dict[str, Any]) -> str:
    """Rates by threads."""
    series: dict[str, list[tuple[float, float]]] = {}
    for name in ("threads-upload", "threads-batch"):
        contest = _contest(result, name)
        for time in contest["times"] if contest else ():
            who, _, count = time["name"].rpartition(" x")
            each = 1 if contest["per"] == "byte" else contest["size"]
            series.setdefault(who, []).append((int(count), each / time["median_ns"]))
    ticks = sorted({x for points in series.values() for x, _ in points})
    lines = [Line(name, points) for name, points in series.items()]
    drawn = curves(
        lines, ("threads", lambda x: f"{x:g}", False), ("GB/s in all", _plain, False), ticks
    )
    intro = (
        "<h2>By threads</h2><p>Each thread seals uploads (writer; cobblestone), or batches of "
        "1,000 x 1 KiB (seal_packed), of its own.</p>"
    )
    return intro + drawn if drawn else ""


def files(result: dict[str, Any]) -> str:
    """Whole files, on each file system."""
    mib = result["size"] // MIB
    parts = [
        f"<h2>Files of {mib:,} MiB</h2><p>Everybody by turns, {result['rounds']} rounds, page "
        "cache warm; medians, with the speed as a multiple of cp's in the same round, and peak "
        "memory. Programs are timed from start to end of their process.</p>"
        + KEY.format(limit="cp: seals nothing")
    ]
    for folder in result["folders"]:
        for operation in ("seal", "open"):
            items = [
                Bar(
                    row["name"],
                    row["median_gb_s"],
                    f"{row['median_gb_s']:.2f} GB/s, {row.get('to_cp', 0):.2f}x, "
                    f"{row['peak_mib']:.0f} MiB",
                    "limit" if row["name"] == "cp" else "ours" if _is_ours(row["name"]) else "peer",
                    row.get("amortises", ""),
                )
                for row in sorted(folder["rows"], key=lambda r: -r["median_gb_s"])
                if row["operation"] == operation
            ]
            title = f"{operation}, on {folder['filesystem']}".capitalize()
            parts.append(f"<h3>{escape(title)}</h3>{bars(items)}")
    return "".join(parts)


def scaling(result: dict[str, Any]) -> str:
    """Time and memory, with their fits."""
    kinds = {
        "batch": ("Reports in a batch", lambda x: f"{x:,.0f}"),
        "upload": ("Bytes of an upload", size),
        "recipients": ("Recipients", lambda x: f"{x:g}"),
    }
    parts = [
        "<h2>Scaling</h2><p>The exponent is fitted in log-log over the upper half of a series: "
        "1 is linear, 0 constant.</p>"
    ]
    table = []
    for kind, (title, form) in kinds.items():
        chosen = [s for s in result["series"] if s["name"].startswith(kind)]
        lines = [
            Line(
                f"{s['name'].partition('-')[2]}: exponent {_fit(s['exponent'])}",
                [(r["size"], r["seconds"]) for r in s["rows"]],
            )
            for s in chosen
        ]
        ticks = sorted({r["size"] for s in chosen for r in s["rows"]})
        y_axis = ("time", lambda y: nanoseconds(y * 1e9), True)
        parts.append(
            f"<h3>{title}</h3>" + curves(lines, (title.lower(), form, True), y_axis, ticks)
        )
        for s in chosen:
            last = s["rows"][-1]
            cells = [form(last["size"]), nanoseconds(last["seconds"] * 1e9), _fit(s["exponent"])]
            cells += [f"{last['peak_mib']:,.1f} MiB", _fit(s["memory_exponent"])]
            numbers = "".join(f'<td class="n">{escape(cell)}</td>' for cell in cells)
            table.append(f"<tr><td>{escape(s['title'])}</td>{numbers}</tr>")
    state = result["steady"]
    steady = (
        f"<p>Steady state of an upload, between marks of {state['mark_mib']:,} MiB: page faults "
        f"{state['minor_faults']}, bytes of Python objects {state['traced_bytes']}: "
        + ("nothing is allocated.</p>" if state["ok"] else '<span class="bad">it does</span>.</p>')
    )
    head = "".join(
        f'<th class="n">{name}</th>'
        for name in ("at most", "time there", "exponent", "memory there", "exponent")
    )
    return "".join(parts) + f"<table><tr><th>series</th>{head}</tr>{''.join(table)}</table>{steady}"


def rows(result: dict[str, Any]) -> str:
    """pytest-benchmark's rows, folded up: there are many."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in result["benchmarks"]:
        groups.setdefault(row["group"] or "", []).append(row)
    parts = [
        f"<h2>All rows</h2><p>{len(result['benchmarks'])} rows of pytest-benchmark. They ran one "
        "after the other: compare a row with itself in another run, and peers in the tables "
        "above.</p>"
    ]
    for name, members in sorted(groups.items()):
        lines = []
        for row in sorted(members, key=lambda r: r["stats"]["median"] / r["extra_info"]["each"]):
            info = row["extra_info"]
            each = row["stats"]["median"] * 1e9 / info["each"]
            bytes_each = 1 if info["unit"] == "byte" else info["size"]
            lines.append(
                f"<tr><td>{escape(row['name'].removeprefix('test_'))}</td>"
                f'<td class="n">{nanoseconds(each)} a {info["unit"]}</td>'
                f'<td class="n">{bytes_each / each:.3f} GB/s</td></tr>'
            )
        table = f"<table>{''.join(lines)}</table>"
        parts.append(f"<details><summary>{escape(name)} ({len(lines)})</summary>{table}</details>")
    return "".join(parts)


def machine(facts: dict[str, Any], peers: dict[str, str]) -> str:
    """Where, with what, and how to do it again."""
    engine = facts["engine"]
    told = {
        "CPU": facts["cpu"], "cores": facts["cores"], "memory": f"{facts['memory_gib']} GiB",
        "system": f"{facts['os']}, {facts['architecture']}",
        "engine": f"{engine['engine']}, backend {engine['backend']} ({engine['version']})",
        **facts["versions"], "load at the end": facts["load"],
        "peers": ", ".join(dict.fromkeys(v for v in peers.values() if v)) or "none",
    }  # fmt: skip
    lines = "".join(
        f'<tr><td class="soft">{escape(str(name))}</td><td>{escape(str(value))}</td></tr>'
        for name, value in told.items()
    )
    return (
        f"<h2>Machine</h2><table>{lines}</table><h2 style='margin-top:20px'>Again</h2>"
        "<pre>make bench        # under three minutes\nmake bench-full   # everything</pre>"
        "<p>Let nothing else run meanwhile. docs/benchmarks.md explains every row.</p>"
    )


def _plain(value: float) -> str:
    return f"{value:.3g}"


def _fit(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.2f}"
