"""Headless Chromium through its driver, in the few words of WebDriver that the tests need."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key that WebDriver gives an element under
PATIENCE = 60.0  # seconds for what a busy machine may take


def find_chromium() -> tuple[str, str] | None:
    """The browser and its driver, or None where one is missing."""
    browsers = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    driver = shutil.which("chromedriver")
    browser = next(browsers, None)
    return (browser, driver) if browser and driver else None


class Browser:
    """A page in a window of its own profile."""

    def __init__(self, width: int = 1100, height: int = 900, camera: bool = True):
        browser, driver = find_chromium() or ("", "")
        self._driver = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._driver.stdout is not None
        for line in self._driver.stdout:
            if "started successfully on port " in line:
                self._url = f"http://127.0.0.1:{line.rsplit('on port ', 1)[1].strip().rstrip('.')}"
                break
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},{height}"]
        arguments += [
            "--disable-background-networking",
            "--no-first-run",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
        ]
        if camera:
            arguments += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        options = {"binary": browser, "args": arguments}
        capabilities = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        self._session = ""
        self._session = self._call("POST", "/session", {"capabilities": capabilities})["sessionId"]

    def close(self) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait()

    def open(self, address: str) -> None:
        self._call("POST", "/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        """What JavaScript returns, or what its promise comes to."""
        wrapped = f"return (async () => {{ {script} }})(...arguments)"
        return self._call("POST", "/execute/sync", {"script": wrapped, "args": list(arguments)})

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def click(self, selector: str) -> None:
        self._call("POST", f"/element/{self._find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Type a text, or for a file input choose the files of these paths, one a line."""
        self._call("POST", f"/element/{self._find(selector)}/value", {"text": text})

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0])?.textContent ?? ''", selector)

    def wait(self, condition: str, *arguments: Any) -> Any:
        """What a JavaScript expression gives, once that is true."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if value := self.run(f"return {condition}", *arguments):
                return value
            time.sleep(0.05)
        raise AssertionError(f"{condition} did not become true; the page says {self.text('#problem')!r}")

    def press(self, key: str) -> None:
        """A key of the keyboard, such as "Tab", for what has the focus."""
        codes = {"Tab": ("Tab", 9, ""), "Enter": ("Enter", 13, "\r"), "Space": ("Space", 32, " ")}
        code, number, text = codes[key]
        common = {"key": text if text == " " else code, "code": code, "windowsVirtualKeyCode": number}
        self.devtools("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        self.devtools("Input.dispatchKeyEvent", type="keyUp", **common)

    def log(self) -> list[str]:
        """What the page wrote to its console, and what the browser complained about."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, path: Path, whole: bool = True) -> None:
        data = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def _find(self, selector: str) -> str:
        return self._call("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        session = f"/session/{self._session}" if self._session else ""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._url}{session}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None
