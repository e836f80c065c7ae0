"""The results table, its figure and the page."""

import html.parser
import math
import re
import xml.etree.ElementTree

import numpy as np
import pytest

from experiments import plot, report
from vbon_jax import evaluate
from vbon_jax.functional.bootstrap import Estimate

ISSUE = """
method,n,bound,seed,temperature,reward,reward_se,win_rate,win_rate_lo,win_rate_hi,kl,kl_se,length,
eos_rate,distinct2,bon_win_rate_at_kl,deficit,sampled_tokens,reward_calls,train_flops,seconds
"""
ISSUE = ISSUE.replace("\n", "").split(",")
EVIL = '<script>alert(1)</script><img src="https://example.com/x.png" onerror=alert(1)>"\'&'


def rows_of(*extra):
    reference_bm = np.random.default_rng(0).normal(size=(12, 16)).astype(np.float32)
    ruler = evaluate.ruler(reference_bm, [2, 4], seed=0, resamples=100)
    cells = {"prompts": 12, "reference_samples": 16}
    summary = {
        "reward": Estimate(1.234567, 0.0123, 1.21, 1.26),
        "win_rate": Estimate(0.78, 0.02, 0.74, 0.82),
        "kl": Estimate(0.7, 0.05, 0.6, 0.8),
        "length": Estimate(39.5, 0.2, 39.1, 39.9),
        "deficit": Estimate(0.021, 0.01, 0.001, 0.041),
    }
    budget = {"sampled_tokens": 123456, "reward_calls": 3200, "train_flops": 1.5e13, "seconds": 75}
    policy = report.make_row(
        "vbon",
        summary,
        n=4,
        bound="l1",
        seed=0,
        temperature=1.0,
        budget=budget,
        run="vbon-4",
        **cells,
    )
    reference = report.make_row("reference", {"win_rate": Estimate(0.5, 0.01, 0.48, 0.52)})
    reference["kl"] = 0.0
    rows = [reference, *report.ruler_rows(ruler, **cells), policy, *extra]
    return rows, evaluate.mean_curve(evaluate.curve(reference_bm))


class Page(html.parser.HTMLParser):
    """Tags with their attributes, all text, and whether tags are balanced."""

    VOID = frozenset(("meta", "br", "img", "link", "hr", "input"))

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.open, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"unclosed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text.append(data)


def samples_of(text, prompts=2, columns=("reference", "best of 4", EVIL)):
    return [
        {
            "prompt": f"prompt {i} {EVIL}",
            "columns": [
                {"name": name, "responses": [{"text": text, "reward": 0.5 + i}]} for name in columns
            ],
        }
        for i in range(prompts)
    ]


# ------------------------------------------------------------------------------- results.csv


def test_columns_begin_with_the_interface():
    assert list(report.COLUMNS[: len(ISSUE)]) == ISSUE
    assert len(set(report.COLUMNS)) == len(report.COLUMNS)


def test_results_round_trip_and_empty_cells(tmp_path):
    rows, _ = rows_of()
    path = tmp_path / "new" / "results.csv"
    report.write_results(rows, path)
    lines = path.read_text().splitlines()
    assert lines[0].split(",")[: len(ISSUE)] == ISSUE
    assert len(lines) == 1 + len(rows)
    assert lines[4].startswith(
        "vbon,4,l1,0,1.0,1.234567,0.0123,0.78,0.74,0.82,0.7,0.05,39.5,,,,0.021,"
    )
    assert "123456,3200,15000000000000.0,75,0.001,0.041" in lines[4]
    assert "None" not in path.read_text() and "nan" not in path.read_text()
    assert report.read_results(path) == rows
    assert [p.name for p in path.parent.iterdir()] == ["results.csv"]  # nothing half-written


def test_summary_of_an_evaluation_fills_a_row():
    random = np.random.default_rng(0)
    reference_bm = random.normal(size=(10, 8)).astype(np.float32)
    responses = evaluate.Responses(
        rewards_bk=random.normal(size=(10, 3)).astype(np.float32),
        kl_bk=random.random((10, 3), np.float32),
        log_probs_bk=np.full((10, 3), -3.0),
        reference_log_probs_bk=np.full((10, 3), -4.0),
        lengths_bk=np.full((10, 3), 2),
        finished_bk=np.ones((10, 3), bool),
        tokens=[[(1, 2)] * 3] * 10,
    )
    summary = evaluate.summarise(responses, reference_bm, seed=0, resamples=50)
    row = report.make_row("kl_rl", summary, n=2)
    asked = set(ISSUE) - {"bound", "seed", "temperature", *report.BUDGET}
    assert all(row[name] is not None for name in asked)
    assert row["deficit"] == summary["deficit"].value
    assert (row["deficit_lo"], row["deficit_hi"]) == summary["deficit"][2:]


def test_unknown_column_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such column of the results: sseed"):
        report.make_row("vbon", {}, sseed=1)
    with pytest.raises(ValueError, match="extra"):
        report.write_results([{"method": "vbon", "extra": 1}], tmp_path / "results.csv")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.78123, 0.0213, "0.781"),
        (1.234567, 0.0123, "1.235"),
        (-0.0312, 0.0049, "−0.0312"),
        (-0.0001, 0.02, "0.000"),
        (1234.5, 25.0, "1234"),
        (0.123456, None, "0.1235"),
        (1234567, None, "1 234 567"),
        (1.5e13, None, "15 000 000 000 000"),
        (2.5e-7, None, "2.50e−07"),
        (4, None, "4"),
        (0.0, None, "0"),
        (None, None, "–"),
        (math.nan, None, "not finite"),
        (math.inf, 0.1, "not finite"),
    ],
)
def test_numbers(value, unit, text):
    assert report.number(value, unit=unit) == text


def test_durations():
    found = [report.duration(seconds) for seconds in (4.25, 75, 3725, None)]
    assert found == ["4.2 s", "1 min 15 s", "1 h 02 min", "–"]


# ------------------------------------------------------------------------------- figure


@pytest.mark.parametrize(
    ("suffix", "magic"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")]
)
def test_figure_is_saved_by_suffix_and_deterministic(tmp_path, suffix, magic):
    rows, curve = rows_of()
    for name in ("a", "b"):
        plot.figure(rows, curve, tmp_path / f"{name}.{suffix}")
    first, second = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
    assert first.startswith(magic)
    assert first == second


def test_svg_is_xml_with_a_title_and_survives_odd_rows():
    nan = report.make_row("kl_rl", {"win_rate": Estimate(math.nan, 0, 0, 0)}, n=2, kl=1.0)
    odd = report.make_row("_$vbon^<模>", {"kl": Estimate(0.3, 0.1, 0.1, 0.5)}, n=1.5, win_rate=0.7)
    rows, curve = rows_of(nan, odd)
    element = plot.svg(rows, curve, "win_rate", title="a < b", text="x & y")
    root = xml.etree.ElementTree.fromstring(str(element))
    title, description = root[0], root[1]
    assert (title.text, description.text) == ("a < b", "x & y")
    assert root.get("aria-labelledby").split() == [title.get("id"), description.get("id")]
    assert root.get("role") == "img"
    assert plot.svg([], curve, "reward", title="", text="")  # nothing but the curve


# ------------------------------------------------------------------------------- page


def test_page_is_self_contained_escaped_and_small(tmp_path):
    evil_row = report.make_row(EVIL, {"win_rate": Estimate(0.6, 0.1, 0.5, 0.7)}, n=8, kl=0.4)
    rows, curve = rows_of(evil_row)
    path = tmp_path / "report.html"
    report.write_report(
        path,
        title=f"demo {EVIL}",
        rows=rows,
        curve=curve,
        samples=samples_of(f"good film {EVIL}"),
        notes=[EVIL],
        provenance={"seed": 0, EVIL: EVIL},
        command=f"python -m experiments.compare {EVIL}",
    )
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < 500_000
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "link", "iframe", "object", "base", "form"}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name == "src" for name in attributes)
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
    assert not re.search(r"url\((?!#)|@import|@font-face", text)
    assert len(page.ids) == len(set(page.ids))
    referred = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert referred <= set(page.ids) and referred
    # every text is there, as text
    shown = "".join(page.text)
    assert shown.count("<script>alert(1)</script>") >= 2 * 3 + 2 + 2 * 3 + 4
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert "default-src 'none'" in text


def test_page_says_what_it_must(tmp_path):
    rows, curve = rows_of()
    report.write_report(
        tmp_path / "r.html",
        title="t",
        rows=rows,
        curve=curve,
        samples=samples_of("fine"),
        provenance={"reference samples": 128},
        command="python -m experiments.compare --config=configs/demo.py",
    )
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    shown = re.sub(r"\s+", " ", " ".join(page.text))
    for part in (
        "deficit",
        "vbon (l1)",
        "0.021 [0.001, 0.041]",
        "0.780 [0.740, 0.820]",
        "1 min 15 s",
        "123 456",
        "reference samples 128",
        "best of 4",
        "configs/demo.py",
    ):
        assert part in shown, part
    assert "not finite" not in shown.lower() and "None" not in shown and "nan" not in shown.split()


def test_a_number_that_is_none_is_said_aloud(tmp_path):
    rows, curve = rows_of(report.make_row("kl_rl", {"kl": Estimate(math.nan, 0.1, 0, 1)}, n=2))
    report.write_report(tmp_path / "r.html", title="t", rows=rows, curve=curve)
    shown = " ".join(Page((tmp_path / "r.html").read_text(encoding="utf-8")).text)
    assert "Not finite, and left out of the figures: kl_rl: kl." in shown


def test_many_long_samples_are_cut_and_said_so(tmp_path):
    rows, curve = rows_of()
    samples = samples_of("\ud800 <" * 5000, prompts=300)
    report.write_report(tmp_path / "r.html", title="t", rows=rows, curve=curve, samples=samples)
    text = (tmp_path / "r.html").read_bytes().decode("utf-8")
    assert len(text.encode()) < report.SIZE_LIMIT
    shown = " ".join(Page(text).text)
    assert "(13000 more characters)" in shown
    assert re.search(r"\d+ of 300 prompts are left out", shown)


def test_the_kl_axis_ends_behind_the_policies_and_their_targets():
    ruler = [{"method": plot.BEST_OF_N, "n": n, "kl": kl} for n, kl in ((2, 0.2), (4, 0.6), (8, 9))]
    near = {"method": "vbon", "n": 4.0, "kl": 0.1}
    assert plot._last_kl([*ruler, near]) == pytest.approx(1.1 * 0.6 + 0.02)
    far = {"method": "vbon", "n": 2.0, "kl": 0.7}
    assert plot._last_kl([*ruler, far]) == pytest.approx(1.1 * 0.7 + 0.02)
    assert plot._last_kl(ruler) == pytest.approx(1.1 * 9 + 0.02)
