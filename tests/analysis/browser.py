"""A headless Chromium, controlled through a pipe with its DevTools protocol."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 60.0
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


class Page:
    """One tab. complaints: console messages and exceptions; requests: the URLs requested."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing, self._buffer = reading, writing, b""
        self._number, self._session = 0, None
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reading], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no message from Chromium for {SECONDS:.0f} s"
            self._buffer += os.read(self._reading, 1 << 20)
        text, _, self._buffer = self._buffer.partition(b"\0")
        event = json.loads(text)
        if event.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.complaints.append(json.dumps(event["params"]))
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(event["params"]["request"]["url"])
        return event

    def open(self, file: Path, width: int, height: int = 900, *, dark: bool = False, media: str = "") -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        self.call("Page.navigate", url=file.absolute().as_uri())
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def ask(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, userGesture=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def click(self, script: str) -> None:
        """A real click at the centre of the element that the expression returns."""
        self.ask(f"{script}.scrollIntoView({{block: 'center', inline: 'center'}})")
        box = self.ask(f"(r => ({{x: r.x + r.width / 2, y: r.y + r.height / 2}}))({script}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **box)

    def point_at(self, script: str) -> None:
        """Move the pointer to the centre of the element that the expression returns."""
        box = self.ask(f"(r => ({{x: r.x + r.width / 2, y: r.y + r.height / 2}}))({script}.getBoundingClientRect())")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **box)

    def screenshot(self, path: Path) -> None:
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(picture))


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Chromium with one empty tab. It reads commands from file descriptor 3 and answers on 4."""
    assert CHROMIUM is not None
    ours_in, theirs_out = (_high(fd) for fd in os.pipe())
    theirs_in, ours_out = (_high(fd) for fd in os.pipe())

    def connect() -> None:
        os.dup2(theirs_in, 3)
        os.dup2(theirs_out, 4)

    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--remote-debugging-pipe", "--no-first-run", "--disable-background-networking", "--hide-scrollbars"]
    command += [f"--user-data-dir={profile}"]
    none = subprocess.DEVNULL
    child = subprocess.Popen(command, preexec_fn=connect, pass_fds=(3, 4), stdin=none, stdout=none, stderr=none)
    for fd in (theirs_in, theirs_out):
        os.close(fd)
    try:
        yield Page(ours_in, ours_out)
    finally:
        child.kill()
        child.wait()
        for fd in (ours_in, ours_out):
            os.close(fd)


def _high(fd: int) -> int:
    """The same file under a descriptor of at least 10, to keep 3 and 4 free."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(fd)
    return moved
