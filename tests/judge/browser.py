"""A browser for tests: Chromium without a window, driven over its DevTools protocol.

`look` opens pages at several widths and colour schemes and returns what a script in them says."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)  # fmt: skip
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio",
    "--no-first-run", "--disable-extensions", "--disable-background-networking",
    "--remote-debugging-port=0", "--hide-scrollbars", "--force-color-profile=srgb",
)  # fmt: skip
PATIENCE = 120  # seconds for an answer, on a busy machine


@dataclass
class Seen:
    """A page as one reader has it."""

    page: str
    width: int
    scheme: str
    facts: dict[str, Any]
    picture: Path
    focused: list[str] = field(default_factory=list)  # by the tab key, from the top


class Session:
    """One tab."""

    def __init__(self, socket: Any):
        self.socket, self.numbers, self.session = socket, itertools.count(1), ""

    async def call(self, method: str, **values: Any) -> dict[str, Any]:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": values}
        if self.session:
            message["sessionId"] = self.session
        await self.socket.send_str(json.dumps(message))
        while True:
            answer = json.loads((await self.socket.receive(timeout=PATIENCE)).data)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    async def run(self, script: str) -> Any:
        done = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in done:
            raise RuntimeError(str(done["exceptionDetails"])[:600])
        return done["result"].get("value")

    async def press_tab(self) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab",
                            windowsVirtualKeyCode=9)  # fmt: skip


@contextlib.asynccontextmanager
async def tab() -> AsyncIterator[Session]:
    import aiohttp

    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port, path = await port_of(Path(profile), process)
            async with (
                aiohttp.ClientSession() as http,
                http.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0) as socket,
            ):
                session = Session(socket)
                target = await session.call("Target.createTarget", url="about:blank")
                attached = await session.call(
                    "Target.attachToTarget", targetId=target["targetId"], flatten=True
                )
                session.session = attached["sessionId"]
                yield session
        finally:
            process.terminate()
            process.wait()


async def port_of(profile: Path, process: subprocess.Popen) -> tuple[str, str]:
    file, until = profile / "DevToolsActivePort", time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        lines = file.read_text().splitlines() if file.exists() else []
        if len(lines) == 2:
            return lines[0], lines[1]
        await asyncio.sleep(0.05)
    raise RuntimeError("Chromium did not start")


def look(
    pages: Sequence[Path], script: str, sizes: Sequence[tuple[int, str]], pictures: Path,
    tabs: int = 0, everything: bool = False,
) -> list[Seen]:  # fmt: skip
    """Open each page at each (width, scheme); run `script`; press the tab key `tabs` times.

    everything: the picture shows the whole page, not the first screen."""

    async def looks() -> list[Seen]:
        seen = []
        async with tab() as session:
            await session.call("Page.enable")
            for page, (width, scheme) in itertools.product(pages, sizes):
                scheme_is = [{"name": "prefers-color-scheme", "value": scheme}]
                media = "print" if scheme == "print" else "screen"
                await session.call("Emulation.setEmulatedMedia", media=media, features=scheme_is)
                await session.call("Emulation.setDeviceMetricsOverride", width=width, height=900,
                                   deviceScaleFactor=1, mobile=False)  # fmt: skip
                await session.call("Page.navigate", url=page.resolve().as_uri())
                while await session.run("document.readyState") != "complete":
                    await asyncio.sleep(0.05)
                facts = await session.run(script)
                part = {"clip": await whole(session)} if everything else {}
                shot = await session.call(
                    "Page.captureScreenshot", captureBeyondViewport=everything, **part
                )
                file = pictures / f"{page.stem}-{width}-{scheme}.png"
                file.write_bytes(base64.b64decode(shot["data"]))
                one = Seen(page.name, width, scheme, facts, file)
                for _ in range(tabs):
                    await session.press_tab()
                    one.focused.append(await session.run(FOCUSED))
                seen.append(one)
        return seen

    return asyncio.run(looks())


async def whole(session: Session) -> dict[str, float]:
    height = await session.run("document.documentElement.scrollHeight")
    width = await session.run("innerWidth")
    return {"x": 0, "y": 0, "width": width, "height": min(height, 16000), "scale": 1}


# what has the focus, and whether that can be seen
FOCUSED = """(() => {const e = document.activeElement, s = getComputedStyle(e);
 const words = (e.textContent || e.getAttribute('aria-label') || '').trim().slice(0, 60);
 return [e.tagName, s.outlineStyle, words].join('|')})()"""


def axe() -> Path | None:
    """axe.min.js of the package axe-core, where AXE names it; it is in no requirement file."""
    place = os.environ.get("AXE")
    return Path(place) if place else None
