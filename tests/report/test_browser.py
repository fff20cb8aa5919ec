"""The report in a real browser: on a desktop and on a phone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_experiment import HOSTILE, Maker, recipe

from hillclimb.report import build_report

DESKTOP, PHONE = (1280, 900), (390, 844)
CONTRAST = """
const style = getComputedStyle(document.documentElement);
const canvas = document.createElement("canvas").getContext("2d");
const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const luminance = (name) => {
  canvas.fillStyle = style.getPropertyValue(name);
  canvas.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const out = {};
for (const text of ["ink", "soft", "accent", "good", "bad", "c1", "c2", "c3", "c4"])
  for (const ground of ["bg", "card", "shade"]) {
    const pair = [luminance("--" + text), luminance("--" + ground)].sort((a, b) => b - a);
    out[text + " on " + ground] = (pair[0] + 0.05) / (pair[1] + 0.05);
  }
return out;
"""


def until(check: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait until `check` gives something true."""
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if found or time.monotonic() > deadline:
            assert found, "the page did not get there in time"
            return found
        time.sleep(0.05)


class Page:
    """A report that is open in a browser."""

    def __init__(self, driver: Any, path: Path, size: tuple[int, int], hash_: str = "") -> None:
        self.driver = driver
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.get("about:blank")
        driver.get_log("browser")
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get(f"file://{path}{hash_}")

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript and return its value."""
        return self.driver.execute_script(script, *arguments)

    def open_rollouts(self) -> None:
        """Scroll to the rollouts and wait for the list."""
        self.run("document.getElementById('rollouts').scrollIntoView()")
        until(lambda: self.items())

    def items(self) -> list[str]:
        """The text of the listed rollouts."""
        return list(
            self.run("return [...document.querySelectorAll('#ro-list a')].map(a => a.innerText)")
        )

    def count(self) -> int:
        """How many rollouts match."""
        return int(self.status().split(" of ")[0].replace(",", ""))

    def text(self, id_: str) -> str:
        """The text of an element."""
        return str(self.run("return document.getElementById(arguments[0]).innerText", id_))

    def status(self) -> str:
        """The line over the list, once it is settled."""
        return str(until(lambda: " of " in self.text("ro-count") and self.text("ro-count")))

    def set(self, name: str, value: str) -> None:
        """Fill in a filter as a reader does, and wait for the list to follow."""
        self.run(
            "const f = document.getElementById(arguments[0]);"
            "document.getElementById('ro-count').textContent = '';"
            "f.value = arguments[1]; f.dispatchEvent(new Event('input', {bubbles: true}));",
            name, value,
        )  # fmt: skip
        self.status()

    def detail(self) -> str:
        """The text of the open rollout."""
        return self.text("ro-detail")

    def errors(self) -> list[Any]:
        """What the console complained about."""
        return [entry for entry in self.driver.get_log("browser") if entry["level"] != "INFO"]


@pytest.fixture
def desktop(browser: Any, report: Path) -> Iterator[Page]:
    """The report on a desktop; the console must stay clean."""
    page = Page(browser, report, DESKTOP)
    yield page
    assert page.errors() == []


@pytest.fixture
def phone(browser: Any, report: Path) -> Iterator[Page]:
    """The report on a phone; the console must stay clean."""
    page = Page(browser, report, PHONE)
    yield page
    assert page.errors() == []


def test_filters_narrow_the_list(desktop: Page) -> None:
    desktop.open_rollouts()
    total = desktop.count()
    assert total == 60 * 3 * 8
    assert "page 1 of 29" in desktop.text("ro-page")
    desktop.set("ro-outcome", "fail")
    failed = desktop.count()
    assert 0 < failed < total
    assert all("✗" in item for item in desktop.items())
    desktop.set("ro-min", "0.45")
    assert 0 < desktop.count() < failed
    desktop.set("ro-min", "")
    desktop.set("ro-status", "filtered")
    assert 0 < desktop.count() < failed
    assert all("filtered" in item for item in desktop.items())
    desktop.run("document.querySelector('#ro-form [type=reset]').click()")
    until(lambda: desktop.text("ro-count").startswith("1,440 of 1,440"))


def test_text_search_reaches_prompt_response_and_reason(desktop: Page) -> None:
    desktop.open_rollouts()
    desktop.set("ro-climb", "stem/round_0/climb")
    everything = desktop.count()
    desktop.set("ro-text", "WHAT IS")
    assert desktop.count() == everything
    desktop.set("ro-text", "window.hacked=1")
    assert desktop.count() == 1
    desktop.set("ro-text", "no such words anywhere")
    assert desktop.count() == 0
    assert "No rollout matches" in desktop.text("ro-list")


def test_all_climbs_sort_and_page(desktop: Page) -> None:
    desktop.open_rollouts()
    desktop.set("ro-climb", "")
    assert desktop.count() == 7 * 1440
    desktop.set("ro-sort", "-reward")
    rewards = [float(item.splitlines()[-2]) for item in desktop.items()]
    assert rewards == sorted(rewards, reverse=True)
    assert rewards[0] > 1.49
    desktop.run("document.getElementById('ro-last').click()")
    assert "page 202 of 202" in desktop.text("ro-page")


def test_a_rollout_opens_with_its_parts_and_its_group(desktop: Page) -> None:
    desktop.open_rollouts()
    desktop.set("ro-text", "so it is")
    desktop.run("document.querySelectorAll('#ro-list a')[3].click()")
    text = until(lambda: "Prompt" in desktop.detail() and desktop.detail())
    for word in ("reward", "task", "language", "length", "turns", "tokens", "logprob", "problem"):
        assert word in text
    assert "expected" in text
    assert "What is" in text
    assert "so it is" in desktop.run("return document.querySelector('#ro-detail mark').textContent")
    assert desktop.run("return document.querySelectorAll('.ro-group a').length") == 8
    assert desktop.run("return location.hash").startswith("#rollout=mai_thinking/")
    before = desktop.run("return location.hash")
    desktop.run("document.querySelector('[aria-label=\"Next rollout\"]').click()")
    until(lambda: desktop.run("return location.hash") != before)


def test_a_rollout_shows_the_gap_of_each_token_to_pointer_and_keys(desktop: Page) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    desktop.open_rollouts()
    desktop.set("ro-status", "trained")
    desktop.set("ro-outcome", "pass")
    desktop.run("document.querySelector('#ro-list a').click()")
    pre = until(lambda: desktop.driver.find_elements(By.CSS_SELECTOR, "#ro-detail pre.tok"))[0]
    told = "return document.querySelector('.tok-told').innerText"
    gaps = [float(desktop.run(told).split("gap ")[1].split(";")[0])]
    pre.send_keys(Keys.HOME)
    for _ in range(3):
        said = desktop.run(told)
        gap, engine, learner = (
            float(said.split(f"{word} ")[1].split(";")[0].split(",")[0])
            for word in ("gap", "engine", "learner")
        )
        assert learner - engine == pytest.approx(gap, abs=2e-3)
        gaps.append(gap)
        pre.send_keys(Keys.RIGHT)
    assert abs(gaps[0]) == max(map(abs, gaps))
    pre.send_keys(Keys.RIGHT)
    assert "an observation, not drawn" in desktop.run(told)
    assert desktop.run("return document.querySelectorAll('#ro-detail .k.obs').length") == 2
    desktop.run("document.querySelector('#ro-detail .k[data-at=\"1\"]').click()")
    assert desktop.run(told).startswith("Token 2 of ")


def test_a_deep_link_opens_its_rollout_and_hostile_text_is_inert(
    browser: Any, report: Path
) -> None:
    page = Page(browser, report, DESKTOP, "#rollout=stem/round_0/climb/0")
    until(lambda: "stem/round_0/climb/0" in page.detail())
    assert HOSTILE in page.detail()
    assert page.run("return window.hacked") is None
    assert page.run("return document.images.length") == 0
    assert page.run("return document.getElementById('ro-climb').value") == "stem/round_0/climb"
    page.run("location.hash = '#rollout=stem/round_0/climb/999999'")
    until(lambda: "There is no rollout stem/round_0/climb/999999" in page.detail())
    assert page.errors() == []


def test_keyboard_walks_tabs_list_and_charts(desktop: Page) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    tab = desktop.driver.find_element(By.ID, "tab-stem")
    assert tab.get_attribute("aria-selected") == "true"
    tab.send_keys(Keys.ARROW_RIGHT)
    assert desktop.run("return document.activeElement.id") == "tab-agentic"
    assert desktop.run("return document.getElementById('climb-stem').hidden") is True
    chart = desktop.driver.find_element(By.CSS_SELECTOR, "#curve .panels")
    chart.send_keys(Keys.ARROW_RIGHT)
    tip = desktop.text("tip")
    assert "step" in tip
    assert "%" in tip
    desktop.open_rollouts()
    first = desktop.driver.find_element(By.CSS_SELECTOR, "#ro-list a")
    first.send_keys(Keys.ARROW_DOWN)
    assert desktop.run(
        "return document.activeElement === document.querySelectorAll('#ro-list a')[1]"
    )


def test_lineage_link_unfolds_its_stage(desktop: Page) -> None:
    desktop.run("location.hash = '#stage-stem-round_0-climb'")
    until(lambda: desktop.run("return document.getElementById('stage-stem-round_0-climb').open"))


def test_phone_has_no_sideways_scroll(phone: Page) -> None:
    phone.open_rollouts()
    phone.run("for (const d of document.querySelectorAll('details')) d.open = true")
    for tab in ("stem", "agentic", "helpfulness", "final"):
        phone.run(f"document.getElementById('tab-{tab}').click()")
        assert phone.run("return document.documentElement.scrollWidth") <= PHONE[0]
        assert phone.run("return window.innerWidth") == PHONE[0], "the page was zoomed out to fit"


def test_phone_opens_a_rollout_over_the_page_and_closes_it(phone: Page) -> None:
    phone.open_rollouts()
    phone.run("document.querySelectorAll('#ro-list a')[2].click()")
    until(lambda: "Response" in phone.detail())
    box = phone.run(
        "const b = document.getElementById('ro-detail').getBoundingClientRect();"
        "return [b.left, b.top, b.width, b.height]"
    )
    assert box == [0, 0, *PHONE]
    phone.run("document.querySelector('.ro-close').click()")
    shown = "return getComputedStyle(document.getElementById('ro-detail')).display"
    until(lambda: phone.run(shown) == "none")


def test_text_has_contrast_in_light_and_dark(browser: Any, report: Path) -> None:
    page = Page(browser, report, DESKTOP)
    try:
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            weak = {k: round(v, 2) for k, v in page.run(CONTRAST).items() if v < 4.5}
            assert weak == {}, scheme
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.slow("writes and opens forty thousand rollouts")
def test_forty_thousand_rollouts_stay_small_and_quick(browser: Any, tmp_path: Path) -> None:
    maker = Maker(str(tmp_path / "root"), recipe(), groups=12)
    maker.make(lambda spec: spec.kind == "climb")
    path = build_report(maker.store.root, recipe(), 0, tmp_path / "r.html")
    assert path.stat().st_size < 15_000_000
    page = Page(browser, path, DESKTOP)
    page.open_rollouts()
    page.set("ro-climb", "")
    assert page.count() == 7 * 60 * 12 * 8
    started = time.monotonic()
    page.set("ro-text", "is 42.")
    assert 0 < page.count() < 7 * 60 * 12 * 8
    assert time.monotonic() - started < 5
    assert page.errors() == []
