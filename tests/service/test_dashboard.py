"""The dashboard in headless Chromium: tiles, table, detail chart, submit dialog, refresh.

Needs Chromium and its driver; skipped without them unless CS336_REQUIRE_BROWSER=1. Screenshots go to the folder
named by CS336_SCREENSHOTS, for people to look at.
"""

import os
import re
import socket
import threading
import time
from pathlib import Path

import pytest
import uvicorn

from cs336.service.api_2026 import users_router
from cs336.service.app import Part, create_app
from cs336.service.job_models import FinalSubmissionBody, Finish, Started, ValidationLoss
from cs336.service.jobs import Jobs
from cs336.service.keys import add_key
from cs336.service.state import Settings
from tests.browser import headless_chromium
from tests.service.job_examples import architecture, body, config

PATIENCE_SECONDS = 60


class Site:
    """A server with one user's jobs, in a thread."""

    def __init__(self, folder: Path):
        app = create_app(
            Settings(database_url=f"sqlite:///{folder}/service.db", log_file=folder / "log"),
            [Part(router=users_router(num_train_tokens=10**10))],
        )
        self.database = app.state.service.database
        self.jobs = Jobs(self.database)
        self.key = add_key(self.database, "ada")
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})
        self.thread.start()

    def stop(self):
        self.server.should_exit = True
        self.thread.join()

    def add(self, losses=(), *, used=None, failure=None, error=None, waits=False, **changes):
        """A job with some losses; ended if it used time."""
        experiment_id, _ = self.jobs.submit(1, config(**changes))
        if waits:
            return experiment_id
        (job,) = self.jobs.dispatch(1_000)
        self.jobs.worker_event(experiment_id, Started(type="started", run_id=job.run_id))
        for number, loss in enumerate(losses):
            self.say_loss(experiment_id, job.run_id, number, loss)
        if used is not None:
            end = Finish(run_id=job.run_id, used_seconds=used, failure=failure, error=error)
            self.jobs.finish(experiment_id, end)
        return experiment_id

    def say_loss(self, experiment_id, run_id, number, loss):
        event = ValidationLoss(type="validation_loss", run_id=run_id, number=number, loss=loss)
        self.jobs.worker_event(experiment_id, event)


def curve(end, count=16):
    return [end + 6 / (1 + number) ** 0.8 for number in range(count)]


def shaped(width, layers, **changes):
    heads = width // 64
    shape = {"hidden_size": width, "num_hidden_layers": layers, "head_dim": 64, "vocab_size": 32_000}
    shape |= {"num_attention_heads": heads, "num_key_value_heads": heads, "intermediate_size": 3 * width}
    return {
        "architecture": architecture(**shape),
        "n_evals": 16,
        "train_batch_size": 32,
        "total_train_tokens": 2**14 * 640,
    } | changes


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path)
    adamw = {"type": "adamw", "schedule": {"peak_value": 0.003}}
    site.add(curve(3.9), used=412.0, **shaped(256, 4, optimizer=adamw))
    site.add(curve(3.6), used=1_730.5, max_runtime_seconds=3_600, **shaped(512, 8, optimizer=adamw))
    site.add(curve(4.4, 9), used=600.0, failure="timeout", error="600 s were over", **shaped(768, 12))
    site.add(used=0.0, failure="unexpected", error="vocab_size <b>is</b> 16", **shaped(128, 2, model_seed=5))
    sgd = {"type": "sgd", "schedule": {"peak_value": 0.25}, "grad_clip_norm": None}
    site.add(curve(4.0, 5), **shaped(384, 6, optimizer=sgd))
    site.add(waits=True, **shaped(640, 10))
    yield site
    site.stop()


class Page:
    """The dashboard as a user has it before them."""

    def __init__(self, browser, site):
        self.browser, self.site = browser, site
        browser.get(f"{site.address}/dashboard")

    def sign_in(self, key=None):
        self.fill("key", key or self.site.key)
        self.js("document.querySelector('#login button').click()")

    def js(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def text(self, name):
        return self.js("return document.getElementById(arguments[0]).innerText", name)

    def click(self, name):
        self.browser.find_element("id", name).click()

    def fill(self, name, value):
        self.js(
            "const e = document.getElementById(arguments[0]) ?? document.getElementsByName(arguments[0])[0];"
            "e.value = arguments[1]; (e.oninput ?? e.onchange)?.call(e)",
            name,
            value,
        )

    def rows(self):
        return self.js("return [...document.querySelectorAll('#rows tr')].map(row => +row.dataset.id)")

    def is_open(self, name):
        return self.js("return document.getElementById(arguments[0]).open", name)

    def open_row(self, number):
        self.js("document.querySelector(`#rows tr[data-id='${arguments[0]}']`).click()", number)

    def sort_by(self, label):
        self.js(
            "[...document.querySelectorAll('th button')].find(b => b.innerText.startsWith(arguments[0])).click()", label
        )

    def screenshot(self, name):
        folder = Path(os.environ.get("CS336_SCREENSHOTS", "")) if os.environ.get("CS336_SCREENSHOTS") else None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            assert self.browser.save_screenshot(str(folder / f"{name}.png"))


def until(condition, seconds=PATIENCE_SECONDS):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("waited in vain")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium."""
    with headless_chromium(tmp_path_factory.mktemp("profile"), "1360,1000") as opened:
        yield opened


@pytest.fixture
def page(browser, site):
    page = Page(browser, site)
    page.sign_in()
    until(page.rows)
    yield page
    problems = [line["message"] for line in browser.get_log("browser") if "favicon" not in line["message"]]
    assert [line for line in problems if " 422 " not in line and " 409 " not in line and " 400 " not in line] == []


def test_a_key_opens_the_page_and_a_wrong_one_does_not(browser, site):
    page = Page(browser, site)
    page.screenshot("sign-in")
    page.sign_in("cs336-wrong")
    until(lambda: "no key that the service knows" in page.text("login-problem"))
    page.sign_in()
    until(page.rows)
    browser.refresh()  # the tab remembers
    until(page.rows)
    page.click("leave")
    browser.refresh()
    assert page.rows() == [] and not page.js("return document.getElementById('login').hidden")
    browser.get_log("browser")


def test_the_tiles_count_and_sum(page):
    page.screenshot("board")
    assert page.text("tile-jobs") == "6"
    assert page.text("tile-states") == "1 queued · 1 running · 2 completed · 2 failed"
    assert page.text("tile-best") == f"{curve(3.6)[-1]:.4f}"
    assert page.text("tile-best-of") == "experiment 2, 25.2 M parameters"
    assert page.text("tile-runtime") == "45 min 42 s"  # 412 + 1730.5 + 600 + 0
    used = 412 + 1_730.5 + 600 + 1 + 600 + 600
    assert page.site.jobs.budget(1).used_seconds == used
    assert "10 h 54 min" in page.text("tile-budget") and "(90.9 % left)" in page.text("tile-budget-of")
    assert "None yet" in page.text("final")


@pytest.mark.parametrize(("seconds", "kind"), [(26_000, ""), (26_400, "warn"), (34_900, "warn"), (35_000, "bad")])
def test_the_budget_bar_turns_yellow_below_30_and_red_below_10_percent(page, seconds, kind):
    """3,943.5 s of 43,200 are used: 12,960 s are 30 %, 4,320 s are 10 %."""
    page.site.add(waits=True, max_runtime_seconds=seconds)
    page.js("refresh()")
    until(lambda: page.text("tile-jobs") == "7")
    assert page.js("return document.getElementById('budget-bar').className.trim()") == f"bar {kind}".strip()
    colours = {"": "rgb(37, 99, 201)", "warn": "rgb(217, 154, 0)", "bad": "rgb(200, 55, 45)"}
    painted = page.js("return getComputedStyle(document.querySelector('#budget-bar > div')).backgroundColor")
    assert painted == colours[kind]
    if kind == "bad":
        page.screenshot("budget-nearly-spent")


def test_the_table_is_filtered_searched_and_sorted(page):
    assert page.rows() == [6, 5, 4, 3, 2, 1]  # the newest first
    for state, expected in (
        ("failed", [4, 3]),
        ("completed", [2, 1]),
        ("running", [5]),
        ("queued", [6]),
        ("", [6, 5, 4, 3, 2, 1]),
    ):
        page.fill("filter", state)
        page.js("document.getElementById('filter').onchange()")
        assert page.rows() == expected
    for words, expected in (
        ("sgd", [5]),
        ("timeout", [3]),
        ("VOCAB_SIZE <b>", [4]),
        ("2", [4, 2]),  # as an id, and as a number of layers
        ("0.003", [2, 1]),
        ("adamw failed", [4, 3]),
        ("nothing of the kind", []),
    ):
        page.fill("search", words)
        assert page.rows() == expected, words
    assert page.text("empty") == "No experiment matches." and page.text("shown") == "0 of 6"
    page.fill("search", "")
    page.sort_by("Loss")
    assert page.rows()[:4] == [2, 1, 3, 5]  # the lowest first; those without a loss last
    page.sort_by("Loss")
    assert page.rows()[-4:] == [5, 3, 1, 2]
    page.sort_by("Parameters")
    assert page.rows() == [4, 1, 5, 2, 6, 3]
    page.sort_by("State")
    assert page.rows() == [5, 6, 1, 2, 3, 4]


def test_rows_show_progress_and_a_sparkline(page):
    def of(number, selector):
        return page.js(f"return document.querySelector(`#rows tr[data-id='{number}'] {selector}`)?.outerHTML ?? ''")

    assert "9/16" in of(3, ".progress") and "width: 56.25%" in of(3, ".progress")
    assert len(re.search(r'points="([^"]*)"', of(3, "polyline"))[1].split()) == 9
    assert of(6, "polyline") == ""
    assert "failed (timeout)" in of(3, ".badge")


def test_the_detail_has_a_chart_with_a_log_toggle_and_hover(page):
    page.open_row(2)
    assert page.is_open("detail")
    assert "Experiment 2" in page.text("detail-title")
    assert page.js("return document.querySelectorAll('#chart .dot').length") == 16
    titles = page.js("return [...document.querySelectorAll('#chart text')].map(text => text.textContent)")
    assert {"tokens", "validation loss, nats per token"} <= set(titles)
    plain = page.js("return document.querySelector('#chart .curve').getAttribute('points')")
    page.screenshot("detail")
    page.click("log")
    scaled = page.js("return document.querySelector('#chart .curve').getAttribute('points')")
    assert scaled != plain
    xs = [float(point.split(",")[0]) for point in scaled.split()]
    assert xs[1] - xs[0] == pytest.approx(xs[3] - xs[1], rel=1e-3)  # from 1 to 2 chunks as far as from 2 to 4
    from selenium.webdriver import ActionChains

    dots = page.browser.find_elements("css selector", "#chart .dot")
    ActionChains(page.browser).move_to_element(dots[4]).perform()
    until(lambda: not page.js("return document.getElementById('tip').hidden"))
    assert page.text("tip") == f"chunk 5: {curve(3.6)[4]:.4f} after 3.28 M tokens"
    page.screenshot("detail-log-hover")
    page.click("log")
    page.js("document.querySelector('#detail [data-close]').click()")
    assert not page.is_open("detail")


def test_a_failures_text_is_shown_as_text(page):
    page.open_row(4)
    assert page.text("detail-problem") == "unexpected: vocab_size <b>is</b> 16"
    assert page.text("chart") == "No validation loss yet."


def test_a_configuration_is_used_again_and_submitted(page):
    page.open_row(5)
    page.click("reuse")
    assert page.is_open("submit") and not page.is_open("detail")
    page.click("send")  # as it is
    until(lambda: "experiment 5 has this very configuration" in page.text("submit-problem"))
    page.fill("n_evals", "7")
    page.fill("architecture.head_dim", "63")
    page.click("send")
    until(lambda: "head_dim" in page.text("submit-problem"))
    page.screenshot("submit-refused")
    page.fill("n_evals", "8")
    page.fill("architecture.head_dim", "64")
    page.fill("optimizer.type", "adamw")
    page.fill("optimizer.schedule.peak_value", "2e-3")
    assert page.text("derived").startswith("10.6 M parameters · 640 steps · 6.68e+14 FLOPs")
    page.screenshot("submit")
    page.click("send")
    until(lambda: not page.is_open("submit") and page.rows()[0] == 7)
    sent = page.site.jobs.experiment(1, 7).training_config
    like = page.site.jobs.experiment(1, 5).training_config
    assert (sent.architecture, sent.n_evals, sent.optimizer.type) == (like.architecture, 8, "adamw")
    assert sent.optimizer.schedule.peak_value == 2e-3 and sent.optimizer.grad_clip_norm is None


def test_a_job_beyond_the_budget_is_refused_in_the_dialog(page):
    page.click("new")
    page.fill("max_runtime_seconds", "43200")
    page.click("send")
    until(lambda: "max_runtime_seconds is 43200, but" in page.text("submit-problem"))
    assert len(page.site.jobs.experiments(1)) == 6


def test_the_final_submission_is_made_and_shown(page):
    page.click("final-edit")
    page.fill("predicted_final_loss", "3.036")
    page.fill("total_train_tokens", str(2**14 * 64_000))
    assert page.js("return document.getElementsByName('max_runtime_seconds')[0].value") == "172800"
    page.click("send")
    until(lambda: "3.0360" in page.text("final"))
    assert page.site.jobs.final_submission(1).training_config.max_runtime_seconds == 172_800
    page.screenshot("final-submission")


def test_the_page_refreshes_itself_every_10_seconds_also_an_open_detail(page):
    page.open_row(5)
    (job,) = page.site.jobs.running()
    before = time.monotonic()
    page.site.say_loss(5, job.run_id, 5, 2.5)
    page.site.jobs.submit_final(1, FinalSubmissionBody(training_config=body(), predicted_final_loss=2.75))
    until(lambda: page.js("return document.querySelectorAll('#chart .dot').length") == 6, seconds=15)
    assert time.monotonic() - before < 12
    assert "2.7500" in page.text("final") and page.is_open("detail")


def test_the_page_needs_nothing_from_elsewhere(site):
    import requests

    answer = requests.get(f"{site.address}/dashboard", timeout=10)
    assert answer.headers["content-type"].startswith("text/html")
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", answer.text) == []
    assert re.findall(r"<(?:link|img|iframe|script src)", answer.text) == []
    assert "connect-src 'self'" in answer.headers["content-security-policy"]
