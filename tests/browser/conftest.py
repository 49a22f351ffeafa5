"""The app with tiny models, a stand-in for the Hub, and a browser. Without Chromium these tests fail; no skipping."""

import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.helpers.hub_server import hub_server
from tests.helpers.space import PATIENCE, AppServer

from .driving import visit


CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-background-networking", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
]  # fmt: skip


@pytest.fixture(scope="module")
def hub():
    with hub_server() as server:
        yield server


@pytest.fixture(scope="module")
def served(tiny_prior, tmp_path_factory, hub):
    with AppServer(tmp_path_factory.mktemp("app"), tiny_prior, hub.address) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        expect.set_options(timeout=1000 * PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, served):
    page = visit(browser, served.url)
    yield page
    page.context.close()
