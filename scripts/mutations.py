# SPDX-License-Identifier: Apache-2.0
"""Runs the tests that patches of tests/mutations name, with each patch in a copy of the tree."""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from mutations.patches import CTEST, Patch, PatchError, every, patched  # noqa: E402

_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "__pycache__", "*.egg-info", ".hypothesis", ".benchmarks",
    ".*_cache",
)  # fmt: skip
_BROKEN = {"NameError", "UnboundLocalError", "ImportError", "ModuleNotFoundError", "SyntaxError"}
"""A test that ends so has found no missing check, but a patch that is none."""
_PATIENCE = 180
"""Seconds for one run."""
_FLAGS = ("-std=c11", "-O1", "-Wall", "-Wextra", "-Wno-unused", "-Inative")


class Broken(Exception):  # noqa: N818 - what it is
    """It says nothing about the tests: the patch, or the build, is wrong."""


@dataclass
class Verdict:
    """What became of one patch."""

    patch: Patch
    result: str
    """killed, survived, or broken."""
    seconds: float
    why: str = ""


class Tree:
    """A copy of the tree, for one thread."""

    def __init__(self, folder: Path, python: str, *, of_c: bool, origin: Path = ROOT) -> None:
        self.root, self._python = folder / "tree", python
        self._outcomes = folder / "outcomes"
        shutil.copytree(origin, self.root, ignore=_LEFT_OUT)
        # By content: a patch and what it replaces may have the same size and second.
        self._call([python, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash",
                    "src", "tests"])  # fmt: skip
        where = self._call([python, "-c", "import upseal; print(upseal.__file__)"])
        if not Path(where.strip()).is_relative_to(self.root):
            raise Broken(f"Python takes upseal from {where.strip()}, not from the copy")
        if of_c:
            (self.root / "build").mkdir()
            self._compile(self._sources())

    def run(self, killers: Iterable[str]) -> set[str]:
        """Those of the named tests that fail. All others of them pass.

        Raises:
            Broken: one neither fails nor passes: it is not there, is skipped, or does not end.
        """
        named = list(killers)
        failed = {CTEST} if CTEST in named and not self._ctest() else set()
        tests = [killer for killer in named if killer != CTEST]
        return failed | self._pytest(tests) if tests else failed

    def run_with(self, patch: Patch) -> set[str]:
        """As `run` of its killers, with a patch in the tree; afterwards it is out again."""
        new = patched(patch, self.root)
        old = {at: (self.root / at).read_bytes() for at in new}
        for at, text in new.items():
            if at.endswith(".py"):
                try:
                    compile(text, at, "exec")
                except SyntaxError as error:
                    raise Broken(f"{at} is no Python any more: {error}") from None
        library = list(self.root.glob("src/upseal/engine/_native*.so"))
        kept = {path: path.read_bytes() for path in library} if patch.of_c else {}
        sources = [at for at in new if at.startswith("native/")]
        try:
            for at, text in new.items():
                (self.root / at).write_text(text)
            if sources and CTEST in patch.killers:
                self._compile(sources)
            if sources and set(patch.killers) != {CTEST}:
                self._extension()
            return self.run(patch.killers)
        finally:
            for at, data in old.items():
                (self.root / at).write_bytes(data)
            for path, data in kept.items():
                path.unlink(missing_ok=True)  # not written to: a process may still have it mapped
                path.write_bytes(data)
                path.chmod(0o755)
            if sources and CTEST in patch.killers:
                self._compile(sources)

    def _pytest(self, tests: Sequence[str]) -> set[str]:
        self._outcomes.unlink(missing_ok=True)
        self._outcomes.touch()
        command = [self._python, "-m", "pytest", "-q", "--tb=line", "-m", "", "-o", "addopts=",
                   "-p", "no:cacheprovider", "-p", "mutations.outcomes", *tests]  # fmt: skip
        done = self._try(command)
        if done.returncode not in (0, 1):
            raise Broken(f"pytest ends with {done.returncode}: {_end(done.stdout)}")
        reports = [json.loads(line) for line in self._outcomes.read_text().splitlines()]
        failed = set()
        for test in tests:
            mine = [one for one in reports if _belongs(one["test"], test)]
            bad = [one for one in mine if one["outcome"] == "failed"]
            if not any(one["phase"] == "call" and one["outcome"] != "skipped" for one in mine):
                raise Broken(f"{test} did not run: {_end(done.stdout)}")
            if any(one["error"] in _BROKEN for one in bad):
                raise Broken(f"{test} ends by {bad[0]['error']}: {_end(done.stdout)}")
            if any(one["phase"] == "call" for one in bad):
                failed.add(test)
            elif bad:
                raise Broken(f"{test} fails in its {bad[0]['phase']}: {_end(done.stdout)}")
        return failed

    # -- C ---------------------------------------------------------------------------------

    def _ctest(self) -> bool:
        done = self._try([str(self.root / "build" / "ctest")])
        if done.returncode == 0 or done.returncode == 1 or done.returncode < 0:
            return done.returncode == 0
        raise Broken(f"the C tests end with {done.returncode}: {_end(done.stdout)}")

    def _sources(self) -> list[str]:
        """Of the program of the C tests: with OpenSSL alone, which is everywhere."""
        native = self.root / "native"
        found = sorted((*native.glob("*.c"), *native.glob("tests/*.c")))
        return [str(one.relative_to(self.root)) for one in found if one.name != "aead_ippcp.c"]

    def _compile(self, changed: Iterable[str]) -> None:
        """These, and the program of the C tests."""
        changed = list(changed)
        if any(name.endswith(".h") for name in changed):
            changed = self._sources()
        cc = os.environ.get("CC", "gcc")
        for name in changed:
            self._call([cc, *_FLAGS, "-c", name, "-o", _object(name)])
        objects = map(_object, self._sources())
        self._call([cc, *objects, "-o", "build/ctest", "-lcrypto", "-lpthread"])

    def _extension(self) -> None:
        """The C core that Python loads: a new file, since the old one may be mapped."""
        for path in self.root.glob("src/upseal/engine/_native*.so"):
            path.unlink()
        self._call([self._python, "setup.py", "-q", "build_ext", "--inplace"],
                   {"UPSEAL_BUILD": "native", "UPSEAL_IPPCP": "0"})  # fmt: skip

    # -- processes -------------------------------------------------------------------------

    def _call(self, command: list[str], more: dict[str, str] | None = None) -> str:
        done = self._try(command, more)
        if done.returncode:
            raise Broken(f"{command[0]} ends with {done.returncode}: {_end(done.stdout)}")
        return done.stdout

    def _try(
        self, command: list[str], more: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        paths = os.pathsep.join(str(self.root / name) for name in ("src", "tests"))
        env = {
            **os.environ,
            "PYTHONPATH": paths,
            "UPSEAL_OUTCOMES": str(self._outcomes),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }  # fmt: skip - they take longer than a test
        try:
            return subprocess.run(  # noqa: S603 - the tree's own tests
                command, cwd=self.root, env={**env, **(more or {})}, text=True, errors="replace",
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                timeout=_PATIENCE, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Broken(f"{command[0]} was not done in {_PATIENCE} s") from None


def _object(source: str) -> str:
    return f"build/{Path(source).stem}.o"


def _belongs(test: str, named: str) -> bool:
    return test == named or test.startswith((f"{named}[", f"{named}::"))


def _end(text: str) -> str:
    return text.strip()[-600:]


class Run:
    """All chosen patches, by several threads with a tree each."""

    def __init__(self, patches: Sequence[Patch], python: str, jobs: int, out: object) -> None:
        self._patches, self._python, self._jobs, self._out = patches, python, jobs, out
        self._lock = threading.Lock()
        self.verdicts: list[Verdict] = []
        self._unfit: dict[str, str] = {}
        """Tests that do not pass without any patch, and why."""

    def all(self) -> None:
        """Does it.

        Raises:
            Broken: the copies cannot be made.
        """
        killers: dict[str, list[str]] = {}
        for killer in sorted({one for patch in self._patches for one in patch.killers}):
            killers.setdefault(killer.partition("::")[0], []).append(killer)
        of_c = any(patch.of_c for patch in self._patches)
        with tempfile.TemporaryDirectory(prefix="upseal-mutations-") as name:
            folders = [Path(name, str(i)) for i in range(self._jobs)]
            trees = [Tree(folder, self._python, of_c=of_c) for folder in folders]
            begun = time.monotonic()
            self._share(trees, list(killers.values()), self._unpatched)
            print(f"{sum(map(len, killers.values()))} tests without a patch, "
                  f"{time.monotonic() - begun:.0f} s", file=self._out, flush=True)  # fmt: skip
            self._share(trees, list(self._patches), self._one)

    def _share(self, trees, things, work) -> None:  # noqa: ANN001
        left: SimpleQueue = SimpleQueue()
        for thing in things:
            left.put(thing)
        errors: list[BaseException] = []

        def some(tree: Tree) -> None:
            try:
                while not errors:
                    work(tree, left.get_nowait())
            except Empty:
                pass
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=some, args=(tree,)) for tree in trees]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:  # an interrupt: what runs ends, and its folder goes after it
            errors.append(error)
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]

    def _unpatched(self, tree: Tree, killers: list[str]) -> None:
        try:
            unfit = dict.fromkeys(tree.run(killers), "it fails without the patch as well")
        except Broken as error:
            if len(killers) > 1:  # whose fault it was, each by itself will show
                for killer in killers:
                    self._unpatched(tree, [killer])
                return
            unfit = dict.fromkeys(killers, str(error))
        with self._lock:
            self._unfit.update(unfit)

    def _one(self, tree: Tree, patch: Patch) -> None:
        begun = time.monotonic()
        result, why = self._judged(tree, patch)
        verdict = Verdict(patch, result, time.monotonic() - begun, why)
        with self._lock:
            self.verdicts.append(verdict)
            count = f"[{len(self.verdicts):3}/{len(self._patches)}]"
            line = f"{count} {verdict.seconds:5.1f} s  {result:8}  {patch.name}"
            print(f"{line}\n    {why}" if why else line, file=self._out, flush=True)

    def _judged(self, tree: Tree, patch: Patch) -> tuple[str, str]:
        for killer in patch.killers:
            if killer in self._unfit:
                return "broken", f"{killer}: {self._unfit[killer]}"
        try:
            failed = tree.run_with(patch)
        except (Broken, PatchError) as error:
            return "broken", str(error)
        passed = [killer for killer in patch.killers if killer not in failed]
        return ("survived", f"{patch.title} Passed: {', '.join(passed)}") if passed else (
            "killed", "")  # fmt: skip


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/mutations", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="of names, as in 'core/*'")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--sample", type=int, help="so many of them, chosen by the day")
    parser.add_argument("--seed", default=datetime.datetime.now(datetime.UTC).date().isoformat())
    parser.add_argument("--json", action="store_true", help="what came of it on standard output")
    parser.add_argument("--list", action="store_true", help="names and titles; runs nothing")
    args = parser.parse_args()
    out = sys.stderr if args.json else sys.stdout
    patches = [one for one in every() if fnmatch.fnmatch(one.name, args.pattern)]
    if args.sample is not None:
        chosen = random.Random(args.seed)  # noqa: S311 - to choose tests
        patches = chosen.sample(patches, min(args.sample, len(patches)))
        print(f"a sample of {len(patches)}, --seed {args.seed}", file=out)
    if not patches:
        parser.error(f"no patch is called {args.pattern}")
    if args.list:
        print(*(f"{patch.name:40} {patch.title}" for patch in patches), sep="\n")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the copies go
    begun = time.monotonic()
    run = Run(patches, sys.executable, max(1, min(args.jobs, len(patches))), out)
    run.all()
    by = {name: [v for v in run.verdicts if v.result == name]
          for name in ("killed", "survived", "broken")}  # fmt: skip
    seconds = time.monotonic() - begun
    print(f"{len(patches)} patches in {seconds:.0f} s: "
          + ", ".join(f"{len(some)} {name}" for name, some in by.items()), file=out)  # fmt: skip
    for verdict in (*by["survived"], *by["broken"]):
        print(f"{verdict.result}: {verdict.patch.name}: {verdict.why}", file=out)
    if args.json:
        said = [
            {"name": v.patch.name, "title": v.patch.title, "result": v.result, "why": v.why,
             "seconds": round(v.seconds, 2)}
            for v in run.verdicts
        ]  # fmt: skip
        print(json.dumps({"seconds": round(seconds, 1), "patches": said}, indent=1))
    return 0 if len(by["killed"]) == len(patches) else 1


if __name__ == "__main__":
    sys.exit(main())
