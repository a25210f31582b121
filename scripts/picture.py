"""Pictures of the page, as docs/images has them.

    python scripts/picture.py WORKSPACE '#/run/demo' docs/images/run.png [--size 1440x1000] [--dark] [--from SELECTOR]

It serves the workspace, opens the view in Chromium (Debian: chromium, chromium-driver; pip install '.[test]') and saves
what the window shows, from the first element that matches SELECTOR on. Nothing is changed in the workspace.
"""

import argparse
import shutil
import sys
import threading
import time
from pathlib import Path

import uvicorn
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from flows.dashboard.app import make_app

READY = """return document.querySelector('main h1') && !document.querySelector('main[aria-busy]')
           && [...document.querySelectorAll('.chart')].every((c) => c.querySelector('canvas'))"""
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("workspace", type=Path)
    words.add_argument("view")
    words.add_argument("file", type=Path)
    words.add_argument("--size", default="1440x1000")
    words.add_argument("--dark", action="store_true")
    words.add_argument("--from", dest="first", default="body")
    given = words.parse_args()
    server = uvicorn.Server(uvicorn.Config(make_app(given.workspace.resolve()), port=0, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    options = Options()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    for argument in ARGUMENTS:
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        wide, high = map(int, given.size.split("x"))
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": wide, "height": high, "deviceScaleFactor": 1, "mobile": wide < 500})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {
            "features": [{"name": "prefers-color-scheme", "value": "dark" if given.dark else "light"}]})
        browser.get(address + given.view)
        deadline = time.monotonic() + 60
        while not browser.execute_script(READY):
            if time.monotonic() > deadline:
                print(f"{given.view}: nothing was drawn within a minute", file=sys.stderr)
                return 1
            time.sleep(0.1)
        time.sleep(1.0)  # the charts' last frame
        top = browser.execute_script(
            "document.getElementById('top').style.position = 'static';"
            "const e = document.querySelector(arguments[0]); return e ? e.getBoundingClientRect().top + scrollY : 0",
            given.first)
        browser.execute_script("window.scrollTo(0, arguments[0])", max(0, top - 14) if top else 0)
        time.sleep(0.3)
        given.file.parent.mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(given.file))
    finally:
        browser.quit()
        server.should_exit = True
    return 0


if __name__ == "__main__":
    sys.exit(main())
