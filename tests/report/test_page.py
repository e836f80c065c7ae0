"""The page in a real browser: points hover, tables sort, nothing runs that should not."""

import os
import re
import shutil

import pytest
from playwright import sync_api

from tests import fake_models
from vbon_jax.report import outputs, page

SCRIPT = "<script>window.hacked=1</script><img src=x onerror=window.hacked=2>"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
CELLS = [
    {"method": method, "n": n, "seed": seed}
    for method in ("vbon", "kl_rl")
    for n in (2.0, 8.0, 16.0)
    for seed in (0, 1)
]


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, which must be there in continuous integration."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        message = f"no browser: none of {', '.join(BROWSERS)} is installed"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A report with an unfinished run, and a script for a response and for a method's name."""
    folder = fake_models.write_work(tmp_path_factory.mktemp("work"), CELLS, prompts=16, text=SCRIPT)
    config = fake_models.defaults().to_dict()
    unfinished = {"method": "dpo", "n": 4.0, "seed": 0, "train.steps": SCRIPT.replace("/", "")}
    fake_models.write_run(folder, unfinished, config, logged=9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs.style, "save", lambda *_, data: None)  # the page needs no files
        outputs.write(folder)
    return folder / "report.html"


class Opened:
    """The page in a tab of its own, and what went wrong in it."""

    def __init__(self, browser, file, **options):
        self.tab = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.tab.set_default_timeout(10_000)
        self.messages, self.requests = [], []
        self.tab.on("console", lambda message: self.messages.append(message.text))
        self.tab.on("pageerror", lambda error: self.messages.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(file.as_uri())
        self.drawn("win-rate-against-kl")

    def drawn(self, name: str, mode: str = "light|dark") -> sync_api.Locator:
        """A figure, scrolled to, when it is there."""
        plot = self.tab.locator(f".plot[data-figure={name}]")
        plot.evaluate("one => one.scrollIntoView({block: 'center'})")
        sync_api.expect(plot).to_have_attribute("data-drawn", re.compile(mode))
        return plot

    def all_drawn(self) -> list[sync_api.Locator]:
        """Every figure."""
        names = self.tab.locator(".plot").evaluate_all("all => all.map(one => one.dataset.figure)")
        return [self.drawn(name) for name in names]


@pytest.fixture
def opened(browser, file):
    opened = Opened(browser, file)
    yield opened
    assert not opened.messages
    assert opened.requests == [file.as_uri()]
    assert opened.tab.evaluate("window.hacked") is None
    opened.tab.close()


def points(plot: sync_api.Locator) -> sync_api.Locator:
    """The marks of a figure that show policies, Best-of-N and the reference."""
    return plot.locator(".mark-symbol.role-mark path")


def column(opened, title: str, name: str) -> list[str]:
    """The texts of a table's column, hidden rows left out."""
    return opened.tab.evaluate(
        """([title, name]) => {
          const table = document.querySelector(`.wide[aria-label="${title}"] table`);
          const head = [...table.tHead.rows[0].cells].map((cell) => cell.innerText);
          const at = head.findIndex((text) => text.startsWith(name));
          return [...table.tBodies[0].rows].filter((row) => !row.hidden)
            .map((row) => row.cells[at].firstChild.textContent);
        }""",
        [title, name],
    )


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(" ", ""))


# ------------------------------------------------------------------------------- figures


def test_every_figure_is_drawn_without_a_word_or_a_request(opened):
    for plot in opened.all_drawn():
        assert plot.locator("svg path").count() > 3


def test_a_point_names_its_run(opened):
    opened.all_drawn()  # nothing moves below the pointer
    tip = opened.tab.locator("#vg-tooltip-element")
    for figure in ("win-rate-against-kl", "deficit-by-n", "length-against-kl"):
        seen = set()
        marks = points(opened.drawn(figure))
        for index in range(marks.count()):
            marks.nth(index).hover(force=True)
            sync_api.expect(tip).to_be_visible()
            seen |= set(re.findall(r"(?:vbon|kl_rl)-n\d+-s\d", tip.inner_text()))
        assert len(seen) >= len(CELLS) - 3, figure  # some may lie under others


def test_bars_and_lines_name_what_they_are(opened):
    tip = opened.tab.locator("#vg-tooltip-element")
    bar = opened.drawn("pareto-win-rate").locator(".mark-rect.role-mark path").first
    bar.hover(force=True, position={"x": 3, "y": 3})
    assert re.search(r"vbon|kl_rl", tip.inner_text())
    line = opened.drawn("training").locator(".mark-line.role-mark path")
    assert line.count() == len(CELLS) + 1


def test_a_metric_is_chosen(opened):
    plot = opened.drawn("training")
    assert "eval/win_rate" in plot.inner_text()
    opened.tab.select_option("#metric", "loss/total")
    sync_api.expect(plot.locator("svg")).to_contain_text("loss/total")
    assert plot.locator(".mark-line.role-mark path").count() == len(CELLS) + 1


def test_a_method_stands_out_when_it_is_chosen(opened):
    plot = opened.drawn("win-rate-against-kl")

    def faint() -> int:
        shades = points(plot).evaluate_all("all => all.map(one => one.getAttribute('opacity'))")
        return shades.count("0.1")

    button = opened.tab.locator("#legend button", has_text="kl_rl")
    assert faint() == 0
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    opened.tab.wait_for_timeout(200)
    assert faint() == len(CELLS) / 2
    button.click()
    opened.tab.wait_for_timeout(200)
    assert faint() == 0


def test_colours_follow_the_scheme(browser, file):
    opened = Opened(browser, file, color_scheme="light")
    look = """name => {
      const plot = document.querySelector(`[data-figure=${name}]`);
      return [getComputedStyle(document.body).backgroundColor,
        plot.querySelector('.role-axis-title text').getAttribute('fill'),
        plot.querySelector('.mark-line.role-mark path, .mark-line path').getAttribute('stroke')];
    }"""
    name = "win-rate-against-kl"
    light = opened.tab.evaluate(look, name)
    opened.tab.emulate_media(color_scheme="dark")
    opened.drawn(name, "dark")
    dark = opened.tab.evaluate(look, name)
    assert light == ["rgb(255, 255, 255)", "#1b1f24", "#1b1f24"]
    assert dark == ["rgb(15, 19, 24)", "#e6edf3", "#e6edf3"]
    assert not opened.messages
    opened.tab.close()


def test_a_phone_shows_everything_within_its_width(browser, file):
    size = {"width": 390, "height": 800}
    opened = Opened(browser, file, viewport=size, color_scheme="dark")
    for width in (390, 320):
        opened.tab.set_viewport_size(size | {"width": width})
        opened.all_drawn()
        opened.tab.locator("details").evaluate("one => { one.open = true }")
        opened.tab.wait_for_timeout(300)
        assert opened.tab.evaluate("document.documentElement.scrollWidth") <= width
        widths = opened.tab.locator(".plot svg").evaluate_all(
            "all => all.map(one => one.getBoundingClientRect().right)"
        )
        assert max(widths) <= width
        assert min(widths) > width / 2
    assert not opened.messages
    opened.tab.close()


# ------------------------------------------------------------------------------- tables


def header(opened, title: str, name: str) -> sync_api.Locator:
    table = opened.tab.get_by_role("region", name=title, exact=True)
    return table.locator("th", has=opened.tab.get_by_role("button", name=name, exact=True))


def test_numbers_sort_both_ways_with_empty_cells_last(opened):
    for name in ("N", "win rate", "deficit"):
        cell = header(opened, "Results", name)
        cell.locator("button").click()
        assert cell.get_attribute("aria-sort") == "ascending"
        up = column(opened, "Results", name)
        cell.locator("button").press("Enter")
        assert cell.get_attribute("aria-sort") == "descending"
        down = column(opened, "Results", name)
        empty = up.count("–")
        assert up[len(up) - empty :] == down[len(down) - empty :] == ["–"] * empty
        numbers = [number(text) for text in up[: len(up) - empty]]
        # a number is shown with as many digits as its interval leaves, so within half of the last
        halves = [0.5 * 10.0 ** -len(text.partition(".")[2]) for text in up]
        both = zip(numbers, numbers[1:], halves, halves[1:], strict=False)
        assert all(first - a <= second + b for first, second, a, b in both)
        assert [number(text) for text in down[: len(down) - empty]] == numbers[::-1]
        assert (empty > 0) == (name == "deficit")
        assert len(set(numbers)) > 3


def test_words_sort_and_only_one_header_says_so(opened):
    header(opened, "Results", "N").locator("button").click()
    header(opened, "Results", "run").locator("button").click()
    runs = column(opened, "Results", "run")
    assert runs.index("vbon-n2-s1") < runs.index("vbon-n8-s0") < runs.index("vbon-n16-s0")
    assert opened.tab.locator("[aria-label=Results] th[aria-sort]").count() == 1


def test_a_filter_hides_rows(opened):
    tools = opened.tab.locator(".tools:has(+ .wide[aria-label=Results])")
    field = tools.get_by_label("Filter")
    field.fill("KL_RL n16")
    assert column(opened, "Results", "run") == ["kl_rl-n16-s0", "kl_rl-n16-s1"]
    assert "2 of " in tools.locator("output").inner_text()
    field.fill("")
    rulers = 1 + 4 + 3  # the reference, best of 1 to 8, soft best of 2 to 8
    assert len(column(opened, "Results", "run")) == len(CELLS) + rulers


# ------------------------------------------------------------------------------- samples


def test_a_response_with_a_script_is_text(opened):
    columns = opened.tab.locator("#columns")
    assert SCRIPT in columns.inner_text()
    assert opened.tab.locator("#columns script, #columns img").count() == 0


def test_a_prompt_and_its_policies_are_chosen(opened):
    titles = opened.tab.locator("#columns h4")
    assert titles.all_inner_texts()[:3] == ["reference", "best of 16", "vbon-n2-s0"]
    opened.tab.select_option("#prompt", index=3)
    assert opened.tab.locator("#prompt-text").inner_text() == "prompt 3 & <i>more</i>"
    opened.tab.locator("summary").click()
    opened.tab.fill("#policy-filter", "kl_rl-n16")
    boxes = opened.tab.locator("#policies label:visible")
    assert boxes.count() == 2
    boxes.last.click()
    assert titles.all_inner_texts()[-1] == "kl_rl-n16-s1"
    assert "kl_rl 3 0" in opened.tab.locator("#columns").inner_text()


def test_the_page_is_small(file):
    assert file.stat().st_size < page.SIZE_LIMIT
