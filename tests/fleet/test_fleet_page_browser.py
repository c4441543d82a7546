# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: desktop and phone, by keyboard, live, and from nowhere else."""

import re
from urllib.parse import urlsplit

import pytest
from fleet_browser import chromium
from fleet_page_support import add_client, add_login, populate, says
from fleet_server_support import Site, now_ms, sealed

from upseal.cli import main
from upseal.fleet.policy import Level, Reason
from upseal.fleet.server.store import logins

WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
EVIL = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'
_WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (e) => window.violations.push(e.blockedURI));
"""
_CONTRAST = """
() => {
  const probe = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (text) => {
    probe.clearRect(0, 0, 1, 1);
    probe.fillStyle = text;
    probe.fillRect(0, 0, 1, 1);
    const d = probe.getImageData(0, 0, 1, 1).data;
    return [d[0], d[1], d[2], d[3] / 255];
  };
  const light = (c) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = c.map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgba(getComputedStyle(e).backgroundColor);
      if (c[3] > 0.99) return c;
    }
    return [255, 255, 255, 1];
  };
  const bad = [];
  let seen = 0;
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !e.getClientRects().length) continue;
    if (["TITLE", "DESC"].includes(e.tagName.toUpperCase())) continue;
    const style = getComputedStyle(e);
    const a = light(rgba(e instanceof SVGElement ? style.fill : style.color).slice(0, 3));
    const b = light(behind(e).slice(0, 3));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    seen += 1;
    if (ratio < 4.5) bad.push([walk.currentNode.textContent.trim().slice(0, 30), ratio]);
  }
  return [seen, bad];
}
"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(tmp_path_factory.mktemp("page") / "site")
    populate(made, 120, days=2)
    with made.store() as store, store.writing() as db:
        says(db, add_client(db, EVIL), "sealed")
    made.password = add_login(made)
    with made.running():
        yield made


class Watched:
    """A page, and all that it asked for and complained about."""

    def __init__(self, browser, site, size="desktop", **options):
        width, height = WIDTHS[size]
        self.site = site
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.context.add_init_script(_WATCH)
        self.page = self.context.new_page()
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append("dialog"))

    def _said(self, message):
        if message.type in ("error", "warning") and "the server responded with" not in message.text:
            self.complaints.append(message.text)

    def go(self, path="/admin"):
        self.page.goto(self.site.url + path)

    def log_in(self, path="/admin"):
        self.go("/admin/login")
        self.page.fill("#name", "root")
        self.page.fill("#password", self.site.password)
        self.page.click("button[type=submit]")
        self.page.wait_for_selector("#state")
        if path != "/admin":
            self.go(path)
        return self.page

    def later(self, seconds=5):
        """Time passes, for the page's own clock."""
        self.page.clock.run_for(seconds * 1000)

    def close(self):
        """And nothing went elsewhere, and nothing was blocked or failed."""
        ours = urlsplit(self.site.url).netloc
        assert {urlsplit(url).netloc for url in self.requests} == {ours}
        assert self.page.evaluate("window.violations || []") == []
        assert self.page.evaluate("window.pwned") is None
        assert self.complaints == []
        self.context.close()


@pytest.fixture
def watched(browser, site):
    made = []

    def make(size="desktop", **options):
        made.append(Watched(browser, site, size, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def focused(page):
    return page.evaluate("document.activeElement.id || document.activeElement.tagName")


def tab_to(page, name, most=80):
    """Goes there by the Tab key; whatever has the focus on the way shows it."""
    for _ in range(most):
        page.keyboard.press("Tab")
        outline = page.evaluate(
            "(() => { const s = getComputedStyle(document.activeElement);"
            " return [s.outlineStyle, parseFloat(s.outlineWidth)]; })()"
        )
        assert outline[0] != "none" and outline[1] >= 2, focused(page)
        if focused(page) == name:
            return
    raise AssertionError(f"no way to {name} by keyboard")


@pytest.mark.parametrize("size", WIDTHS)
def test_by_keyboard_alone_from_the_login_to_the_orphans(watched, site, size):
    one = watched(size)
    page = one.page
    one.go()
    assert page.url.endswith("/admin/login") and focused(page) == "name"
    page.keyboard.type("root")
    page.keyboard.press("Tab")
    page.keyboard.type(site.password)
    page.keyboard.press("Enter")
    page.wait_for_selector("#state")

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    page.keyboard.press("Enter")
    assert focused(page) == "clients"
    tab_to(page, "only-orphaned")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("filter=orphaned"))
    rows = page.locator("#listing tbody tr")
    count = int(page.inner_text("#count-orphaned"))
    assert rows.count() == count == int(page.inner_text("#matching")) > 0
    for row in rows.all():
        assert "orphaned" in row.inner_text() and "withheld" in row.inner_text()
    tab_to(page, "by-seen")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("sort=seen"))
    assert page.get_attribute("#listing th[aria-sort]", "aria-sort") == "ascending"
    tab_to(page, "q")
    page.keyboard.type(rows.nth(0).locator(".name").inner_text())
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("q=.*&filter=orphaned"))
    assert rows.count() == 1


@pytest.mark.parametrize("size", WIDTHS)
def test_the_chart_is_seen_and_nothing_sticks_out(watched, size):
    one = watched(size)
    page = one.log_in()
    wide, narrow = (
        page.locator("#chart-clients svg.wide"),
        page.locator("#chart-clients svg.narrow"),
    )
    seen, other = (wide, narrow) if size == "desktop" else (narrow, wide)
    assert seen.is_visible() and not other.is_visible()
    for name in ("sealed", "clear", "withheld", "silent"):
        box = seen.locator(f"[data-layer={name}]").bounding_box()
        assert box["width"] > 200 and box["height"] > 1, name
        assert page.locator(f"#chart-clients .legend >> text={name}").is_visible()
    inside = seen.bounding_box()
    assert inside["x"] >= 0 and inside["x"] + inside["width"] <= WIDTHS[size][0]
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[size][0]
    page.click("#coverage-chart-numbers summary")
    assert page.locator("#coverage-chart-numbers tbody tr").count() > 10
    # A table on a desktop, cards on a phone.
    display = page.evaluate("getComputedStyle(document.querySelector('#listing tbody td')).display")
    assert display == ("table-cell" if size == "desktop" else "grid")
    for target in page.locator("#filters a, #ranges a, .who button, #listing .pages a").all():
        assert target.bounding_box()["height"] >= 24, "large enough for a finger"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_can_be_read(watched, scheme):
    one = watched(color_scheme=scheme)
    page = one.log_in()
    for path in ("/admin", "/admin?filter=orphaned&q=x"):
        one.go(path)
        seen, bad = page.evaluate(_CONTRAST)
        assert seen > 60 and bad == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(15, 20, 24)") == (scheme == "dark")
    page.click(".who form button")
    page.wait_for_selector("#password")
    seen, bad = page.evaluate(_CONTRAST)
    assert seen > 4 and bad == []


def test_names_are_text(watched):
    page = watched().log_in("/admin?q=img")
    assert page.inner_text("#listing .name") == EVIL


def test_without_scripts(watched):
    one = watched(java_script_enabled=False)
    page = one.log_in()
    assert page.locator("#chart-clients svg.wide").is_visible()
    assert not page.locator("#pause").is_visible()
    page.click("#only-silent")
    assert page.locator("#listing tbody tr").count() == int(page.inner_text("#count-silent"))
    page.fill("#q", "nobody is called so")
    page.click(".search button")
    assert "No client is like that" in page.inner_text("#listing")
    page.click("#range-1h")
    assert "the last hour" in page.inner_text("#chart-clients")
    page.click(".who form button")
    assert page.locator("#password").is_visible()


def test_a_rotation_is_followed_live(watched, browser, tmp_path, capsys):
    """Real acts, a real server; the page is loaded once, and the clock is the browser's own."""
    site = Site(tmp_path / "site")
    site.enable()
    site.password = add_login(site)

    def admin(*words):
        assert main(["admin", *words, "-d", str(site.folder)]) == 0
        capsys.readouterr()

    with site.running():
        sender = site.enrol("web-1")
        sender.send(sealed(site, sender.unit(b"one")))
        one = Watched(browser, site)
        one.page.clock.install()
        page = one.log_in()
        page.evaluate("window.loaded = 1")

        def shows(selector, text):
            """Within a look or two of the page's own."""
            for _ in range(100):
                one.later()
                page.wait_for_timeout(100)
                if re.search(text, page.inner_text(selector)):
                    return
            raise AssertionError(f"{selector} does not show {text!r}: {page.inner_text(selector)}")

        assert page.inner_text("#state") == "enabled"
        first = page.inner_text("#keys .key")
        admin("generate-key")
        shows("#state", "pending-rotation")
        shows("#keys", "pending")
        shows("#duties", "a key is pending: upseal admin ready")
        shows("#relays", r"the server\s+waiting")
        admin("ready")
        shows("#relays", r"the server\s+ready")
        shows("#duties", "upseal admin enable")
        admin("enable")
        shows("#state", "^enabled$")
        shows("#keys", rf"{first}\s+draining[\s\S]*clients on it: 1\s+web-1")
        second = page.inner_text("#keys .key")
        assert second != first
        sender.send(sealed(site, sender.unit(b"two", b"three")))
        shows("#keys", rf"{second}\s+active[\s\S]*2 reports in the last hour; clients on it: 1")
        shows("#keys", rf"{first}\s+draining[\s\S]*clients on it: 0")
        admin("retire", "--force")
        shows("#keys", rf"^((?!{first})[\s\S])*$")
        assert page.evaluate("window.loaded") == 1, "it was never loaded again"
        one.close()


def test_what_somebody_does_is_left_alone(watched, site):
    """Focus, what is typed, what is open: a refresh changes none of it."""
    one = watched()
    one.page.clock.install()
    page = one.log_in()
    before = page.inner_text("#count-silent")
    page.fill("#q", "half a na")
    page.click("#coverage-chart-numbers summary")
    page.focus("#only-orphaned")
    with site.store() as store, store.writing() as db:
        add_client(db, "newcomer")
    for _ in range(100):
        one.later()
        page.wait_for_timeout(100)
        if page.inner_text("#count-silent") != before:
            break
    assert int(page.inner_text("#count-silent")) == int(before) + 1
    assert focused(page) == "only-orphaned"
    assert page.input_value("#q") == "half a na"
    assert page.get_attribute("#coverage-chart-numbers", "open") is not None

    page.click("#pause")
    page.wait_for_timeout(100)
    asked = len(one.requests)
    one.later(30)
    page.wait_for_timeout(100)
    assert len(one.requests) == asked, "it stands still"
    with page.expect_request("**/admin/live*"):
        page.keyboard.press("Enter")
    assert page.get_attribute("#pause", "aria-pressed") == "false"


def test_a_server_that_is_away_and_a_session_that_is_over(watched, site):
    one = watched()
    one.page.clock.install()
    page = one.log_in()
    page.route("**/admin/live*", lambda route: route.abort())
    one.later()
    page.wait_for_selector("#trouble:not([hidden])")
    assert "does not answer" in page.inner_text("#trouble")
    page.unroute("**/admin/live*")
    one.later()
    page.wait_for_selector("#trouble", state="hidden")
    one.context.clear_cookies()
    one.later()
    page.wait_for_selector("#password")
    one.complaints = [c for c in one.complaints if "ERR_FAILED" not in c]


def test_logins_by_the_page_are_known(site, watched):
    before = now_ms()
    watched().log_in()
    with site.store() as store, store.reading() as db:
        assert logins.find(db, "root").last_login >= before


def test_clear_of_who_must_seal_stands_out(watched, site):
    with site.store() as store, store.writing() as db:
        says(
            db, add_client(db, "must-seal"), "withheld", wanted=Level.REQUIRED,
            reason=Reason.ENCRYPTION_DISABLED,
        )  # fmt: skip
    page = watched().log_in("/admin?q=must-seal")
    words = page.inner_text("#listing tbody tr")
    for word in ("required", "withheld", "orphaned", "encryption-disabled"):
        assert word in words
