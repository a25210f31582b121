"""A browser, a served page, and where screenshots go.

The browser and its driver are the distribution's packages (Debian: chromium, chromium-driver); without them, or without
selenium, the browser tests are skipped and say so.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SHOTS = Path(os.environ.get("ALIGNLOOP_SCREENSHOTS", ROOT / "build" / "screenshots"))
WIDE, NARROW = (1440, 900), (390, 844)


class Page:
    """The browser as the tests use it."""

    def __init__(self, driver) -> None:
        self.driver = driver

    def look(self, size: tuple[int, int] = WIDE, scheme: str = "light") -> None:
        """Set the width and the colour scheme."""
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500})
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {
            "features": [{"name": "prefers-color-scheme", "value": scheme}]})

    def open(self, address: str) -> None:
        self.driver.get("about:blank")  # so that a change of the part after # alone is a load, too
        self.driver.get(address)

    def run(self, script: str, *arguments: object):
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str = "body") -> str:
        return self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def count(self, selector: str) -> int:
        return self.run("return document.querySelectorAll(arguments[0]).length", selector)

    def click(self, selector: str) -> None:
        self.until(lambda: self.count(selector) > 0, f"{selector} to be there")
        self.run("document.querySelector(arguments[0]).click()", selector)

    def until(self, true: Callable[[], object], what: str = "", seconds: float = 20.0) -> float:
        """Wait for it. Returns how long that took."""
        began = time.monotonic()
        while not true():
            late = time.monotonic() - began >= seconds
            assert not late, f"waited {seconds} s for {what}; the page says: {self.text()[:1500]}"
            time.sleep(0.05)
        return time.monotonic() - began

    def painted(self) -> None:
        """Every chart on the page has drawn something."""
        drawn = "return [...document.querySelectorAll('.chart')].every(c => c.querySelector('canvas'))"
        self.until(lambda: self.run(drawn), "the charts")
        time.sleep(0.15)

    def show(self, address: str, place: str, sign: str) -> None:
        """Open a view and wait until it has its sign, a text, and its charts."""
        self.open(address + place)
        self.until(lambda: sign in self.text(), f"{sign!r} on {place}")
        self.painted()

    def in_every_look(self, looks: Sequence[tuple[tuple[int, int], str]], name: str, load: Callable[[], None]) -> None:
        """Load it in the first look; in every (size, scheme) nothing sticks out, the scheme is obeyed, and a picture is
        taken. No complaints at the end."""
        self.look(*looks[0])
        self.complaints()
        load()
        for size, scheme in looks:
            self.look(size, scheme)
            self.until(lambda width=size[0]: self.run("return document.documentElement.scrollWidth") <= width,
                       f"nothing to stick out sideways of {size[0]} points in {scheme}", 5)
            self.painted()
            background = self.run("return getComputedStyle(document.body).backgroundColor")
            light = sum(int(v) for v in background.strip("rgb()").split(",")[:3]) > 382
            assert light == (scheme == "light")
            self.shot(f"{name}-{size[0]}-{scheme}")
        assert self.complaints() == [], "no error, no broken policy, no request that was refused"

    def shot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        width = self.run("return window.innerWidth")
        height = min(3000, self.run("return document.documentElement.scrollHeight"))
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": max(600, height), "deviceScaleFactor": 1, "mobile": width < 500})
        time.sleep(0.3)
        self.driver.save_screenshot(str(SHOTS / f"{name}.png"))

    def complaints(self) -> list[str]:
        """What the browser's console says since the last time: errors and broken policies."""
        return [e["message"] for e in self.driver.get_log("browser") if e["level"] in ("SEVERE", "WARNING")]


@pytest.fixture(scope="session")
def page() -> Iterator[Page]:
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if importlib.util.find_spec("selenium") is None:
        pytest.skip("selenium is not installed (pip install '.[test]')")
    if binary is None or driver is None:
        pytest.skip("no chromium and chromedriver on PATH (Debian: apt install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield Page(browser)
    finally:
        browser.quit()


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., str]]:
    """serve(workspace, token=None) -> the address of a server over it, in this process."""
    import uvicorn

    from flows.dashboard.app import make_app

    running = []

    def start(workspace: Path, token: str | None = None) -> str:
        server = uvicorn.Server(uvicorn.Config(make_app(workspace, token), port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        running.append((server, thread))
        port = server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}/"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(10)
