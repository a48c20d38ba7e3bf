"""A headless Chromium, driven over its DevTools protocol: opens a file, tells what happened, takes a picture."""

from __future__ import annotations

import asyncio
import base64
import itertools
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_START_S, _ANSWER_S = 90, 60  # on a machine with other work


def find_browser() -> str | None:
    """The path of a Chromium, None where there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@dataclass
class Opened:
    """What a page did while it was opened, and what was asked of it."""

    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    picture: bytes = b""


class Browser:
    """One Chromium process; every page is opened in a tab of its own."""

    def __init__(self, path: str, folder: Path) -> None:
        """Start it with its profile in `folder`."""
        switches = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        switches += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        switches += ["--disable-dev-shm-usage", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
        self._process = subprocess.Popen(
            [path, *switches, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        told = folder / "DevToolsActivePort"
        until = time.monotonic() + _START_S
        while not (told.exists() and len(told.read_text().split()) == 2):
            if self._process.poll() is not None or time.monotonic() > until:
                self.close()
                raise RuntimeError("Chromium did not start")
            time.sleep(0.05)
        port, place = told.read_text().split()
        self._place = f"ws://127.0.0.1:{port}{place}"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def open(
        self, page: Path, width: int = 1280, scheme: str = "light", ask: dict[str, str] | None = None, media: str = ""
    ) -> Opened:
        """Open a local page `width` CSS pixels wide and evaluate each JavaScript expression of `ask` in it.

        The picture is the whole page as a PNG.
        """
        return asyncio.run(self._open(page, width, scheme, ask or {}, media))

    async def _open(self, page: Path, width: int, scheme: str, ask: dict[str, str], media: str) -> Opened:
        opened, loaded = Opened(), asyncio.Event()
        async with aiohttp.ClientSession() as session, session.ws_connect(self._place, max_msg_size=0) as socket:
            waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
            numbers = itertools.count(1)

            async def listen() -> None:
                async for message in socket:
                    told = message.json()
                    if "id" in told:
                        waiting.pop(told["id"]).set_result(told)
                    else:
                        _note(told, opened, loaded)

            async def send(method: str, tab: str | None = None, **params: Any) -> dict[str, Any]:
                number = next(numbers)
                waiting[number] = asyncio.get_running_loop().create_future()
                await socket.send_json(
                    {"id": number, "method": method, "params": params, **({"sessionId": tab} if tab else {})}
                )
                told = await asyncio.wait_for(asyncio.shield(waiting[number]), _ANSWER_S)
                assert "error" not in told, told
                return told["result"]

            listening = asyncio.create_task(listen())
            target = (await send("Target.createTarget", url="about:blank"))["targetId"]
            tab = (await send("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                await send(f"{domain}.enable", tab)
            is_phone = width < 600
            await send(
                "Emulation.setDeviceMetricsOverride", tab, width=width, height=844, deviceScaleFactor=1, mobile=is_phone
            )
            schemes = [{"name": "prefers-color-scheme", "value": scheme}]
            await send("Emulation.setEmulatedMedia", tab, media=media, features=schemes)
            opened.requests.clear()
            await send("Page.navigate", tab, url=page.absolute().as_uri())
            await asyncio.wait_for(loaded.wait(), _ANSWER_S)
            for name, expression in ask.items():
                told = await send("Runtime.evaluate", tab, expression=expression, returnByValue=True)
                assert "exceptionDetails" not in told, told
                opened.values[name] = told["result"].get("value")
            picture = await send("Page.captureScreenshot", tab, captureBeyondViewport=True)
            opened.picture = base64.b64decode(picture["data"])
            await send("Target.closeTarget", targetId=target)
            listening.cancel()
        return opened


def _note(told: dict[str, Any], opened: Opened, loaded: asyncio.Event) -> None:
    params = told.get("params", {})
    match told["method"]:
        case "Network.requestWillBeSent":
            opened.requests.append(params["request"]["url"])
        case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown":
            opened.messages.append(str(params))
        case "Log.entryAdded":
            opened.messages.append(params["entry"]["text"])
        case "Page.loadEventFired":
            loaded.set()
