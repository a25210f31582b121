"""The page in a real browser: comparing, a thousand runs, samples in order, what it means, judging by hand."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flows.dashboard.app import STATIC
from pipeline import runs
from pipeline.records import Completion, Group, Message
from tests.flows.dashboard import world
from tests.flows.dashboard.conftest import NARROW, WIDE
from tests.flows.dashboard.crowd import copies

LOOKS = [(WIDE, "light"), (NARROW, "light"), (WIDE, "dark"), (NARROW, "dark")]
RUNS = "&".join(f"run=b{beta}-{seed}" for beta in (0.01, 0.1, 0.5) for seed in (0, 1))
VIEWS = {
    "leaders": (f"#/compare?{RUNS}&ours=A&theirs=B", "Leaderboard"),
    "curves": (f"#/compare?{RUNS}&view=curves&smooth=0.6", "Log-probs"),
    "settings": (f"#/compare?{RUNS}&view=settings", "All settings at once"),
    "artifacts": (f"#/compare?{RUNS}&view=artifacts", "Choose a bar"),
    "experiments": ("#/?group=1", "mean win rate"),
    "sorted": ("#/run/b0.1-0/samples?by=margin&score=gold", "margin of the score"),
    "label": ("#/label/b0.1-0", "Judge by hand"),
    "meaning": ("#/run/b0.1-0/iterations", "What it means"),
    "timeline": ("#/run/b0.1-0", "Timeline"),
    "reading": ("#/reading?at=gamed", "What the verdict lines say"),
    "broken": ("#/run/broken", "Go on with"),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three arms of two seeds; one seed's loss is NaN for a while; a failed run."""
    place = tmp_path_factory.mktemp("page")
    for beta in (0.01, 0.1, 0.5):
        for seed in (0, 1):
            run = world.whole_run(place, f"b{beta}-{seed}", seed=seed, number=12, beta=beta)
            noise = np.random.default_rng(seed)
            for at in range(210, 1010, 10):
                loss = math.nan if (beta, seed) == (0.5, 1) and 500 < at < 560 else 0.7 * math.exp(-at * beta / 300)
                run.report("train[2]", at, loss=loss + 0.02 * noise.normal(), chosen_logps=-24 - at / 60,
                           rejected_logps=-32 - at / 30, lr=1e-4, tokens_per_second=900.0 + at,
                           seconds_per_step=1.5 + beta)
            (run.folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events(run)))
            (run.folder / "machine.jsonl").write_text("".join(json.dumps({
                "time": 1e9 + 4 * i, "cpu": 0.5 + 0.4 * math.sin(i / 9), "memory_mb": 9000 + 20 * i,
                "own_memory_mb": 4000 + 15 * i}) + "\n" for i in range(120)))
    broken = world.Maker(place, "broken")
    broken.step("data", "import_data", {}, {"sft": 3})
    broken.waiting("sft", "sft", state=runs.FAILED, inputs=("data",))
    broken.save(outcome=runs.FAILED)
    failed = {"step": "sft", "event": "failed", "time": 1.0, "code": 137}
    (broken.folder / "events.jsonl").write_text(json.dumps(failed))
    return place


def events(run: world.Maker) -> list[dict]:
    found, now = [], 1e9
    for i, step in enumerate(run.steps):
        if step["name"] == "train[1]":
            found.append({"time": now, "step": step["name"], "event": "started"})
            now += 15
        found.append({"time": now, "step": step["name"], "event": "started"})
        now += 3 + (60 if step["stage"] == "train_preference" else 2 * (i % 7))
        found.append({"time": now, "step": step["name"], "event": "finished"})
        now += 2
    return found


@pytest.fixture(scope="module")
def address(workspace: Path, serve: Callable[..., str]) -> str:
    return serve(workspace)


def opened(page, address: str, view: str) -> None:
    page.show(address, *VIEWS[view])


@pytest.mark.parametrize(("view", "first"), [(view, i % len(LOOKS)) for i, view in enumerate(VIEWS)], ids=VIEWS)
def test_every_view_at_both_widths_in_both_schemes(page, address: str, view: str, first: int):
    page.in_every_look(LOOKS[first:] + LOOKS[:first], view, lambda: opened(page, address, view))


# ---- comparing -------------------------------------------------------------------------------------------------------


def test_an_experiment_is_named_by_what_differs_and_the_test_is_said(page, address: str):
    page.look()
    opened(page, address, "leaders")
    assert "beta=0.01" in page.text(".arm-legend") and "seed" not in page.text(".arm-legend")
    assert "A2 is not told apart from B2: 0.0 points" in page.text(".tester")
    page.run("document.querySelector('[data-focus=theirs]').value = 'C';"
             "document.querySelector('[data-focus=theirs]').dispatchEvent(new Event('change'))")
    page.until(lambda: "C2" in page.text(".tester"), "another test")
    assert "theirs=C" in page.run("return location.hash"), "the view can be sent"


def test_curves_keep_their_gaps_and_go_over_tokens(page, address: str):
    page.look()
    opened(page, address, "curves")
    marks = """const c = echarts.getInstanceByDom(document.querySelector('[aria-label^="Loss"] .chart'));
               const s = c.getOption().series;
               return {marks: s.filter(x => x.type === 'scatter' && x.data.length > 1).map(x => x.data.length),
                       gaps: s.filter(x => x.z === 4).map(x => x.data.filter(p => p[1] === null).length),
                       bridged: s.some(x => x.connectNulls)}"""
    found = page.run(marks)
    assert found == {"marks": [5], "gaps": [0, 0, 0, 0, 0, 5], "bridged": False}
    opened(page, address + "", "curves")
    page.run("const s = document.querySelector('[data-focus=by]'); s.value = 'tokens'; "
             "s.dispatchEvent(new Event('change'))")
    page.until(lambda: "do not tell their rate" in page.text(".controls"), "the first 20 lines have no pace")
    assert "by=tokens" in page.run("return location.hash")


def test_a_range_that_is_dragged_over_is_in_the_address(page, address: str):
    from selenium.webdriver import ActionChains

    page.look()
    opened(page, address, "curves")
    box = page.driver.find_element("css selector", '[aria-label^="Loss"] .chart')
    ActionChains(page.driver).move_to_element_with_offset(box, -60, 0).click_and_hold().move_by_offset(
        80, 5).release().perform()
    page.until(lambda: "zoom=" in page.run("return location.hash"), "the range")
    low, high = map(float, re.search(r"zoom=([\d.]+)%2C([\d.]+)", page.run("return location.hash")).groups())
    assert 10 < low < high < 1000
    page.painted()
    page.shot("zoomed-1440-light")
    axes = ("return [...document.querySelectorAll('.chart')].map(b => "
            "echarts.getInstanceByDom(b).getOption().xAxis[0].min)")
    assert set(page.run(axes)) == {low}, "every chart shows the same range"


def test_one_place_is_shown_on_all_charts(page, address: str):
    """Pointing at a step of one chart shows the same step on the others that have it."""
    from selenium.webdriver import ActionChains

    page.look()
    opened(page, address, "curves")
    box = page.driver.find_element("css selector", '[aria-label^="Loss"] .chart')
    ActionChains(page.driver).move_to_element(box).move_by_offset(7, 3).perform()
    shown = """return [...document.querySelectorAll('.chart')].flatMap(b => echarts.getInstanceByDom(b).getZr().storage
                 .getDisplayList().flatMap(e => /optimizer step ([\\d,]+)/.exec(e.style?.text ?? '')?.[1] ?? []))"""
    page.until(lambda: len(page.run(shown)) >= 5 and len(set(page.run(shown))) == 1, "the same step on all", 5)
    page.shot("hovered-1440-light")


def module(page, script: str):
    """What a script says that may use the page's modules: `await use("points.js")`."""
    return page.driver.execute_async_script(
        "const done = arguments[arguments.length - 1]; const use = (name) => import(new URL(name, location.href));"
        f"(async () => {{ {script} }})().then(done, (e) => done(String(e)))")


def test_points_smoothing_and_logs_by_values(page, address: str):
    page.open(address)
    step = {"at": [1, 2, 3, 4], "values": {"loss": [2.0, None, 0.0, 4.0]}, "not_finite": {"loss": [1]}}
    points = "const m = await use('points.js'); return"
    assert module(page, f"{points} m.points({json.dumps(step)}, 'loss')") == {
        "points": [[1, 2], [2, None], [3, 0], [4, 4]], "bad": [[2, 2]], "low": [], "high": [], "left": 0}
    logged = module(page, f"{points} m.points({json.dumps(step)}, 'loss', 'at', {{ylog: true}})")
    assert (logged["points"], logged["left"]) == ([[1, 2], [2, None], [4, 4]], 1)
    assert module(page, f"{points} m.points({json.dumps(step)}, 'loss', 'at', {{range: [2, 3]}}).points") == [
        [2, None], [3, 0]]
    # weight 0.5: 2; (0.5*1 + 0.5*4) / 0.75 = 10/3 with the start corrected; anew after the gap
    smooth = module(page, f"{points} m.smoothed([[1, 2], [2, 4], [3, null], [4, 6]], 0.5)")
    assert smooth == [[1, 2], [2, pytest.approx(10 / 3)], [3, None], [4, 6]]


# Machado et al. 2009, severity 1, on linear RGB.
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]}


def lab(color: str, matrix=None) -> np.ndarray:
    """CIE L*a*b* (D65) of "#rrggbb", as an eye with that matrix sees it."""
    value = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    linear = linear if matrix is None else np.clip(np.array(matrix) @ linear, 0, 1)
    xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                    [0.0193339, 0.1191920, 0.9503041]]) @ linear / [0.95047, 1.0, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_no_two_experiments_look_alike_to_colour_blind_eyes(page, address: str, scheme: int):
    """Any two of the first eight differ in the dash of their line, or their colours by 20 in L*a*b* to every eye; and
    each stands out from the page by 3 to 1."""
    page.open(address)
    dashes = module(page, "const m = await use('arms.js'); return [...Array(32).keys()].map(m.dashOf)")
    assert len({(k % 8, dash) for k, dash in enumerate(dashes)}) == 32, "colour and dash tell 32 apart"
    palette = re.findall(r"--series-\d: (#[0-9a-f]{6})", (STATIC / "base.css").read_text())[8 * scheme : 8 * scheme + 8]
    for eye, matrix in {"usual": None, **BLIND}.items():
        seen = [lab(color, matrix) for color in palette]
        for a in range(8):
            for b in range(a):
                if dashes[a] == dashes[b]:
                    assert np.linalg.norm(seen[a] - seen[b]) > 20, (eye, a, b)
    ground = lab(re.findall(r"--surface: (#[0-9a-f]{6})", (STATIC / "base.css").read_text())[scheme])
    luminance = lambda c: ((c[0] + 16) / 116) ** 3  # noqa: E731
    for color in palette:
        bright, dark = sorted([luminance(lab(color)), luminance(ground)], reverse=True)
        assert (bright + 0.05) / (dark + 0.05) > 3, color


def test_a_shared_artifact_is_one_bar_and_leads_to_its_lineage(page, address: str):
    """The SFT model has no seed: one for all six; training has the seed and beta."""
    page.look()
    opened(page, address, "artifacts")
    assert page.count('[aria-label="sft: 6 of 6 runs"]') == 1 and page.count('[aria-label^="train[2]: 1 of 6"]') == 6
    page.run("document.querySelector('[aria-label^=sft]').dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter'}))")
    page.until(lambda: "sft/" in page.text(".chosen-artifact"), "what it is")
    assert page.count(".link.out") > 2 and "artifact=sft" in page.run("return location.hash")


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_a_thousand_runs_paint_within_a_second(page, serve: Callable[..., str], tmp_path: Path):
    """1,000 run folders, each with its own two evaluations' manifests: rows on the screen from a server that has read
    nothing yet. The best of three such servers: the machine may be busy, the reading is counted in test_server.
    """
    copies(tmp_path, world.whole_run(tmp_path, "run", number=4), 999)
    page.look()
    took = []
    for _ in range(3):
        page.open(serve(tmp_path))
        page.until(lambda: page.count(".runs tbody tr") == 100, "the list")
        took.append(page.run("return performance.getEntriesByName('rows')[0].startTime"))
        if took[-1] < 1000:
            break
    print(f"1,000 runs: rows after {[round(t) for t in took]} ms")
    page.shot("runs-1000-1440-light")
    assert "1 to 100 of 1,000" in page.text(".pager") and "1,000 runs" in page.text(".tools")
    assert min(took) < 1000
    began = time.monotonic()
    page.run("const i = document.querySelector('[data-focus=filter]'); i.value = 'run-0777'; "
             "i.dispatchEvent(new Event('input'))")
    page.until(lambda: page.count(".runs tbody tr") == 1, "the filter, once all are there")
    print(f"filtered after {time.monotonic() - began:.2f} s")
    assert "q=run-0777" in page.run("return location.hash")


def test_runs_are_sorted_grouped_and_folded(page, address: str):
    page.look()
    page.open(address)
    page.until(lambda: page.count(".runs tbody tr") == 7, "the list")
    assert "Model" not in page.text("thead") and "in all: recipe pco" in page.text(".alike"), "alike in all runs"
    page.click('[data-focus="sort-rate"]')
    first = "return document.querySelector('.runs tbody a').innerText"
    page.until(lambda: page.run(first).endswith("-1"), "the best first")
    page.click('[data-focus="group"]')
    page.until(lambda: page.count("tr.experiment") == 4, "a line an experiment")
    assert "beta=0.1" in page.text(".runs"), "an experiment is called by what differs"
    assert "sort=-rate" in page.run("return location.hash") and "group=1" in page.run("return location.hash")


def test_tags_a_note_and_the_archive_are_written_on_the_page(page, serve: Callable[..., str], tmp_path: Path):
    for name in ("one", "two"):
        world.Maker(tmp_path, name).save()
    page.look()
    page.open(serve(tmp_path))
    page.click('[data-focus="note-one"]')
    page.until(lambda: page.count(".editor input") == 2, "the form")
    page.run("const f = document.querySelector('.editor form').elements; f.tags.value = 'best, <i>x</i>'; "
             "f.note.value = 'keep it'; document.querySelector('.editor form').requestSubmit()")
    page.until(lambda: page.count(".tag") == 2, "the tags")
    assert "<i>x</i>" in page.text(".runs") and "keep it" in page.text(".runs")
    page.click('[data-focus="note-one"]')
    page.click(".editor button[type=button]")
    page.until(lambda: page.count(".runs tbody tr") == 1, "the archived one to go")
    page.click('[data-focus="archived"]')
    page.until(lambda: page.count("tr.archived") == 1, "it again")
    assert json.loads((tmp_path / "runs" / "one" / "about.json").read_text()) == {
        "tags": ["best", "<i>x</i>"], "note": "keep it", "archived": True}


def test_the_phone_shows_state_win_rate_and_what_runs(page, address: str):
    page.look(NARROW)
    page.open(address)
    page.until(lambda: page.count(".runs tbody tr") == 7, "the list")
    seen = page.run("return [...document.querySelectorAll('.runs th')].filter(e => e.offsetWidth)"
                    ".map(e => e.innerText.trim())")
    assert [text.split(" ")[0] for text in seen] == ["Run", "State", "Win"]
    opened(page, address, "meaning")
    seen = page.run("return [...document.querySelectorAll('.iterations th')].filter(e => e.offsetWidth)"
                    ".map(e => e.firstChild.textContent)")
    assert seen == ["Iteration", "Win rate", "Gain, points", "Length"]
    fixed = "return getComputedStyle(document.querySelector('.iterations td')).position"
    assert page.run(fixed) == "sticky"


# ---- samples, what it means, judging ---------------------------------------------------------------------------------


def test_samples_are_sorted_filtered_and_labelled(page, address: str):
    page.look()
    opened(page, address, "sorted")
    assert page.text(".group-head .badge") == "margin of the score 0.6000"
    page.run("const i = document.querySelector('[data-focus=low]'); i.value = '0.7'; "
             "i.dispatchEvent(new Event('change'))")
    page.until(lambda: "No prompt" in page.text() or page.count(".group") == 0, "none above it")
    page.open(address + "#/run/b0.1-0/samples")
    page.click('[data-focus="note-0"]')
    page.until(lambda: page.count(".note-form") == 1, "the form")
    page.run("const f = document.querySelector('.note-form').elements; f.labels.value = 'odd'; "
             "document.querySelector('.note-form').requestSubmit()")
    page.until(lambda: "odd" in page.text(".group-head"), "the label")
    page.run("const s = document.querySelector('[data-focus=only]'); s.value = 'noted'; "
             "s.dispatchEvent(new Event('change'))")
    page.until(lambda: page.count(".group") == 1, "the labelled one alone")


def test_an_unbroken_megabyte_paints_within_two_seconds(page, serve: Callable[..., str], tmp_path: Path):
    run = world.Maker(tmp_path, "long")
    groups = [Group("p", (Message("user", "Say a."),), (Completion("a" * 1_000_000, (1,)), Completion("b", (2,))))]
    run.step("generate[1]", "generate", {}, {}, groups)
    run.save()
    page.look()
    began = time.monotonic()
    page.open(serve(tmp_path) + "#/run/long/samples")
    page.until(lambda: page.count(".expand") == 1, "the answer")
    page.run("return document.body.offsetHeight")
    opened_in = time.monotonic() - began
    assert "3,000 of 1,000,000 characters: show more" in page.text(".expand")
    began = time.monotonic()
    page.click(".expand")
    page.run("return document.body.offsetHeight")
    print(f"a megabyte: {opened_in:.2f} s to open, {time.monotonic() - began:.2f} s to expand")
    assert opened_in < 2 and time.monotonic() - began < 2
    assert "50,000 of 1,000,000" in page.text(".written.long")


def test_what_a_run_means_leads_to_its_rule(page, address: str):
    page.look()
    opened(page, address, "meaning")
    assert "gold rose: +10.0 points on the iteration before (+1.2 to +18.8 points)" in page.text(".verdicts")
    page.click('.verdicts a[href*="at=length"], .verdicts a[href*="at=gold"]')
    page.until(lambda: page.count(".reading .asked") == 1, "the rule")


def test_a_failed_step_says_what_its_code_means_and_the_way_out(page, address: str):
    page.look()
    opened(page, address, "broken")
    assert "it was killed, most often because memory ran out" in page.text(".detail")
    assert "align run run=broken workspace=" in page.text(".detail")


def test_the_timeline_has_every_try_and_the_machine(page, address: str):
    page.look()
    opened(page, address, "timeline")
    assert page.count(".gantt-track .killed") == 1 and page.count(".machine .chart canvas") == 2
    assert page.count(".edges path") > 20 and page.count(".edges path.in") > 0


def test_two_keys_judge_a_pair_and_the_next_is_painted_at_once(page, serve: Callable[..., str], tmp_path: Path):
    """Keys alone, from the first pair to the result; the time from the second key until the next pair is painted."""
    from selenium.webdriver import ActionChains, Keys

    world.whole_run(tmp_path, "good", number=4)
    page.look()
    page.open(serve(tmp_path) + "#/label/good")
    page.until(lambda: "0 of 12 judged" in page.text(), "the pairs")
    keys = lambda *k: ActionChains(page.driver).send_keys(*k).perform()  # noqa: E731
    page.run("""window.took = []; window.addEventListener('keydown', () => { const t = performance.now();
                requestAnimationFrame(() => setTimeout(() => window.took.push(performance.now() - t))); }, true)""")
    for i in range(12):
        keys("1" if i % 3 else Keys.ARROW_RIGHT)
        keys(Keys.ENTER)
        page.until(lambda i=i: f"{i + 1} of 12 judged" in page.text(), "the next")
    took = sorted(page.run("return window.took"))
    print(f"from a key to the painted page: {took[len(took) // 2]:.0f} ms, at most {took[-1]:.0f} ms")
    assert took[int(0.9 * len(took))] < 100
    keys(Keys.BACKSPACE)
    page.until(lambda: "11 of 12 judged" in page.text(), "one taken back")
    keys("0", "0")
    page.until(lambda: "All judged" in page.text(), "the end")
    page.click('[data-focus="finish"]')
    page.until(lambda: "The policy wins" in page.text(), "the result")
    assert "12 pairs of evaluate[2], 1 alike" in page.text() and "data=files data.root=" in page.text()
    page.shot("labelled-1440-light")
    written = (tmp_path / "runs" / "good" / "verdicts" / "evaluate[2].jsonl").read_text().splitlines()
    assert len(written) == 14 and json.loads(written[0])["seconds"] > 0


# ---- for everybody ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing_serious(page, address: str, view: str):
    axe = pytest.importorskip("axe_core_python", reason="pip install '.[test]': axe-core is not here")
    page.look()
    opened(page, address, view)
    page.run((Path(axe.__path__[0]) / "axe.min.js").read_text())
    found = page.driver.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    serious = [f"{v['id']}: {n['html'][:160]}: {n.get('failureSummary', '')[:300]}" for v in found["violations"]
               if v["impact"] in ("serious", "critical") for n in v["nodes"][:3]]
    assert found["passes"] and not serious, "\n".join(serious)


def test_the_pages_own_code_stays_small():
    own = [p for p in STATIC.rglob("*") if p.suffix in (".html", ".css", ".js", ".svg") and "vendor" not in p.parts]
    assert sum(path.stat().st_size for path in own) < 200_000
