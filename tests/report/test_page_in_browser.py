"""The page in a real browser: nothing in its console, hover, filter, keyboard, dark, print.

Skips where there is no Chromium with its driver, or no selenium.
"""

from __future__ import annotations

import base64
import itertools
import shutil

import pytest

from drf_fast.commands.cli import main

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
By = pytest.importorskip("selenium.webdriver.common.by").By
ui = pytest.importorskip("selenium.webdriver.support.ui")
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys

_BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)  # fmt: skip
_DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (_BROWSER and _DRIVER), reason="needs Chromium and chromedriver"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = str(_BROWSER)
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1100,900"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(_DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def shown(browser, written_page):
    browser.get(written_page.as_uri())
    wait_until_drawn(browser)
    return browser


def wait_until_drawn(browser) -> None:
    ui.WebDriverWait(browser, 30).until(
        lambda d: d.execute_script("return document.documentElement.dataset.ready === '1'")
    )


def test_it_opens_without_a_word_in_the_console(shown):
    assert [entry for entry in shown.get_log("browser") if entry["level"] != "INFO"] == []
    assert len(shown.find_elements(By.CSS_SELECTOR, ".chart .main-svg")) >= 6
    assert "certified robustness" in shown.title  # no name has become code
    loaded = shown.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert [name for name in loaded if not name.startswith(("data:", "blob:"))] == []


def test_rows_named_by_numbers_are_rows(browser, page_run, tmp_path):
    for name in ("a", "b"):  # without settings, so that the row has no sigma in its name
        shutil.copy(page_run / "certificates.tsv", tmp_path / f"{name}.tsv")
    logs = [f"1={tmp_path / 'a.tsv'}", f"20={tmp_path / 'b.tsv'}"]
    assert main(["report", *logs, "--html", str(tmp_path / "p.html")]) == 0
    browser.get((tmp_path / "p.html").as_uri())
    wait_until_drawn(browser)
    ticks = browser.find_elements(By.CSS_SELECTOR, '[data-chart="acr"] .ytick text')
    from_above = sorted(ticks, key=lambda tick: tick.location["y"])
    assert [tick.text for tick in from_above] == ["1", "20"]


def test_hover_shows_values(shown):
    place = shown.find_element(By.CSS_SELECTOR, '[data-chart="certified"]')
    shown.execute_script("arguments[0].scrollIntoView({block: 'center'})", place)
    drag = place.find_element(By.CSS_SELECTOR, ".nsewdrag")
    script = (
        "return [...document.querySelectorAll('[data-chart=\"certified\"] .hoverlayer text')]"
        ".map(t => t.textContent).join(' ')"
    )
    offsets = itertools.cycle((-3, 3))  # the mouse has to move for a hover

    def hovered(driver) -> str:
        action = webdriver.ActionChains(driver)
        action.move_to_element_with_offset(drag, next(offsets), 0).perform()
        return driver.execute_script(script)

    texts = ui.WebDriverWait(shown, 15).until(hovered)
    assert any(letter.isdigit() for letter in texts)
    assert "<b onload>" in texts  # the name, as text


def test_the_filter_and_the_order_of_the_images(shown):
    def visible() -> list[dict[str, str]]:
        return shown.execute_script(
            "return [...document.querySelectorAll('#cards li')].filter(c => !c.hidden)"
            ".map(c => ({...c.dataset}))"
        )

    everything = visible()
    assert len(everything) == 30
    radii = [float(card["radius"]) for card in everything]
    assert radii == sorted(radii)
    for state in ("right", "wrong", "abstains", "changed"):
        ui.Select(shown.find_element(By.ID, "filter")).select_by_value(state)
        expected = [card for card in everything if state in card["state"].split()]
        assert visible() == expected
        assert shown.find_element(By.ID, "count").text == f"{len(expected)} of 30 images"
    assert any("changed" in card["state"] for card in everything)
    ui.Select(shown.find_element(By.ID, "filter")).select_by_value("")
    ui.Select(shown.find_element(By.ID, "sort")).select_by_value("-radius")
    assert [float(card["radius"]) for card in visible()] == sorted(radii, reverse=True)


def test_every_control_is_reached_by_the_keyboard(shown):
    reached = set()
    for _ in range(60):
        webdriver.ActionChains(shown).send_keys(Keys.TAB).perform()
        element = shown.switch_to.active_element
        reached.add(element.get_attribute("id") or element.tag_name)
        if "sort" in reached and "summary" in reached:
            break
    assert {"a", "summary", "filter", "sort"} <= reached


def test_dark_pages_have_light_text(shown):
    def colours() -> tuple[str, str, str]:
        return tuple(
            shown.execute_script(
                "const s = getComputedStyle(document.body);"
                "const t = document.querySelector('.chart .xtick text');"
                "return [s.color, s.backgroundColor, getComputedStyle(t).fill]"
            )
        )

    def level(colour: str) -> int:
        return sum(int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3])

    light = colours()
    shown.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    # The charts follow, as soon as the browser has told them.
    ui.WebDriverWait(shown, 15).until(lambda _: level(colours()[2]) > 450)
    dark = colours()
    script = "return getComputedStyle(document.querySelector('.chart .scatterlayer')).filter"
    lines = shown.execute_script(script)
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert lines.startswith("brightness") and shown.execute_script(script) == "none"

    assert level(light[0]) < 300 < level(light[1]) and level(dark[0]) > 450 > level(dark[1])
    assert level(light[2]) < 300


def test_on_paper_the_settings_are_open(shown):
    script = (
        "const part = document.querySelector('#settings details'), seen = [part.open];"
        "for (const name of ['beforeprint', 'afterprint']) {"
        "  dispatchEvent(new Event(name)); seen.push(part.open);"
        "}"
        "return seen;"
    )
    assert shown.execute_script(script) == [False, True, False]


def test_it_prints(shown):
    printed = base64.b64decode(shown.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert printed.startswith(b"%PDF") and len(printed) > 20_000
