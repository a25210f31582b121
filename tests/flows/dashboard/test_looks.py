"""Every view of a busy workspace, at both widths, in both schemes: nothing sticks out, nothing is complained of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.flows.dashboard.conftest import NARROW, WIDE
from tests.flows.dashboard.crowd import LONG, crowd

LOOKS = [(WIDE, "light"), (NARROW, "light"), (WIDE, "dark"), (NARROW, "dark")]
ALL = "&".join(f"run=arm-{i:04d}" for i in range(1, 53)) + "&run=arm&run=hostile&run=nan&run=broken&run=unfinished"
TABS = {"run": "Steps", "iterations": "", "training": "", "samples": "", "lineage": "", "data": ""}
ROUTES = {
    "runs": ("#/", "60 runs"), "grouped": ("#/?group=1&sort=-rate&columns=state,rate,interval,tags,note", "60 runs"),
    "compare": (f"#/compare?{ALL}&ours=A&theirs=B", "Leaderboard"),
    "curves": (f"#/compare?{ALL}&view=curves&smooth=0.5&ylog=1", "Log-probs"),
    "settings": (f"#/compare?{ALL}&view=settings", "All settings at once"),
    "artifacts": (f"#/compare?{ALL}&view=artifacts", "Choose a bar"),
    "unjudged": ("#/compare?run=broken&run=unfinished", "Compare"),
    "side": ("#/run/hostile/samples?id=p000003&with=nan&diff=1", "answered in"),
    "label": ("#/label/hostile", "Judge by hand"), "reading": ("#/reading?at=gamed", "verdict"),
    **{f"{run}-{tab}": (f"#/run/{quote(run)}{'' if tab == 'run' else f'/{tab}'}", sign or run)
       for run in ("hostile", "nan", "broken", "unfinished", "fresh", LONG) for tab, sign in TABS.items()}}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, serve: Callable[..., str]) -> str:
    place = tmp_path_factory.mktemp("crowd")
    crowd(place)
    return serve(place)


@pytest.mark.parametrize(("view", "look"), [(view, i % len(LOOKS)) for i, view in enumerate(ROUTES)], ids=ROUTES)
def test_no_view_sticks_out_or_complains(page, address: str, view: str, look: int):
    """Each in two looks: that one, and the other width in the other scheme."""
    page.in_every_look([LOOKS[look], LOOKS[3 - look]], f"crowd-{view}", lambda: page.show(address, *ROUTES[view]))
    assert page.run("return window.hacked ?? null") is None


def test_a_phone_has_the_win_rates_within_its_width(page, address: str):
    """A torn record's long word of why is on as many lines as it takes."""
    page.look(NARROW)
    page.show(address, *ROUTES["runs"])
    assert page.run("return document.querySelector('.runs b').getBoundingClientRect().right") <= NARROW[0]


def test_runs_without_an_evaluation_open_on_their_curves(page, address: str):
    page.look()
    page.show(address, *ROUTES["unjudged"])
    assert page.text("nav.views [aria-pressed=true]") == "Training curves"
    page.click("[data-focus=view-numbers]")
    page.until(lambda: page.count("[data-focus=y]") == 1, "the numbers all the same")


@pytest.mark.parametrize("route", ["#/", "#/compare", "#/run/nobody", "#/label/nobody"])
def test_an_empty_workspace(page, serve: Callable[..., str], tmp_path: Path, route: str):
    address, (size, scheme) = serve(tmp_path), LOOKS[len(route) % 4]
    page.look(size, scheme)
    page.show(address, route, "align run" if route in ("#/", "#/compare") else "All runs")
    assert page.run("return document.documentElement.scrollWidth") <= size[0]
