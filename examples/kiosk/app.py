"""A film kiosk on the SDK: one page, served from this machine, for this machine.

    python examples/kiosk/app.py

Nothing that a person taps is logged, and no page of another origin may ask: requests must name this host, and what
changes anything must bear a header that no foreign page can send.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fedrec import Device, FedrecError
from idle import Idle
from policy import DATA, shipped
from pydantic import BaseModel, ConfigDict
from screen import Screen
from starlette.middleware.trustedhost import TrustedHostMiddleware

HOST = "127.0.0.1"
STATIC = Path(__file__).with_name("static")
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
GoOn = Callable[[Request], Awaitable[Response]]


class Nothing(BaseModel):
    """A body without fields. A misspelt or unknown one is refused: "items" for "item" would forget everything."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Wall(Nothing):
    """The wall that is meant."""

    slate: str


class Film(Nothing):
    """A film's id."""

    item: str


class Tap(Wall, Film):
    """A film on a wall."""


class Consent(Nothing):
    """Whether training is allowed."""

    given: bool


class Forget(Nothing):
    """A film's id; none: everything."""

    item: str | None = None


def create_app(device: Device, idle: Idle | None = None) -> FastAPI:
    """The app around ``device``, which it closes when it ends; with ``idle`` it forgets a person who has gone."""
    screen = Screen(device, idle)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watch = asyncio.create_task(_watch(screen))
        yield
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        device.close()

    app = FastAPI(title="fedrec kiosk", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    app.middleware("http")(_of_the_page(screen))
    app.add_exception_handler(FedrecError, _sentence)
    app.add_exception_handler(ValueError, _sentence)
    app.add_exception_handler(RequestValidationError, _unfit)
    _routes(app, screen)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


def _routes(app: FastAPI, screen: Screen) -> None:
    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/api/view")
    def view() -> dict[str, Any]:
        return screen.show()

    @app.post("/api/like")
    def like(body: Tap) -> dict[str, Any]:
        return screen.like(body.slate, body.item)

    @app.post("/api/others")
    def others(body: Wall) -> dict[str, Any]:
        return screen.others(body.slate)

    @app.post("/api/reasons")
    def reasons(body: Film) -> dict[str, Any]:
        return screen.reasons(body.item)

    @app.post("/api/adapt")
    def adapt(_: Nothing) -> dict[str, Any]:
        return screen.adapt()

    @app.post("/api/consent")
    def consent(body: Consent) -> dict[str, Any]:
        return screen.consent(body.given)

    @app.post("/api/rehearse")
    def rehearse(_: Nothing) -> dict[str, Any]:
        return screen.rehearse()

    @app.post("/api/forget")
    def forget(body: Forget) -> dict[str, Any]:
        return screen.forget(body.item)

    @app.post("/api/here")
    def here(_: Nothing) -> dict[str, Any]:
        return screen.here()

    @app.post("/api/export")
    def export(_: Nothing) -> dict[str, Any]:
        return screen.export()


async def _watch(screen: Screen) -> None:
    """Forgets whoever has gone, whether a page is open or not."""
    while True:
        await asyncio.sleep(1)
        try:
            await asyncio.to_thread(screen.leave)
        except FedrecError as error:
            print(f"kiosk: {error}", file=sys.stderr, flush=True)
            await asyncio.sleep(60)


def _of_the_page(screen: Screen) -> Callable[[Request, GoOn], Awaitable[Response]]:
    """Lets only the kiosk's own page do anything, and takes that as a sign of somebody who is there."""

    async def checked(request: Request, go_on: GoOn) -> Response:
        if request.method != "GET":
            if request.headers.get("X-Kiosk") != "1":
                return JSONResponse({"detail": "expected a request of the kiosk's own page, got another"}, 403)
            screen.here()
        response = await go_on(request)
        response.headers.update(HEADERS)
        return response

    return checked


async def _sentence(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 409)


async def _unfit(_: Request, error: Exception) -> JSONResponse:
    """Says where the body is wrong, without its values: JSON can't hold all that a body may (NaN, half characters)."""
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": "something else"}
    place = repr("/".join(str(part) for part in first["loc"]))[:60]
    sentence = f"expected the fields of this call, got a wrong one at {place}: {first['msg']}"
    return JSONResponse({"detail": sentence}, 422)


def open_device(home: Path, data: str = "synthetic", **changes: Any) -> Device:
    """The device in ``home``, with the policy that the kiosk ships with; both are made the first time."""
    home.mkdir(parents=True, exist_ok=True)
    package = shipped(home, data, _progress, **changes)
    path = home / "device.sqlite"
    device = Device.open(path) if path.exists() else Device.create(path, package)
    if device.status().versions.get("current", 0) < package.version:
        device.adopt(package)
    return device


def _progress(text: str) -> None:
    print(f"preparing the policy: {text}", file=sys.stderr, flush=True)


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"expected minutes >= 0, got {text!r}")
    return value


def main() -> None:
    """Serve the kiosk until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A film kiosk that learns on this device.")
    parser.add_argument("--home", type=Path, help="where policy, device and ledger lie (default: runs/kiosk/DATA)")
    parser.add_argument("--data", choices=DATA, default="synthetic", help="invented films, or those of MovieLens 100K")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument(
        "--forget-after",
        type=_minutes,
        default=5.0,
        metavar="MINUTES",
        help="forget the person when nobody has touched the screen for so long (default: 5); 0: never",
    )
    chosen = parser.parse_args()
    try:
        device = open_device(chosen.home or Path("runs/kiosk") / chosen.data, chosen.data)
    except FedrecError as error:
        sys.exit(f"kiosk: {error}")
    app = create_app(device, Idle(60 * chosen.forget_after) if chosen.forget_after else None)
    print(f"the kiosk is open: http://{HOST}:{chosen.port} (Ctrl-C ends it)", flush=True)
    uvicorn.run(app, host=HOST, port=chosen.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
