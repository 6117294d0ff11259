"""The report's page in a real browser: sorting, pointing, pages of runs, both widths; nothing is fetched."""

import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from analysis.report.page import write_report
from tests.report_runs import add_videos, write_report_results

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (make setup EXTRAS=browser)")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.extra("browser"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)"),
]
# Without these a browser asks its maker for updates at every start.
QUIET = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
ROOT_NEEDS = ["--no-sandbox"] * (os.geteuid() == 0)
RUN = "cube-double/cube-double-task2/fql/seed_003"  # the failed one


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *ROOT_NEEDS])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = write_report_results(tmp_path_factory.mktemp("report"))
    add_videos(root / RUN)
    write_report(root, root / "report.html")
    return (root / "report.html").as_uri()


@pytest.fixture(params=[1440, 390])
def page(browser: Any, report: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The report at the width of a desktop and of a phone; at the end no error, and nothing else was asked for."""
    page = browser.new_page(viewport={"width": request.param, "height": 900}, has_touch=request.param == 390)
    page.set_default_timeout(10_000)
    messages: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda asking: asked.append(asking.url.split("#")[0]))
    page.goto(report)
    yield page
    page.close()
    assert messages == []
    assert {url for url in asked if not url.startswith("data:")} == {report}


def column(table: Any, number: int) -> list[str]:
    return table.locator(f"tbody tr > :nth-child({number})").all_inner_texts()


def no_wider_than_the_screen(page: Any) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_heading_that_is_pressed_sorts_by_number_and_back(page: Any):
    table = page.locator("#suite-cube-double table").first
    heading = table.locator("th", has_text="final")
    button = heading.get_by_role("button")
    assert heading.get_attribute("aria-sort") is None
    button.click()
    falling = [float(text.split()[0]) for text in column(table, 3)]
    assert heading.get_attribute("aria-sort") == "descending"
    assert falling == sorted(falling, reverse=True) and len(set(falling)) > 3
    button.focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [float(text.split()[0]) for text in column(table, 3)] == falling[::-1]
    table.locator("th", has_text="agent").get_by_role("button").click()
    assert column(table, 1) == ["FQL", "my_agent", "QC-FQL", "SAC Flow-G", "SAC Flow-T"]
    assert heading.get_attribute("aria-sort") is None


def place_of(page: Any, figure: Any, name: str, kind: str = "mean") -> tuple[float, float]:
    """Pixels of the fourth point of an agent's mean (or of its first run) in a chart, read from what is drawn."""
    figure.scroll_into_view_if_needed()
    figure.locator(".over").wait_for()
    agent = page.locator(".agent", has_text=name).first.get_attribute("data-toggle")
    path = figure.locator(f'[data-agent="{agent}"] .{kind}').get_attribute("d")
    x, y = re.split("[ML]", path)[4].split()
    box = figure.locator("svg").first.bounding_box()
    return box["x"] + float(x), box["y"] + float(y)


def test_point_that_is_hovered_tells_its_step_and_value(page: Any):
    figure = page.locator("#suite-cube-double figure.whole")
    x, y = place_of(page, figure, "my_agent")
    page.mouse.move(x, y)
    tip = page.locator("#tooltip")
    title, value, step = tip.inner_text().split("\n")
    assert title == "my_agent, mean of 19 runs"
    assert re.fullmatch(r"success rate 0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", value)
    assert step == "offline update 300"
    box = tip.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= page.viewport_size["width"]
    page.mouse.move(1, 1)
    assert not tip.is_visible()


def test_profile_tells_the_share_of_runs_above_a_level(page: Any):
    figure = page.locator("#suite-cube-double figure.profile")
    figure.scroll_into_view_if_needed()
    figure.locator(".over").wait_for()
    figure.focus()
    page.keyboard.press("ArrowRight")
    title, value, level = page.locator("#tooltip").inner_text().split("\n")
    assert (title, level) == ("SAC Flow-G", "above 0.00")
    assert value == "share of runs 1.000", "no limits where there is no spread"


def test_keyboard_moves_along_the_means(page: Any):
    figure = page.locator("#suite-cube-double figure.whole")
    place_of(page, figure, "FQL")
    figure.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    title, _, step = page.locator("#tooltip").inner_text().split("\n")
    assert (title, step) == ("SAC Flow-T, mean of 20 runs", "offline update 100")
    page.keyboard.press("Escape")
    assert not page.locator("#tooltip").is_visible()


def test_legend_hides_an_agent_in_every_chart(page: Any):
    for figure in (
        page.locator("#suite-cube-double figure.whole"),
        page.locator("#suite-cube-double .panels figure").first,
    ):
        place_of(page, figure, "FQL")
    button = page.locator("#suite-cube-double .agent", has_text="SAC Flow-T")
    number = button.get_attribute("data-toggle")
    lines = page.locator(f'.chart [data-agent="{number}"] .mean')
    count = lines.count()
    assert count >= 2 and all(line.is_visible() for line in lines.all())
    button.click()
    assert not any(line.is_visible() for line in lines.all())
    pressed = page.locator(f'[data-toggle="{number}"]')
    assert {other.get_attribute("aria-pressed") for other in pressed.all()} == {"false"}
    button.click()
    assert all(line.is_visible() for line in lines.all())


def test_run_that_is_pressed_in_a_chart_opens_its_page(page: Any):
    figure = page.locator("#suite-raw figure.whole")
    x, y = place_of(page, figure, "SAC Flow-G", "runs")
    page.mouse.move(x, y)
    title, value, step = page.locator("#tooltip").inner_text().split("\n")
    assert (title, value, step) == ("SAC Flow-G on reach, seed 0", "return -9", "online step 20")
    page.mouse.click(x, y)
    assert page.locator("#run h1").inner_text() == "SAC Flow-G on reach, seed 0"
    assert page.locator("#run figcaption").first.inner_text() == "mean return"


def test_finger_reads_a_run_first_and_opens_it_then(browser: Any, report: str):
    page = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.goto(report)
    x, y = place_of(page, page.locator("#suite-raw figure.whole"), "SAC Flow-G", "runs")
    page.touchscreen.tap(x, y)
    assert page.locator("#tooltip").inner_text().startswith("SAC Flow-G on reach, seed 0")
    assert page.locator("#report").is_visible()
    page.touchscreen.tap(x, y)
    assert page.locator("#run h1").inner_text() == "SAC Flow-G on reach, seed 0"
    page.close()


def test_single_runs_can_be_left_out(page: Any):
    figure = page.locator("#suite-raw figure.whole")
    x, y = place_of(page, figure, "SAC Flow-G", "runs")
    page.locator("#suite-raw [data-runs]").uncheck()
    assert not figure.locator(".runs").is_visible()
    page.mouse.move(x, y)
    assert "seed 0" not in page.locator("#tooltip").text_content()


def test_run_page_opens_and_goes_back_to_where_the_reader_was(page: Any):
    link = page.locator("#failures a").first
    link.scroll_into_view_if_needed()
    before = page.evaluate("scrollY")
    link.click()
    run = page.locator("#run")
    assert run.locator("h1").inner_text() == "FQL on cube-double-task2, seed 3"
    assert not page.locator("#report").is_visible()
    assert page.title() == f"{RUN}: run"
    assert "critic_loss is not finite at online step 31" in run.locator(".banner").inner_text()
    assert "<script>" in run.locator("pre").inner_text()
    captions = run.locator("figcaption").all_inner_texts()
    assert {"success rate", "mean return", "critic_loss", "updates_per_second"} <= set(captions)
    first = run.locator("figure.chart").first
    first.locator(".over").wait_for()
    assert first.locator("circle").count() == 9
    picture = run.locator("img")
    assert picture.evaluate("image => image.complete && image.naturalWidth") == 1
    assert no_wider_than_the_screen(page)
    page.go_back()
    assert page.locator("#report").is_visible() and not run.is_visible()
    assert abs(page.evaluate("scrollY") - before) < 5
    assert page.title().startswith("o2o-bench report")


def test_page_is_never_wider_than_the_screen(page: Any):
    assert no_wider_than_the_screen(page)
    page.evaluate("document.querySelectorAll('details').forEach((details) => (details.open = true))")
    assert no_wider_than_the_screen(page)
    for table in page.locator("#report .scroll").all():
        assert table.evaluate("box => box.getBoundingClientRect().right <= innerWidth")


def test_all_charts_are_drawn_before_printing(page: Any):
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("figure.chart").count() == page.locator("figure.chart .over").count() == 10
    closed = page.locator("#report section:not(#runs) details:not([open])")
    assert closed.count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert closed.count() > 0
