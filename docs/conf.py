# SPDX-License-Identifier: Apache-2.0
"""How Sphinx makes the site of the pages beside this file: ``scripts/docs-site``, or ``make docs``.

The pages are plain Markdown that also reads well on a code host. Nothing is fetched while building,
and the site loads nothing from elsewhere.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

import upseal  # noqa: E402 - after the path

project = "upseal"
version = release = upseal.__version__
copyright = "the authors of upseal, Apache-2.0"
source_url = ""
"""Where the sources are browsed; links to files that are no pages then lead there."""

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
# Pages of others come and go; what is in no list of contents is an error of `-W`.
nitpicky = True
highlight_language = "none"
suppress_warnings = ["misc.highlighting_failure"]  # shortened output in `json` blocks

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_line_continuation_character = "\\"

# ---- reference from the docstrings ------------------------------------------------

default_role = "code"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autoclass_content = "class"
napoleon_numpy_docstring = False
OPTIONAL = [
    "asn1", "duckdb", "httpx", "nats", "opentelemetry", "pkcs11", "polars", "psycopg", "pyarrow",
    "pyspark", "ray", "requests", "shamir", "starlette",
]  # fmt: skip
autodoc_mock_imports = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
# Names of other libraries, and our own that are not public: nothing is fetched to look them up.
nitpick_ignore_regex = [("py:.*", r"(?!upseal\.[A-Z]).*")]

# ---- the look ----------------------------------------------------------------------

html_theme = "furo"
html_title = "upseal"
html_static_path = ["_static"]
html_css_files = ["upseal.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
html_extra_path = ["benchmarks.html"]

linkcheck_ignore = [r"https?://.*"]  # what lies outside is looked at by people, not by a build


class LinksToSources(SphinxPostTransform):
    """Links to files of the repository that are no pages: by name, and to ``source_url`` if set.

    MyST would copy each such file into the site.
    """

    default_priority = 5  # before MyST resolves its own

    def run(self, **_: Any) -> None:
        """Replaces them; a file that is not there is left, and is a warning then."""
        here = Path(self.env.doc2path(self.env.docname)).parent
        pages = [node for node in self.document.findall(addnodes.pending_xref) if _is_page(node)]
        for node in [*pages, *self.document.findall(addnodes.download_reference)]:
            suffix = ".md" if str(node.get("refdomain")) == "doc" else ""
            target = (here / f"{node['reftarget']}{suffix}").resolve()
            if not target.exists() or ROOT / "docs" in target.parents:
                continue
            where = target.relative_to(ROOT).as_posix()
            if self.app.config.source_url:
                link = nodes.reference("", "", refuri=f"{self.app.config.source_url}/{where}")
                link.extend(node.children)
                node.replace_self(link)
            else:
                node.replace_self(nodes.literal("", where))


def _is_page(node: addnodes.pending_xref) -> bool:
    """Whether MyST takes it for a page: a name with .md, or one without a suffix (a folder)."""
    return node.get("reftype") == "myst" and not str(node["reftarget"]).startswith("#")


def _other_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """A page that index.md does not name stands at the end of the contents, and is not lost."""
    if docname == "index":
        named = set(re.findall(r"^\w+$", source[0], flags=re.M))
        others = sorted({page.stem for page in (ROOT / "docs").glob("*.md")} - named - {"index"})
        if others:
            listed = "\n".join(others)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: More\n\n{listed}\n```\n"


def _plain_attributes(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Napoleon takes what stands before a colon in an attribute's first line for its type."""
    if what in {"attribute", "data", "property"}:
        lines.insert(0, "")


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers what is above."""
    app.connect("source-read", _other_pages)
    app.connect("autodoc-process-docstring", _plain_attributes, priority=400)  # before Napoleon
    app.add_config_value("source_url", "", "env")
    app.add_post_transform(LinksToSources)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
