"""Chromium without a window, for the tests of the chat page."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.cpu.server.server_process import SECONDS

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")


class Browser:
    """One tab. Ids are those of the page's elements."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))

    def resize(self, width: int, height: int) -> None:
        """Sets what the page has, narrower than a window can be too."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def prefer(self, scheme: str) -> None:
        """Sets the user's preferred colour scheme."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, url: str) -> None:
        """Loads a page, with an empty console."""
        self.driver.get("about:blank")
        self.console()
        self.driver.get(url)

    def console(self) -> list[str]:
        """What the console got since it was last asked: errors, blocked resources."""
        log: Callable[[str], list[dict[str, str]]] = self.driver.get_log
        return [entry["message"] for entry in log("browser")]

    def element(self, name: str) -> WebElement:
        """Returns an element by id."""
        return self.driver.find_element(By.ID, name)

    def all(self, selector: str) -> list[WebElement]:
        """Returns elements by a CSS selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """Returns the text of elements exactly, blanks and all."""
        return [str(element.get_property("textContent")) for element in self.all(selector)]

    def script(self, code: str, *arguments: object) -> Any:
        """Runs JavaScript in the page."""
        return self.driver.execute_script(code, *arguments)

    def wait(self, condition: Callable[[], object]) -> None:
        """Waits until something holds."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.script("return document.body.innerText")
            time.sleep(0.02)

    def wait_for_status(self, word: str) -> None:
        """Waits until the page's status begins so."""
        self.wait(lambda: self.element("status").text.startswith(word))

    def close(self) -> None:
        """Ends the browser."""
        self.driver.quit()
