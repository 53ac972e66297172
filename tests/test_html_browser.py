"""report.html in a real browser: it asks for nothing, is quiet, and fits a screen in light and dark, paper and a phone.

Needs Debian's chromium and playwright, which drives it; `make browser` installs the first, the extra `dev` has the second.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compress.report.html.page import page_of
from compress.report.records import LayerRecord
from tests.test_gate import RESULT, changed, quality, report
from tests.test_html import BAD, put, whole

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'entropress[dev]'")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")

SIZES = {"light": 1100, "dark": 1100, "phone": 400, "paper": 794}
CONTRAST = """() => {
  // Contrast of every text with what is behind it, as WCAG 2 counts it; the lowest, and where.
  const part = (c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const numbers = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = numbers(getComputedStyle(e).backgroundColor);
      if (c.length == 3 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  let worst = [99, ""];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType == 3 && n.data.trim());
    if (!own || !e.getClientRects().length || ["SCRIPT", "TITLE", "DESC"].includes(e.tagName.toUpperCase())) continue;
    const style = getComputedStyle(e), ink = numbers(e instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(e))].sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst[0]) worst = [ratio, e.outerHTML.slice(0, 120)];
  }
  return worst;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A good run, one that guesses, a hostile one, and all of them beside each other."""
    folder = tmp_path_factory.mktemp("pages")
    layers = tuple(LayerRecord(name=f"{BAD}{i}", kind=BAD, width=64, width_after=8, frozen="long " * 200) for i in range(3))
    runs = {
        "good": put(folder / "good", whole()),
        "guessing": put(folder / "guessing", report(changed(RESULT, quality=quality(0.1)), chance=0.1)),
        "hostile": put(folder / "hostile", whole(layers=layers, notes=("x" * 5000, BAD), warnings=(BAD,), method="y" * 3000)),
    }
    for name, place in runs.items():
        (folder / f"{name}.html").write_text(page_of(place, names=(name,)))
    (folder / "several.html").write_text(page_of(*runs.values(), names=tuple(runs)))
    return {path.stem: path for path in folder.glob("*.html")}


def visit(browser: Any, path: Path, how: str) -> tuple[Any, list[str]]:
    """The page, and everything that the browser complained about or asked for beside the file."""
    page = browser.new_page(viewport={"width": SIZES[how], "height": 900}, color_scheme="dark" if how == "dark" else "light")
    if how == "paper":
        page.emulate_media(media="print")
    odd: list[str] = []
    page.on("console", lambda message: odd.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: odd.append(str(error)))
    page.on("request", lambda request: odd.append(request.url) if request.url != path.as_uri() else None)
    page.on("dialog", lambda dialog: odd.append(dialog.message))
    page.goto(path.as_uri())
    return page, odd


@pytest.mark.parametrize("name", ["good", "guessing", "hostile", "several"])
@pytest.mark.parametrize("how", SIZES)
def test_a_page_is_quiet_fits_its_width_and_can_be_read(browser: Any, places: dict[str, Path], name: str, how: str):
    page, odd = visit(browser, places[name], how)
    try:
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[how]
        ratio, where = page.evaluate(CONTRAST)
        assert ratio >= 4.5, f"{ratio:.2f} of {where}"
        assert page.locator("h1").count() == 1 and page.locator("section.verdict").first.is_visible()
        words = {"good": "It kept every limit", "guessing": "no better than guessing", "hostile": BAD, "several": "3 runs beside"}
        assert words[name] in page.inner_text("body")
        assert odd == []
    finally:
        page.close()


def test_pictures_are_switched_and_reasons_opened_with_the_keyboard(browser: Any, places: dict[str, Path]):
    page, odd = visit(browser, places["good"], "light")
    shown = "() => [...document.querySelectorAll('.chosen svg title')].filter((t) => t.closest('svg').getClientRects().length)"
    titles = f"({shown})().filter((t) => t.parentElement.tagName == 'svg').map((t) => t.textContent)"
    assert page.evaluate(titles) == ["Quality against milliseconds"]
    page.focus("#r1-ms")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(titles) == ["Quality against MACs"]
    button = page.locator("button.opens").first
    assert button.get_attribute("aria-expanded") == "false" and not page.is_visible("text=channels were removed")
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "true" and page.is_visible("text=channels were removed")
    box = page.locator("input.only")
    box.focus()
    before = page.locator("table.layers tbody:visible").count()
    page.keyboard.press("Space")
    assert page.locator("table.layers tbody:visible").count() <= before and box.is_checked()
    assert odd == []
    page.close()


def test_without_scripts_everything_is_there(browser: Any, places: dict[str, Path]):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(places["good"].as_uri())
    assert page.is_visible("text=40 of its 64 channels were removed") and page.is_visible("svg[role=img]")
    context.close()


def test_a_page_is_printed_with_all_its_runs(browser: Any, places: dict[str, Path], tmp_path: Path):
    page, odd = visit(browser, places["several"], "light")
    folded = "[...document.querySelectorAll('details.run')].map((one) => one.open)"
    assert page.evaluate(folded) == [True, False, False]
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(folded) == [True, True, True]
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(folded) == [True, False, False]
    page.pdf(path=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF") and odd == []
    page.close()
