"""The Dagster UI in a real browser: it shows the graph and launches one stage."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    StaleElementReferenceException,
)
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from hillclimb.artifacts import Store
from hillclimb.experiments import Experiment

pytestmark = [pytest.mark.e2e("starts Dagster, MLflow and a browser"), pytest.mark.timeout(600)]
COMMAND = Path(sys.executable).parent / "hillclimb"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--window-size=1500,1000"
).split()


def until(probe: Callable[[], object], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not probe():
        assert time.monotonic() < end, what
        time.sleep(0.5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one made stage, so that its experiment is known."""
    folder = tmp_path_factory.mktemp("ui") / "root"
    subprocess.run(
        [COMMAND, "climb", "--recipe", "smoke", "--root", folder, "--select", "stem_problems"],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    """The address of `hillclimb ui`."""
    port, mlflow = free_port(), free_port()
    server = subprocess.Popen(
        [COMMAND, "ui", "--root", root, "--port", str(port), "--mlflow-port", str(mlflow)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if line.startswith("Ctrl-C"):
                break
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver) and "CI" not in os.environ:
        pytest.skip("Chromium and its driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium or "chromium"
    for flag in (*FLAGS, f"--user-data-dir={tmp_path}"):
        options.add_argument(flag)
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


def click(browser: webdriver.Chrome, text: str) -> bool:
    with contextlib.suppress(StaleElementReferenceException, ElementClickInterceptedException):
        for button in browser.find_elements(By.CSS_SELECTOR, "button"):
            if button.text.strip().startswith(text) and button.is_enabled():
                button.click()
                return True
    return False


def test_the_graph_is_shown(browser: webdriver.Chrome, address: str) -> None:
    query = "view=lineage&lineageScope=upstream&lineageDepth=1"
    browser.get(f"{address}/assets/stem/round_0/climb?{query}")
    wanted = ("mai_base_256k", "tokenizer", "stem_problems")
    page = "return document.body.innerText"
    until(
        lambda: all(name in browser.execute_script(page) for name in wanted),
        150,
        "the graph does not show the base's stages",
    )


def test_one_stage_is_launched(browser: webdriver.Chrome, address: str, root: Path) -> None:
    plan, store = Experiment.make("smoke", 0).plan(), Store(str(root))
    name = "helpfulness_problems"
    assert store.find(name, plan.fingerprints[name]) is None
    browser.get(f"{address}/assets/{name}")
    until(lambda: click(browser, "Materialize"), 150, "no button to materialise")
    until(lambda: click(browser, "All"), 60, "no choice of all partitions")
    until(lambda: click(browser, "Launch"), 60, "no button to launch")
    until(lambda: store.find(name, plan.fingerprints[name]), 180, "the stage was not made")
