"""One Chromium for all browser tests, without which they are skipped, unless TIGHTGRAD_REQUIRE_BROWSER=1."""

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from browser.fixture_runs import write_runs
from browser.opened import Opened
from support.drawing import without_png
from tightgrad_lab import report

# The shell draws pages as Chromium does, without a window and its menus: these tests took a quarter less CPU time.
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in BROWSERS if (found := shutil.which(name))), None)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        reason = "no Chromium on PATH; install the `chromium` package to run the browser tests"
        if os.environ.get("TIGHTGRAD_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module", autouse=True)
def _without_png() -> Iterator[None]:
    with without_png():
        yield


@pytest.fixture(scope="module")
def kept(chromium: Any) -> Iterator[Callable[..., Opened]]:
    """Opens a page once for all tests of a file that look at it in the same window and colours, and leave it alone."""
    pages: dict[tuple[Any, ...], Opened] = {}

    def once(file: Path, width: int, scheme: str, height: int = 900) -> Opened:
        view = file, width, scheme, height
        if view not in pages:
            pages[view] = Opened(chromium, *view)
        return pages[view]

    yield once
    for one in pages.values():
        one.page.close()


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Gives the folder of the report of so many seeds, which is to be read only: each is built once."""

    @functools.cache
    def once(seeds: int) -> Path:
        root = tmp_path_factory.mktemp("report")
        report.build(write_runs(root / "runs", seeds=seeds), root / "out")
        return root / "out"

    return once
