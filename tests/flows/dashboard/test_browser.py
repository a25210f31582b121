"""The page in a real browser: every view, both widths, both colour schemes, hostile texts, keyboard, live update."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import runs
from tests.flows.dashboard import world

_SHOWN = "return parseInt(document.querySelector('.pill[data-step=sft] small').innerText) || 0"
WIDE, NARROW = (1440, 900), (390, 844)
LOOKS = [(WIDE, "light"), (NARROW, "light"), (WIDE, "dark"), (NARROW, "dark")]
VIEWS = {
    "runs": ("#/", "good"),
    "compare": ("#/compare?run=good&run=good-1&run=ce", "Settings that differ"),
    "run": ("#/run/good", "Time and memory"),
    "iterations": ("#/run/good/iterations", "Groups kept"),
    "training": ("#/run/good/training", "Log-probs"),
    "samples": ("#/run/good/samples", "1 to 10 of 40"),
    "side": ("#/run/good/samples?id=p000009&with=ce&diff=1", "answered in"),
    "data": ("#/run/mine/data", "What stands in them"),
    "lineage": ("#/run/good/lineage?step=evaluate%5B2%5D&field=win_rate", "Where it comes from"),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("browser")
    world.whole_run(place, "good", seed=0)
    world.whole_run(place, "good-1", seed=1)
    world.whole_run(place, "ce", seed=0, objective="ce")
    world.imported_run(place, "mine")
    return place


@pytest.fixture(scope="module")
def address(workspace: Path, serve: Callable[..., str]) -> str:
    return serve(workspace)


def opened(page, address: str, view: str) -> None:
    page.show(address, *VIEWS[view])


@pytest.mark.parametrize(("view", "first"), [(view, i % len(LOOKS)) for i, view in enumerate(VIEWS)], ids=VIEWS)
def test_every_view_at_both_widths_in_both_schemes(page, address: str, view: str, first: int):
    """Loaded once, every look by two of the views; then width and scheme change under the open page."""
    page.in_every_look(LOOKS[first:] + LOOKS[:first], view, lambda: opened(page, address, view))


def test_nothing_is_asked_of_another_host(page, address: str):
    opened(page, address, "iterations")
    asked = page.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert len(asked) > 10 and all(a.startswith(address) for a in asked)


@pytest.mark.parametrize("parameters", ["", "?diff=1", "?id=p000003", "?table=pairs%5B2%5D/groups&diff=1"])
def test_what_a_model_wrote_stays_text(page, address: str, parameters: str):
    """Every hostile text is on the page, letter by letter, and none of it became an element or ran."""
    page.look()
    for start in ("", "at=5"):
        joined = "&".join(filter(None, [parameters.removeprefix("?"), start]))
        page.open(f"{address}#/run/good/samples{'?' + joined if joined else ''}")
        page.until(lambda: page.count(".completion") > 0, "completions")
        assert page.run("return window.hacked ?? null") is None
        assert page.count("main :is(script, img, iframe, b b, h1 ~ h1, [onerror])") == 0
        assert page.count(".written :is(a, b, h1, svg)") == 0
    page.open(f"{address}#/run/good/samples?q=rice&count=10")
    page.until(lambda: page.count(".completion") > 0, "completions")
    written = "[...document.querySelectorAll('.completion .written')]"
    shown = page.run(f"return {written}.map(e => e.textContent).join('\\n')")
    for text in (world.HOSTILE[0], world.HOSTILE[1], world.HOSTILE[2], world.HOSTILE[5], world.HOSTILE[6]):
        assert text in shown
    for name in ("ESC", "BEL", "RLO", "U+2066", "ZWSP"):
        named = "return [...document.querySelectorAll('.acting')].some(e => e.textContent === arguments[0])"
        assert page.run(named, name)
    assert "\x1b" not in shown and "\u202e" not in shown, "shown by name, not acting"


def test_markup_cannot_be_made_from_a_string(page, address: str):
    """Trusted types: even code that tried to would fail."""
    opened(page, address, "runs")
    tried = "try { document.body.innerHTML = '<b>x</b>'; return 'made' } catch (e) { return e.name }"
    assert page.run(tried) == "TypeError"


def test_steps_can_be_chosen_and_their_neighbours_are_marked(page, address: str):
    page.look()
    opened(page, address, "run")
    page.click('[data-step="pairs[2]"]')
    page.until(lambda: page.count('.pill.chosen[data-step="pairs[2]"]'), "the chosen step")
    assert page.count('.pill.input[data-step="score[2]"]') == 1
    assert page.count('.pill.reader[data-step="train[2]"]') == 1
    assert "all tied" in page.text()
    assert "step=pairs" in page.run("return location.hash")


def test_a_number_leads_to_its_artifact_and_on_to_the_raw_file(page, address: str):
    page.look()
    opened(page, address, "iterations")
    page.click('a.number[title="win_rate of evaluate[2]"]')
    page.until(lambda: "Where it comes from" in page.text(), "the lineage")
    assert "0.8" in page.text(".traced") and page.text("dd.traced-field") == "0.8000"
    assert "ab" * 32 in page.text() and "sft.jsonl" in page.text()


def test_gates_are_shown(page, address: str):
    opened(page, address, "iterations")
    assert "It cannot decide whether the win rate fell while the learned reward rose: no finite" in page.text(".unsure")
    assert "Iteration 2: the run stops here, because gold fell while the learned reward rose." in page.text()
    assert "Iteration 1: passed" in page.text() and "The model to go on from is iteration 1's" in page.text()


def test_gain_length_control_and_categories_with_their_intervals(page, address: str):
    """The level of the intervals is the artifact's, 90 % here; the gain has interval and p, a name stays text."""
    page.look()
    opened(page, address, "iterations")
    table = page.text("section[aria-label=Iterations]")
    assert all(text in table for text in ("+10.0", "+1.2 to +18.8", "p\u00a0=\u00a00.031"))
    assert "65.0 to 78.0 %" in table, "of the length-controlled rate"
    assert "90 %" in table and "95 %" not in page.text()
    cells = page.text(".categories").split()
    assert cells[:2] == ["Category", "Prompts"] and cells.index("baking") > cells.index("<b>rice</b>"), "largest first"
    assert "85.0 %" in page.text(".categories") and "70.0 to 95.0 %" in page.text(".categories")
    opened(page, address, "run")
    assert "90 %: +1.2 to +18.8, p\u00a0=\u00a00.031" in page.text(".figures")
    assert "90 %: 75.0 to 85.0 %" in page.text(".figures") and "90 %: 65.0 to 78.0 %" in page.text(".figures")
    opened(page, address, "runs")
    assert "90 %" in page.text("thead") and "95 %" not in page.text()


def test_utilisation_and_memory_have_axes_of_their_own(page, address: str):
    opened(page, address, "training")
    assert page.count("section[aria-label=Memory] .chart") == page.count("section[aria-label=Utilisation] .chart") == 1


def test_search_and_pages(page, address: str):
    page.look()
    opened(page, address, "samples")
    page.click('[data-focus="next"]')
    page.until(lambda: "11 to 20 of 40" in page.text(), "the second page")
    page.run("history.back()")
    page.until(lambda: "1 to 10 of 40" in page.text(), "the first page again")
    page.run("const i = document.querySelector('input[name=q]'); i.value = 'rice number 33'; i.form.requestSubmit()")
    page.until(lambda: "1 found, all 40 searched" in page.text(), "the search")
    assert "p000033" in page.text()


def test_keyboard_alone_is_enough(page, address: str):
    """Tab reaches the skip link, the runs and their boxes; the number keys change the view; / goes to the search."""
    from selenium.webdriver import ActionChains, Keys

    page.look()
    opened(page, address, "runs")
    keys = lambda *k: ActionChains(page.driver).send_keys(*k).perform()  # noqa: E731
    seen = []
    for _ in range(30):
        keys(Keys.TAB)
        if page.run("return document.activeElement === document.body"):
            break  # past the last one
        seen.append(page.run("return document.activeElement.dataset.focus ?? document.activeElement.className"))
        assert page.run("return getComputedStyle(document.activeElement).outlineStyle") != "none", seen[-1]
    assert seen[0] == "skip" and {"brand", "filter", "all", "run-good", "tick-good"} <= set(seen)
    page.open(address + "#/run/good")
    page.until(lambda: "Time and memory" in page.text(), "the run")
    keys("4")
    page.until(lambda: "1 to 10 of 40" in page.text(), "the samples")
    keys("/")
    page.until(lambda: page.run("return document.activeElement.name") == "q", "the search field")


def test_empty_states_say_what_to_run(page, serve: Callable[..., str], tmp_path: Path):
    page.look()
    at = serve(tmp_path)
    page.open(at)
    page.until(lambda: "No run here yet" in page.text(), "the empty state")
    assert "align run recipe=pco run=demo" in page.text()
    page.shot("empty-1440-light")
    run = world.Maker(tmp_path, "fresh")
    run.waiting("data", "import_data")
    run.save(outcome=runs.INTERRUPTED)
    for view, sign in (("iterations", "No iteration has a number yet"), ("training", "No curve yet"),
                       ("samples", "Nothing sampled yet"), ("", "Time and memory"), ("lineage", "no artifact yet")):
        page.open(f"{at}#/run/fresh/{view}")
        page.until(lambda sign=sign: sign in page.text(), sign)
    page.open(f"{at}#/run/nobody")
    page.until(lambda: "Not here" in page.text(), "the missing run")


def test_a_failed_step_shows_its_last_lines(page, serve: Callable[..., str], tmp_path: Path):
    run = world.Maker(tmp_path, "broken")
    run.step("data", "import_data", {}, {"sft": 3})
    run.waiting("sft", "sft", state=runs.FAILED, inputs=("data",))
    run.waiting("train[1]", "train_preference", inputs=("sft",))
    run.save(outcome=runs.FAILED)
    log = runs.log_path(tmp_path, "broken", "sft")
    log.parent.mkdir()
    log.write_text("line\n" * 100 + "RuntimeError: <b>out of \x1b[31mmemory</b>\n")
    (run.folder / "events.jsonl").write_text(json.dumps({"step": "sft", "event": "failed", "time": 1.0, "code": 137}))
    page.look()
    page.open(serve(tmp_path) + "#/run/broken")
    page.until(lambda: "RuntimeError: <b>out of ESC[31mmemory</b>" in page.text(".log"), "the log")
    assert page.count('.pill.failed.chosen[data-step="sft"]') == 1, "nobody had to look for it"
    assert "exit code 137" in page.text(".detail")
    page.shot("failed-1440-light")


def test_a_lost_server_is_said(page, serve: Callable[..., str], workspace: Path):
    page.look()
    page.open(serve(workspace) + "#/run/good")
    page.until(lambda: "Time and memory" in page.text(), "the run")
    page.driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    page.until(lambda: "not reachable" in page.text("#top"), "the lost server")
    assert "Time and memory" in page.text(), "what was there stays"
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {
        **offline, "offline": False, "downloadThroughput": -1, "uploadThroughput": -1})
    page.until(lambda: "up to date" in page.text("#top"), "the server again")


def test_the_exported_file_works_from_disk(page, workspace: Path, tmp_path: Path):
    """One file, no server, no request; every view of the run, hostile texts as harmless as on the live page."""
    from flows.dashboard.export import export

    file = shutil.copy(export(workspace, "good"), tmp_path / "sent.html")
    page.look()
    page.complaints()
    for view, sign in (("", "Time and memory"), ("/iterations", "Groups kept"), ("/training", "Log-probs"),
                       ("/samples", "1 to 10 of 40"), ("/lineage", "Where it comes from")):
        page.open(f"file://{file}#/run/good{view}")
        page.until(lambda sign=sign: sign in page.text(), sign)
        page.painted()
    page.shot("exported-lineage")
    page.open(f"file://{file}#/run/good/samples?diff=1")
    page.until(lambda: page.count(".completion") > 0, "completions")
    assert page.run("return window.hacked ?? null") is None and page.count(".written :is(img, script, b)") == 0
    page.run("const i = document.querySelector('input[name=q]'); i.value = 'number 33'; i.form.requestSubmit()")
    page.until(lambda: "p000033" in page.text(), "the search in the file")
    asked = page.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [a for a in asked if not a.startswith("data:")] == []
    assert page.complaints() == []


def test_a_token_in_the_address_opens_the_page(page, serve: Callable[..., str], workspace: Path):
    at = serve(workspace, "right-token")
    page.open(at)
    assert "?token=" in page.text()
    page.open(f"{at}?token=right-token")
    page.until(lambda: page.count(".runs tbody tr") == 4, "the runs")
    assert "token" not in page.run("return location.href")
    page.driver.delete_all_cookies()


@pytest.mark.slow
def test_a_real_run_is_seen_live(page, serve: Callable[..., str], small_world: Path, tiny_model: Path, tmp_path: Path,
                                 command: Callable[..., list[str]], warm: dict[str, str], prefect: dict[str, str]):
    """`align run recipe=sft` in a process of its own: it shows up, goes on and ends on the open page, without reload.

    Progress on disk is on the page within 2 s of being written; a busy machine may be late once.
    """
    place = tmp_path / "live"
    place.mkdir()
    page.look()
    page.open(serve(place))
    page.until(lambda: "No run here yet" in page.text(), "the empty state")
    process = subprocess.Popen(command(
        "run", "recipe=sft", "run=seen", f"workspace={place}", f"data.root={small_world}", "model=path",
        f"model.path={tiny_model}", "model.max_prompt_tokens=120", "model.max_completion_tokens=100",
        "trainer.sft.epochs=16", "trainer.sft.batch_size=4", "trainer.sft.precision=float32",
    ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **warm, **prefect})
    try:
        page.until(lambda: page.count('[data-focus="run-seen"]'), "the run in the list", 90)
        page.open(page.run("return location.href.split('#')[0]") + "#/run/seen")
        page.until(lambda: page.count('.pill.running[data-step="sft"]'), "sft to start", 300)
        shown, delays = 0, []
        progress = place / "runs" / "seen" / "progress.json"
        while process.poll() is None and len(delays) < 12:
            state = json.loads(progress.read_text()) if progress.exists() else {}
            if state.get("step") != "sft" or state["done"] <= shown or state["done"] == state["total"]:
                time.sleep(0.05)
                continue
            percent = 100 * state["done"] // state["total"]
            page.until(lambda at=percent: page.run(_SHOWN) >= at or page.count('.pill.done[data-step="sft"]'),
                       f"{percent} %", 10)
            delays.append(time.time() - state["time"])
            shown = state["done"]
        page.shot("live-1440-light")
        print(f"seconds from the file to the page: {[round(d, 2) for d in delays]}")
        assert len(delays) >= 3 and sorted(delays)[len(delays) // 2] < 2.0 and max(delays) < 5.0
        page.open(page.run("return location.href.split('#')[0]") + "#/run/seen/training")
        page.until(lambda: page.count(".chart canvas") > 3, "the curves")
        page.until(lambda: "done" in page.text(".page-head"), "the end of the run", 300)
        assert process.wait(120) == 0
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
