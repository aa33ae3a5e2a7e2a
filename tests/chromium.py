"""A headless Chromium for the tests of pages: started in one way, by the fixture ``chromium``, and set to a screen."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

FLAGS = (
    "headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync",
)  # fmt: skip
PATIENCE = 120  # seconds for a script


def start(profile: Path) -> Any:
    """A selenium driver, which whoever starts it quits; the console's lines are ``get_log("browser")``."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    for flag in (*FLAGS, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = shutil.which("chromium") or ""
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    browser.set_script_timeout(PATIENCE)
    return browser


def set_screen(browser: Any, width: int, height: int = 900, is_dark: bool = False) -> None:
    """Sizes in CSS pixels, each of which is one pixel of a screenshot."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
