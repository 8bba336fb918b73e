"""The page of an episode in a browser without a network, played and turned around by mouse and by touch."""

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.actions.mouse_button import MouseButton
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from shared.config import EnvOptions
from tests.deploy.chromium import DESK, PHONE, open_chromium, requests, show
from tests.deploy.render.cases import BODY, GOAL, LENGTH, WALL, Slider, count, draw, find

pytestmark = pytest.mark.slow
LAST = (LENGTH - 1) * 0.01  # seconds: the last moment
PANEL = 245  # pixels: the width of the controls, which are at the right
WAIT_S = 20


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "slide.html"
    draw(Slider(EnvOptions()), out, "html")
    return out


@pytest.fixture(scope="module")
def opened() -> Iterator[webdriver.Chrome]:
    with open_chromium() as chromium:
        yield chromium


@pytest.fixture
def browser(opened: webdriver.Chrome, page: Path) -> Iterator[webdriver.Chrome]:
    """A browser that until the end of the test asks for nothing but `page`, and prints no message."""
    requests(opened)
    opened.get_log("browser")
    yield opened
    assert set(requests(opened)) == {page.as_uri()}
    assert opened.get_log("browser") == []


def wait_until(is_true: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < end, "the page does not change"
        time.sleep(0.05)


def control(browser: webdriver.Chrome, name: str) -> WebElement:
    """Returns the field of the controls that is called `name`."""
    return browser.find_element(By.XPATH, f"//*[contains(@class, 'controller')][*[.='{name}']]//input")


def seconds(browser: webdriver.Chrome) -> float:
    return float(control(browser, "time (s)").get_property("value") or 0)


def enter(browser: webdriver.Chrome, name: str, value: float) -> None:
    control(browser, name).send_keys(Keys.CONTROL, "a")
    control(browser, name).send_keys(str(value), Keys.ENTER)


def play_or_pause(browser: webdriver.Chrome) -> None:
    button = browser.find_element(By.XPATH, "//button[.='Play / Pause']")
    wait_until(button.is_displayed)
    button.click()


def pause_at(browser: webdriver.Chrome, moment: float) -> None:
    wait_until(lambda: seconds(browser) > 0)
    play_or_pause(browser)
    enter(browser, "time (s)", moment)


def look(browser: webdriver.Chrome) -> np.ndarray:
    """Returns the scene `[height, width, 3]` in 0..1, left of the controls."""
    shown = image.imread(io.BytesIO(browser.get_screenshot_as_png()), format="png")
    return shown[:, : max(PHONE, shown.shape[1] - PANEL), :3]


def centre(pixels: np.ndarray, kind: str) -> np.ndarray:
    """Returns the mean row and column of the pixels that show `kind`."""
    return np.argwhere(find(pixels)[kind]).mean(axis=0)


def body_moved(browser: webdriver.Chrome, start: np.ndarray) -> np.ndarray:
    """Returns by how many rows and columns the body is lower and farther right than in `start`."""
    return centre(look(browser), BODY) - centre(start, BODY)


def drag_mouse(browser: webdriver.Chrome, by: tuple[int, int], button: int) -> None:
    mouse = ActionChains(browser).move_to_element(browser.find_element(By.TAG_NAME, "canvas"))
    mouse.w3c_actions.pointer_action.pointer_down(button=button)
    mouse.w3c_actions.pointer_action.move_by(*by)
    mouse.w3c_actions.pointer_action.pointer_up(button=button)
    mouse.perform()


def test_goal_body_and_wall_are_visible_and_the_goal_moves(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page, DESK)
    pause_at(browser, 0)
    first = look(browser)
    assert min(count(first).values()) > 1000
    enter(browser, "time (s)", LAST)
    wait_until(lambda: np.linalg.norm(centre(look(browser), GOAL) - centre(first, GOAL)) > 200)  # 1.1 m of 2.6 m
    # The goal hides other parts of the wall.
    assert np.linalg.norm(centre(look(browser), WALL) - centre(first, WALL)) < 50


def test_it_plays_at_any_speed_and_pauses(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page, DESK)
    wait_until(lambda: seconds(browser) > 0)
    enter(browser, "speed", 0.01)
    enter(browser, "time (s)", 0.02)
    start = time.monotonic()
    wait_until(lambda: seconds(browser) >= 0.05)
    assert time.monotonic() - start > 1.5  # at its own speed it ends after 0.1 s, and begins again
    play_or_pause(browser)
    paused = seconds(browser)
    time.sleep(1.5)
    assert seconds(browser) == paused


def test_a_mouse_turns_the_scene(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page, DESK)
    pause_at(browser, 0)
    start = look(browser)
    drag_mouse(browser, (150, 0), MouseButton.LEFT)
    wait_until(lambda: (abs(body_moved(browser, start)) > 30).all())  # it comes nearer, so it is lower, too


def test_a_mouse_moves_the_scene(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page, DESK)
    pause_at(browser, 0)
    start = look(browser)
    drag_mouse(browser, (0, 100), MouseButton.RIGHT)
    wait_until(lambda: body_moved(browser, start)[0] > 50)
    assert abs(body_moved(browser, start)[1]) < 20


def test_a_wheel_makes_the_scene_smaller(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page, DESK)
    pause_at(browser, 0)
    start = look(browser)
    ActionChains(browser).scroll_by_amount(0, 600).perform()
    wait_until(lambda: count(look(browser))[BODY] < 0.95 * count(start)[BODY])


def test_a_phone_shows_the_whole_scene_and_turns_it_by_touch(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page, PHONE)
    size = "return [document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    assert browser.execute_script(size) == [PHONE, 800]
    browser.find_element(By.XPATH, "//*[.='Controls']").click()
    pause_at(browser, LAST)
    browser.find_element(By.XPATH, "//*[.='Controls']").click()
    start = look(browser)
    assert min(count(start).values()) > 100
    assert not any(found[:, [0, -1]].any() for found in find(start[50:]).values())
    for kind, points in (("touchStart", [(100, 500)]), ("touchMove", [(200, 500)]), ("touchEnd", [])):
        touches = [{"x": x, "y": y} for x, y in points]
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
    wait_until(lambda: body_moved(browser, start)[0] > 20)
