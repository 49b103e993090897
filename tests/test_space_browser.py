"""The Space in a browser, as somebody sees it: microphone, camera, files, switches, phone, dark, keyboard alone.

Each test ends with what no page may do: write an error to the console, or ask anybody but the Space for anything.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import space_fixtures as fixtures
from space_fixtures import EXAMPLES, RATE, RAVDESS_SAYS, SAD, SAID, Served

from mer_hf import load_audio

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'mer-hf[dev]'")
from playwright.sync_api import Browser, Locator, Page, expect  # noqa: E402 - after the skip

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: install Debian's package `chromium`"),
]
PATIENCE = 120_000
"""Milliseconds; what takes one on an idle machine may take long on a busy one."""
OPTIONS = [
    "--no-sandbox",  # for whoever runs as root, as containers do
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--disable-background-networking",
]


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("browser")
    with fixtures.serve(fixtures.save_fusion(folder / "model"), folder / "served") as served:
        yield served


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A chromium that hears the sad example at its microphone, and sees a test picture with its camera."""
    voice = fixtures.write_sound(tmp_path_factory.mktemp("microphone") / "voice.wav", load_audio(str(SAD), RATE))
    options = [*OPTIONS, f"--use-file-for-fake-audio-capture={voice}"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, space: Served) -> Iterator[Callable[..., Page]]:
    """`visit(**context)`: the Space's page, opened in a window of its own."""
    contexts, problems, hosts = [], [], set()

    def note(message: Any) -> None:
        if message.type == "error":
            problems.append(message.text)

    def open_page(**options: Any) -> Page:
        context = browser.new_context(permissions=["microphone", "camera"], **options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: hosts.add(urlsplit(request.url)))
        page.goto(space.url)
        page.get_by_role("button", name="Read the emotion").wait_for()
        return page

    expect.set_options(timeout=PATIENCE)
    yield open_page
    for context in contexts:
        context.close()
    assert problems == []
    own = urlsplit(space.url).netloc
    assert {url.netloc for url in hosts if url.scheme not in ("data", "blob")} == {own}


def read(page: Page) -> None:
    page.get_by_role("button", name="Read the emotion").click()


def result(page: Page) -> Locator:
    return page.locator("#result")


def upload(page: Page, path: Path) -> None:
    """Through the tab for files, as somebody does who then waits until it has arrived."""
    page.get_by_role("tab", name="File").click()
    page.locator("input[type=file]").first.set_input_files(path)


def test_microphone(visit: Callable[..., Page]) -> None:
    page = visit()
    page.get_by_role("button", name="Record", exact=True).click()
    page.get_by_role("button", name="Stop").locator("visible=true").first.wait_for()
    page.wait_for_timeout(2000)
    page.get_by_role("button", name="Stop").locator("visible=true").first.click()
    expect(result(page)).to_contain_text("Ready.")
    read(page)
    expect(result(page).locator(".mer-headline")).to_contain_text(re.compile("It sounds.* most like"))
    expect(result(page)).to_contain_text("Recognised, and probably wrong")
    expect(page.get_by_label("What is said")).not_to_have_value("")


def test_camera(visit: Callable[..., Page]) -> None:
    page = visit()
    page.get_by_role("tab", name="Camera").click()
    page.get_by_text("Click to Access Webcam").click()
    record = page.get_by_role("button", name="start recording")
    record.click()
    expect(record).to_contain_text("Stop")
    page.wait_for_timeout(2000)
    record.click()
    expect(result(page)).to_contain_text("Ready.")
    page.get_by_label("What is said").fill("I am so happy!")
    read(page)
    expect(result(page).locator(".mer-headline")).to_contain_text("most like")
    expect(result(page)).to_contain_text("No face was found")  # in chromium's test picture


def test_upload_colours_and_switches(visit: Callable[..., Page], ravdess_dir: Path) -> None:
    page = visit()
    upload(page, min(ravdess_dir.glob("Actor_*/01-01-??-??-01-*.mp4")))  # speech on video, of the first sentence
    expect(result(page)).to_contain_text("Ready.")
    expect(page.locator("video")).to_be_visible()
    page.get_by_label("What is said").fill(RAVDESS_SAYS)
    read(page)
    expect(result(page).locator(".mer-headline")).to_contain_text("It sounds, looks and reads most like")
    assert result(page).locator(".mer-words").inner_text().split()[0].startswith("kids")
    coloured = result(page).locator(".mer-words .mer-for, .mer-words .mer-against")
    assert coloured.count() >= 2
    assert "No face" not in result(page).inner_text()

    page.get_by_label("face").uncheck()
    expect(result(page).locator(".mer-headline")).to_contain_text("It sounds and reads most like")
    expect(result(page)).to_contain_text("Ignored, as switched off: face.")


def test_unusable_files(visit: Callable[..., Page], tmp_path: Path) -> None:
    page = visit()
    for path, message in fixtures.write_bad_files(tmp_path).values():
        upload(page, path)
        if path.name == "silent.wav":  # which is seen only by listening
            expect(result(page)).to_contain_text("Ready.")
            read(page)
        expect(result(page).get_by_role("alert")).to_contain_text(message)
        page.get_by_label("Clear").locator("visible=true").first.click()
        expect(result(page)).to_contain_text("The result will be here.")


def test_phone_in_the_dark(visit: Callable[..., Page]) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "color_scheme": "dark"}
    page = visit(**phone)
    page.get_by_role("button", name="Changing moods, over time").tap()
    expect(result(page).locator(".mer-timeline")).to_be_visible()
    expect(page.get_by_label("What is said")).to_have_value(SAID["talk.mp4"])
    assert result(page).locator(".mer-moments li").count() == 4
    expect(result(page).locator(".mer-headline")).to_be_in_viewport()  # scrolled to, far below the button
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("document.body.classList.contains('dark')")
    assert faint_texts(page) == []


def test_by_keyboard_alone(visit: Callable[..., Page]) -> None:
    page = visit(color_scheme="light")
    walk_to(page, EXAMPLES[-1]["title"])
    page.keyboard.press("Enter")
    expect(result(page).locator(".mer-headline")).to_contain_text("It reads most like")
    first = result(page).inner_text()
    walk_to(page, "words")
    page.keyboard.press("Space")
    expect(result(page).get_by_role("alert")).to_contain_text("Ignored: words")
    assert faint_texts(page) == []
    page.keyboard.press("Space")
    expect(result(page)).to_have_text(first, use_inner_text=True)
    walk_to(page, "What this can't do")
    page.keyboard.press("Enter")
    expect(page.get_by_text("It should not decide anything about a person.")).to_be_visible()
    expect(page.get_by_text(re.compile(r"right so often: speech alone \d\d% \(RAVDESS\), face alone"))).to_be_visible()
    assert faint_texts(page) == []


def walk_to(page: Page, name: str) -> None:
    """Press Tab until what bears the name has the focus, and shows that it has; arrows move within tabs."""
    script = """() => { const own = document.activeElement;
        return (own.closest('label') || own).innerText.trim() || own.ariaLabel || ''; }"""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate(script) == name:
            return
    raise AssertionError(f"{name} cannot be reached with the Tab key")


def faint_texts(page: Page) -> list[str]:
    """Visible texts of ours and their contrast, where it is less than WCAG's 4.5 : 1 (https://www.w3.org/TR/WCAG21).

    A canvas mixes the backgrounds behind a text, which are half transparent, and its colour.
    """
    return page.evaluate(
        """() => {
        const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
        const paint = colours => {
            canvas.fillStyle = 'white'; canvas.fillRect(0, 0, 1, 1);
            for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
            const light = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(
                v => v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
            return 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2];
        };
        const found = [];
        for (const element of document.querySelectorAll('h1, h2, h3, p, li, button, label, span, strong, td, a')) {
            const own = [...element.childNodes].filter(n => n.nodeType === 3 && n.data.trim());
            if (!own.length || !element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
            const behind = [];
            for (let at = element; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
            const text = paint([...behind, getComputedStyle(element).color]), back = paint(behind);
            const contrast = (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
            if (contrast < 4.5) found.push(own[0].data.trim().slice(0, 30) + ' ' + contrast.toFixed(2));
        }
        return found;
    }"""
    )
