"""The player of galleries in a browser without a network, by mouse, keyboard and touch, on a phone and on paper."""

import dataclasses
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select

from deploy.render.episode import Episode
from deploy.report.gallery import markup
from deploy.report.gallery.films import Film, make_film, shoot
from deploy.report.gallery.markup import FilmStore, lay_out
from shared.envs.registry import make_env
from tests.deploy.chromium import DESK, PHONE, open_chromium, requests, show
from tests.deploy.render.cases import BODY, GOAL, find
from tests.deploy.report.gallery.cases import sliding, write_page

pytestmark = pytest.mark.slow
WAIT_S = 20
STEPS = 20  # of an episode in the maze


class Films(NamedTuple):
    page: Path
    beside: list[Path]


@pytest.fixture(scope="module")
def opened() -> Iterator[webdriver.Chrome]:
    with open_chromium() as chromium:
        yield chromium


@pytest.fixture
def browser(opened: webdriver.Chrome) -> Iterator[webdriver.Chrome]:
    """A browser that until the end of the test prints no message, and asks for nothing but files."""
    requests(opened)
    opened.get_log("browser")
    yield opened
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert all(url.startswith("file:") for url in requests(opened))
    assert opened.get_log("browser") == []


@pytest.fixture(scope="module")
def made() -> dict[str, Film]:
    gallery = sliding()
    return {name: make_film(shoot(gallery.env, gallery.episodes(name))) for name in gallery.shown}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def films(made: dict[str, Film], tmp_path_factory: pytest.TempPathFactory) -> Films:
    """A page with two objectives: the films of the first one fill the budget, those of the second one lie beside."""
    folder = tmp_path_factory.mktemp("films")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(markup, "FILM_BUDGET_BYTES", sum(len(film.mp4) for film in made.values()))
        store = FilmStore(folder / "page.html", folder / "films")
        views = [lay_out(sliding(objective=each), made, store) for each in ("contrastive", "my:survival")]
    return Films(write_page(views, folder / "page.html"), sorted(folder.glob("films/*")))


class Player:
    """One gallery of the page that `browser` shows."""

    def __init__(self, browser: webdriver.Chrome, number: int = 0) -> None:
        self._browser = browser
        self.gallery = browser.find_elements(By.CLASS_NAME, "gallery")[number]
        self.play = self.gallery.find_element(By.CLASS_NAME, "play")
        self.scrub = self.gallery.find_element(By.CLASS_NAME, "scrub")

    @property
    def frame(self) -> int:
        return int(self.gallery.get_attribute("data-frame") or 0)

    @property
    def last(self) -> int:
        return int(self.scrub.get_attribute("max") or 0)

    def run(self, script: str) -> Any:
        return self._browser.execute_script(f"const gallery = arguments[0]; {script}", self.gallery)

    def choose(self, name: str) -> None:
        self.gallery.find_element(By.CSS_SELECTOR, f".episodes [data-episode={name}]").click()

    def set_speed(self, speed: str) -> None:
        Select(self.gallery.find_element(By.CLASS_NAME, "speed")).select_by_visible_text(f"{speed}×")

    def seek(self, frame: int) -> None:
        self.run(f"const s = gallery.querySelector('.scrub'); s.value = {frame}; s.dispatchEvent(new Event('input'))")

    def visible(self, selector: str) -> int:
        found = f"[...gallery.querySelectorAll('{selector}')]"
        return int(self.run(f"return {found}.filter(each => each.checkVisibility()).length"))

    def bodies(self) -> list[list[float]]:
        """Returns where each visible path shows its body."""
        place = "['cx', 'cy'].map(name => Number(shot.querySelector('.body').getAttribute(name)))"
        return self.run(f"return {SHOTS}.map(shot => {place})")

    def points(self) -> list[list[list[float]]]:
        """Returns all points of each visible path."""
        pieces = "[...shot.querySelectorAll('polyline')].map(line => line.getAttribute('points').split(' '))"
        points = f"{pieces}.flatMap((points, index) => points.slice(index ? 1 : 0))"  # a piece begins where one ended
        return self.run(f"return {SHOTS}.map(shot => {points}.map(point => point.split(',').map(Number)))")

    def canvases(self) -> list[np.ndarray]:
        """Returns the visible canvases, each `[height, width, 3]` in 0..1."""
        shots = self.gallery.find_elements(By.CSS_SELECTOR, ".shot:not([hidden]) canvas")
        return [np.asarray(Image.open(io.BytesIO(each.screenshot_as_png)).convert("RGB")) / 255 for each in shots]

    def goals(self) -> np.ndarray:
        """Returns the mean column of the goal in each canvas."""
        return np.array([np.argwhere(find(each)[GOAL])[:, 1].mean() for each in self.canvases()])


SHOTS = "[...gallery.querySelectorAll('.shot:not([hidden])')]"


def wait_until(is_true: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < end, "the page does not change"
        time.sleep(0.02)


def tap(browser: webdriver.Chrome, place: dict[str, float]) -> None:
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [place]})
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_it_plays_pauses_and_ends_with_whole_paths(browser: webdriver.Chrome, report: Path) -> None:
    show(browser, report, DESK)
    player = Player(browser)
    assert player.frame == player.last == STEPS - 1  # at first whole paths are shown
    player.set_speed("0.25")

    def is_between() -> bool:
        if player.play.get_attribute("aria-label") == "play":  # at first, and if it ended before this looked
            player.play.click()
        return 2 < player.frame < player.last

    wait_until(is_between)
    assert player.visible("polyline.later") > 0
    player.play.click()
    paused = player.frame
    assert player.play.get_attribute("aria-label") == "play"
    time.sleep(0.5)
    assert player.frame == paused
    player.set_speed("4")
    player.play.click()
    wait_until(lambda: player.frame == player.last)
    assert player.visible("polyline.later") == 0
    assert player.bodies() == [points[-1] for points in player.points()]
    player.play.click()  # from the start again
    wait_until(lambda: player.frame < player.last)


def test_a_long_path_is_whole_at_its_end(browser: webdriver.Chrome, tmp_path: Path) -> None:
    down = np.linspace(1, 3, 500)
    states, still = np.stack([down, np.full(500, 3.0)], axis=1), np.full((500, 2), 3.0)
    walks = {cell: [Episode(states, still, np.ones(500), still)] for cell in sliding().cells}
    gallery = dataclasses.replace(sliding(), env=make_env("point_u_maze"), shown={"worst": 0}, cells=walks)
    store = FilmStore(tmp_path / "page.html", tmp_path / "films")
    show(browser, write_page([lay_out(gallery, {}, store)], tmp_path / "page.html"), DESK)
    player = Player(browser)
    points = player.points()[0]
    assert len(points) == 168  # every third step, and the last one
    assert player.bodies() == [points[-1]] * 3
    assert player.visible("polyline.later") == 0
    assert "step 499 of 499" in player.gallery.text
    player.seek(80)
    assert player.bodies() == [points[80]] * 3
    assert player.visible("polyline.later") > 0


def test_its_speed_changes_while_it_plays(browser: webdriver.Chrome, report: Path) -> None:
    show(browser, report, DESK)
    player = Player(browser)
    taken = "const start = performance.now(), shows = setInterval(() => { if (gallery.dataset.frame == 19) {"
    taken += "gallery.dataset.taken = performance.now() - start; clearInterval(shows) } }, 5);"
    for speed, low, high in (("0.5", 1.2, 2.5), ("2", 0.25, 1)):  # 19 frames of 1/30 s
        player.set_speed(speed)
        player.run(f"delete gallery.dataset.taken; gallery.querySelector('.play').click(); {taken}")
        wait_until(lambda: player.gallery.get_attribute("data-taken"))
        assert low < float(player.gallery.get_attribute("data-taken") or 0) / 1000 < high


def test_the_time_line_moves_all_cells(browser: webdriver.Chrome, report: Path) -> None:
    show(browser, report, DESK)
    player = Player(browser)
    size = player.scrub.rect
    ActionChains(browser).move_to_element_with_offset(player.scrub, -size["width"] // 4, 0).click().perform()
    frame = player.frame
    assert 3 <= frame <= 7
    assert player.bodies() == [points[frame] for points in player.points()]
    assert len(player.bodies()) == 6
    assert f"step {frame:>2} of 19".replace("  ", " \u2007") in player.gallery.text
    assert player.scrub.rect == size  # the clock is always as wide


def test_it_shows_another_episode(browser: webdriver.Chrome, report: Path) -> None:
    show(browser, report, DESK)
    player = Player(browser)
    seen = []
    for name in ("median", "worst", "best"):
        player.play.click()
        player.choose(name)
        pressed = player.gallery.find_elements(By.CSS_SELECTOR, "[aria-pressed=true]")
        assert [each.text for each in pressed] == [name]
        assert player.run(f"return {SHOTS}.map(shot => shot.dataset.episode)") == [name] * 6
        assert player.frame == player.last
        assert player.play.get_attribute("aria-label") == "play"
        seen.append(player.points()[0][0])
    assert len({tuple(start) for start in seen}) == 3


def test_keys_play_and_step(browser: webdriver.Chrome, report: Path) -> None:
    show(browser, report, DESK)
    player = Player(browser)
    player.set_speed("0.25")

    def press(key: str) -> int:
        ActionChains(browser).send_keys(key).perform()
        return player.frame

    player.choose("worst")  # a button has the focus: arrows step, too
    assert press(Keys.HOME) == 0
    assert press(Keys.ARROW_RIGHT) == 1
    player.run("gallery.focus(); window.scrolled = scrollY")
    assert press(Keys.ARROW_RIGHT) == 2
    assert press(Keys.ARROW_LEFT) == 1
    assert press(Keys.END) == player.last
    press(" ")
    wait_until(lambda: 0 < player.frame < player.last)
    press(" ")
    paused = player.frame
    time.sleep(0.3)
    assert player.frame == paused < player.last
    assert player.run("return scrollY === window.scrolled")
    player.run("gallery.querySelector('.scrub').focus()")
    assert press(Keys.HOME) == 0
    assert press(Keys.ARROW_RIGHT) == 1
    player.run("gallery.querySelector('.speed').focus()")
    assert press(Keys.ARROW_RIGHT) == 1


def test_a_phone_plays_by_touch(browser: webdriver.Chrome, report: Path) -> None:
    show(browser, report, PHONE)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    player = Player(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") == PHONE
    transport = player.gallery.find_element(By.CLASS_NAME, "transport").rect
    assert transport["width"] <= PHONE - 2 * 12
    assert transport["height"] < 100  # two rows
    for button in (*player.gallery.find_elements(By.TAG_NAME, "button"), player.scrub):
        assert button.rect["height"] >= 34
    player.set_speed("0.25")

    def touch(selector: str) -> None:
        script = f"const r = gallery.querySelector('{selector}').getBoundingClientRect();"
        x, y = player.run(f"{script} return [r.x + r.width / 2, r.y + r.height / 2]")
        tap(browser, {"x": x, "y": y})

    touch(".play")
    wait_until(lambda: 0 < player.frame < player.last)
    touch(".play")
    wait_until(lambda: player.play.get_attribute("aria-label") == "play")
    touch("[data-episode=best]")
    wait_until(lambda: player.run(f"return {SHOTS}[0].dataset.episode") == "best")
    touch(".scrub")
    wait_until(lambda: 7 <= player.frame <= 12)


def test_paper_shows_all_episodes_and_no_controls(browser: webdriver.Chrome, films: Films, report: Path) -> None:
    show(browser, report, DESK)
    player = Player(browser)
    player.seek(0)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert (player.visible(".transport"), player.visible(".body")) == (0, 0)
    assert player.visible(".path") == player.visible(".named") == 3 * 6
    opacity = "[...gallery.querySelectorAll('polyline')].every(line => getComputedStyle(line).strokeOpacity === '1')"
    assert player.run(f"return {opacity}")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    show(browser, films.page, DESK)
    player = Player(browser)
    wait_until(lambda: player.visible(".film"))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert (player.visible(".transport"), player.visible(".film")) == (0, 0)
    assert player.visible(".strip") == 2 * 3


def test_without_scripts_all_episodes_are_shown_by_name(browser: webdriver.Chrome, report: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(browser, report, DESK)
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    player = Player(browser)
    assert player.visible(".transport") == 0
    assert player.visible(".path") == player.visible(".named") == 3 * 6
    assert "worst episode" in player.gallery.text


def test_films_of_all_cells_stay_in_step(browser: webdriver.Chrome, films: Films) -> None:
    show(browser, films.page, DESK)
    player, other = Player(browser), Player(browser, 1)
    player.choose("worst")
    player.seek(0)
    wait_until(lambda: player.canvases()[0].std() > 0.05 and np.ptp(player.goals()) < 1.5)
    first = player.goals().mean()
    player.set_speed("0.5")
    player.play.click()
    wait_until(lambda: 10 < player.frame < player.last)
    player.play.click()
    paused = player.frame
    wait_until(lambda: np.ptp(player.goals()) < 1.5)
    middle = player.goals().mean()
    time.sleep(0.4)
    assert player.frame == paused
    np.testing.assert_allclose(player.goals(), middle, atol=0.5)
    player.seek(player.last)
    wait_until(lambda: abs(player.goals() - middle).min() > 5)
    last = player.goals()
    assert np.ptp(last) < 1.5
    moved = (middle - first) / (last.mean() - first)
    assert abs(moved - paused / player.last) < 0.1  # the goal moves evenly
    bodies = [np.argwhere(find(each)[BODY])[:, 1].mean() for each in player.canvases()]
    assert np.ptp(bodies) > 20  # each canvas shows its own cell
    assert other.frame == other.last
    identifiers = "return [...document.querySelectorAll('[id]')].map(each => each.id)"
    assert sorted(browser.execute_script(identifiers)) == ["gallery-slider-contrastive", "gallery-slider-my.survival"]


def test_films_beside_the_page_play(browser: webdriver.Chrome, films: Films) -> None:
    assert [path.name for path in films.beside] == [f"slider-my.survival-{name}.mp4" for name in ("median", "worst")]
    show(browser, films.page, DESK)
    player = Player(browser, 1)
    player.run("gallery.scrollIntoView()")
    wait_until(lambda: player.canvases()[0].std() > 0.05)
    last = player.goals()[::2]  # the middle cell's episode ends early
    assert np.ptp(last) < 1.5
    player.set_speed("0.5")
    player.play.click()
    wait_until(lambda: 2 < player.frame < player.last)
    player.play.click()
    wait_until(lambda: abs(player.goals()[::2] - last).min() > 5)


def test_an_episode_that_ends_early_stands_still(browser: webdriver.Chrome, films: Films) -> None:
    show(browser, films.page, DESK)
    player = Player(browser)
    captions = [each.text for each in player.gallery.find_elements(By.CSS_SELECTOR, ".shot:not([hidden]) .caption")]
    assert captions == ["never at goal", "never at goal; ended at step 60", "never at goal"]

    def bodies() -> list[np.ndarray]:
        return [np.argwhere(find(each)[BODY]).mean(axis=0) for each in player.canvases()]

    def at(frame: int) -> list[np.ndarray]:
        before = bodies()[0]
        player.seek(frame)
        wait_until(lambda: np.linalg.norm(bodies()[0] - before) > 3)
        return bodies()

    wait_until(lambda: player.canvases()[0].std() > 0.05)
    start, early, late = at(0), at(12), at(player.last)
    moved = [(np.linalg.norm(b - a), np.linalg.norm(c - b)) for a, b, c in zip(start, early, late, strict=True)]
    assert min(first for first, _ in moved) > 3
    assert moved[1][1] < 0.5
    assert min(moved[0][1], moved[2][1]) > 3


def test_a_quick_pause_does_not_stop_the_next_episode(browser: webdriver.Chrome, films: Films) -> None:
    show(browser, films.page, DESK)
    player = Player(browser)
    player.set_speed("0.5")
    player.run(
        "const click = (selector) => gallery.querySelector(selector).click();"
        "click('.play'); click('[data-episode=worst]'); click('.play');"  # before the first film plays
    )
    wait_until(lambda: 2 < player.frame < player.last)
    assert player.play.get_attribute("aria-label") == "pause"
    for _ in range(3):
        player.run("for (let i = 0; i < 4; i++) gallery.querySelector('.play').click()")
    before = player.frame
    wait_until(lambda: before < player.frame)


def test_a_film_that_cannot_be_played_leaves_strips_and_clock(
    browser: webdriver.Chrome, made: dict[str, Film], tmp_path: Path
) -> None:
    damaged = {name: film._replace(mp4=film.mp4[:600] + b"damaged" * 90) for name, film in made.items()}
    store = FilmStore(tmp_path / "page.html", tmp_path / "films")
    show(browser, write_page([lay_out(sliding(), damaged, store)], tmp_path / "page.html"), DESK)
    player = Player(browser)
    wait_until(lambda: player.visible(".film") == 0)
    assert player.visible(".strip") == 3
    player.choose("worst")
    player.play.click()
    wait_until(lambda: 3 < player.frame < player.last)
    assert (player.visible(".film"), player.visible(".strip")) == (0, 3)
    wait_until(lambda: player.frame == player.last)
    player.choose("median")
    assert player.visible(".film") == 0
