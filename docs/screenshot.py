"""Photographs the top of a page in headless Chromium, through selenium and chromedriver.

python docs/screenshot.py PAGE.html PICTURE.png
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_SIZE = "1000,1500"


def photograph(page: Path, picture: Path) -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, _BROWSERS)), "")
    with tempfile.TemporaryDirectory() as profile:
        for flag in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
            options.add_argument(flag)
        options.add_argument(f"--window-size={_SIZE}")
        options.add_argument(f"--user-data-dir={profile}")
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        browser = webdriver.Chrome(options=options, service=service)
        try:
            browser.get(page.resolve().as_uri())
            ready = "return document.documentElement.dataset.ready === '1'"
            WebDriverWait(browser, 60).until(lambda driver: driver.execute_script(ready))
            browser.save_screenshot(str(picture))
        finally:
            browser.quit()


if __name__ == "__main__":
    photograph(Path(sys.argv[1]), Path(sys.argv[2]))
