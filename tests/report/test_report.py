"""The report of a working directory: figures, files, the page's text, and folders of every kind."""

import base64
import csv
import hashlib
import html.parser
import json
import math
import re
import shutil
import time

import numpy as np
import pytest

from tests import fake_models
from tests.tiny_config import program
from vbon_jax.evaluation import bon_curve
from vbon_jax.report import figures, outputs, page, style, texts, training_curves
from vbon_jax.workdir import layout, results

EVIL = '<script>window.hacked=1</script><img src="https://example.com/x.png" onerror=alert(1)>"\'&'
CELLS = [
    {"method": method, "n": n, "seed": seed}
    for method in ("kl_rl", "vbon")
    for n in (4.0, 2.0)
    for seed in (0, 1)
]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A finished comparison, with runs that are not finished, not evaluated, and broken."""
    folder = fake_models.write_work(
        tmp_path_factory.mktemp("work"), CELLS, text=EVIL, temperatures=(0.5, 1.0)
    )
    config = json.loads((folder / "compare.json").read_text())["config"]
    fake_models.write_run(folder, {"method": "dpo", "n": 4.0, "seed": 0}, config, logged=7)
    fake_models.write_run(folder, {"method": "ipo", "n": 4.0, "seed": 0}, config, evaluated=False)
    fake_models.write_run(folder, {"method": "sft", "n": 4.0, "seed": 0}, config, evaluated=False)
    (folder / "runs" / "begun").mkdir()
    outputs.write(folder)
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return fake_models.write_work(tmp_path_factory.mktemp("written"), CELLS[:2], prompts=4)


@pytest.fixture
def small(written, tmp_path):
    """A copy of a comparison of two finished runs."""
    return shutil.copytree(written, tmp_path / "small")


@pytest.fixture
def no_figures(monkeypatch):
    """Figures take most of the time of a report."""
    monkeypatch.setattr(style, "save", lambda chart, *paths, data: None)


class Page(html.parser.HTMLParser):
    """Tags with their attributes, all text outside scripts, and whether tags are balanced."""

    VOID = frozenset(("meta", "br", "img", "link", "hr", "input"))

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.scripts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"unclosed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        (self.scripts if "script" in self.open else self.text).append(data)


def shown(folder) -> str:
    """The page's text, white space folded."""
    text = Page((folder / "report.html").read_text(encoding="utf-8")).text
    return re.sub(r"\s+", " ", " ".join(text))


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
    assert texts.number(value, unit=unit) == text


def test_durations():
    durations = [texts.duration(seconds) for seconds in (4.25, 75, 3725, None)]
    assert durations == ["4.2 s", "1 min 15 s", "1 h 02 min", "–"]


# ------------------------------------------------------------------------------- looks


def test_no_two_methods_look_alike():
    looks = style.looks(f"method {i}" for i in range(style.LOOKS))
    assert len(set(looks.values())) == style.LOOKS
    runs = style.looks(["vbon (l1)", "kl_rl", "kl_rl", "my own"])
    assert list(runs) == ["vbon (l1)", "kl_rl", "my own"]
    assert list(runs.values()) == list(looks.values())[:3]
    assert runs["kl_rl"].colour == "#D55E00"
    assert len(style.looks(f"new {i}" for i in range(100))) == 100


@pytest.mark.parametrize(
    ("suffix", "magic"),
    [("svg", b"<svg"), ("pdf", b"%PDF"), ("png", b"\x89PNG"), ("html", b"<!DOCTYPE html>")],
)
def test_a_chart_is_saved_by_suffix(tmp_path, suffix, magic):
    chart = style.alt.Chart(style.alt.NamedData(name="own")).mark_point().encode(x="a:Q")
    path = tmp_path / "new" / f"figure.{suffix}"
    style.save(chart, path, data={"own": [{"a": 1.0}]})
    assert path.read_bytes().lstrip().startswith(magic)
    first = path.read_bytes()
    style.save(chart, path, data={"own": [{"a": 1.0}]})
    assert suffix == "pdf" or path.read_bytes() == first  # a PDF may carry its date


def test_a_chart_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.svg, \.pdf, \.png or \.html"):
        style.save(style.alt.Chart().mark_point(), tmp_path / "figure.jpg")


# ------------------------------------------------------------------------------- figures


def point(method, **cells):
    return figures.points([results.make_row(method, {}, **cells)])[0]


def test_the_kl_axis_ends_behind_the_policies_and_their_targets():
    ruler = [point(method="best_of_n", n=n, kl=kl) for n, kl in ((2, 0.2), (4, 0.6), (8, 9.0))]
    near = point(method="vbon", n=4.0, kl=0.1)
    assert figures.last_kl(figures.Policies([*ruler, near], {})) == pytest.approx(1.1 * 0.6 + 0.02)
    far = point(method="vbon", n=2.0, kl=0.7)
    assert figures.last_kl(figures.Policies([*ruler, far], {})) == pytest.approx(1.1 * 0.7 + 0.02)
    assert figures.last_kl(figures.Policies(ruler, {})) == pytest.approx(1.1 * 9 + 0.02)


def test_a_number_that_is_none_makes_no_coordinate():
    odd = point(method="vbon", n=2.0, kl=math.nan, win_rate=0.7, win_rate_se=math.inf)
    assert odd["kl"] is None
    assert odd["win_rate"] == 0.7
    assert "win_rate_lo" not in odd
    assert odd["kl_text"] == "not finite"


def test_names_from_anywhere_are_drawn(tmp_path):
    odd = point(method="_$vbon^<模>", n=1.5, kl=0.3, win_rate=0.7, deficit=0.1)
    looks = style.looks([odd["method"]])
    curve = bon_curve.Curve(*np.linspace(0.0, 1.0, 4 * 5).reshape(4, 5))
    policies = figures.Policies([odd], looks, curve)
    for index, drawing in enumerate(
        [
            figures.against_kl(policies, "win_rate"),
            figures.against_kl(figures.Policies([], {}, curve), "reward"),
            figures.deficit_by_n(policies),
            figures.against_budget(policies, "deficit", "sampled_tokens"),
        ]
    ):
        path = tmp_path / f"{index}.svg"
        style.save(drawing.chart, path, data=drawing.data)
        assert path.stat().st_size > 1000


def test_curves_are_thinned_to_means():
    steps, values = training_curves.thin(range(10), [0.0, 2.0] * 5, 5)
    assert steps == [1, 3, 5, 7, 9]
    assert values == [1.0] * 5
    assert training_curves.thin([3, 7], [1.0, math.nan], 5) == ([3, 7], [1.0, None])


# ------------------------------------------------------------------------------- files


def test_results_have_every_evaluated_run(work):
    rows = results.read_results(work / "results.csv")
    runs = [row for row in rows if row["method"] in ("vbon", "kl_rl")]
    assert [(row["method"], row["n"], row["seed"]) for row in runs[::2]] == [
        (method, n, seed) for method in ("vbon", "kl_rl") for n in (2, 4) for seed in (0, 1)
    ]
    assert [row["temperature"] for row in rows[:2]] == [0.5, 1]
    assert {row["gradient"] for row in runs} == {"ppo"}
    assert {row["gradient"] for row in rows if row not in runs} == {None}
    assert {row["bound"] for row in rows} == {None, "l1"}
    assert all(row["sampled_tokens"] == 1000 * fake_models.STEPS for row in runs)
    assert all(row["deficit_lo"] <= row["deficit"] <= row["deficit_hi"] for row in runs)


def test_pareto_shares_are_written(work):
    with (work / "pareto.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["quality"], row["method"]) for row in rows} == {
        (quality, method) for quality in ("win_rate", "reward") for method in ("vbon (l1)", "kl_rl")
    }
    for row in rows:
        assert int(row["points"]) == 4
        assert 0 <= float(row["share_lo"]) <= float(row["share_hi"]) <= 1
        assert float(row["share"]) in (0, 0.25, 0.5, 0.75, 1)


def test_means_over_seeds_are_written(work):
    with (work / "means.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    runs = [row for row in results.read_results(work / "results.csv") if row["temperature"] == 1]
    assert [(row["method"], row["n"], row["seeds"]) for row in rows] == [
        (method, n, "2") for method in ("vbon (l1)", "kl_rl") for n in ("2.0", "4.0")
    ]
    for row in rows:
        of_group = [
            one for one in runs
            if one["label"] == row["method"] and one["n"] == float(row["n"])
        ]  # fmt: skip
        assert len(of_group) == 2
        for name in ("kl", "win_rate", "reward", "deficit"):
            mean = sum(one[name] for one in of_group) / 2
            assert float(row[name]) == pytest.approx(mean, rel=1e-4, abs=1e-6)
            assert float(row[f"{name}_lo"]) <= mean <= float(row[f"{name}_hi"])
        low, value, high = (float(row[f"efficiency{end}"]) for end in ("_lo", "", "_hi"))
        assert 0 <= low <= value <= high
        ends = [float(row["deficit_least"]), float(row["deficit_most"])]
        assert ends == sorted(one["deficit"] for one in of_group)
    assert "Means over seeds" in (work / "report.html").read_text()


def test_every_figure_is_there_for_a_paper(work):
    stems = {path.stem for path in (work / "figures").iterdir()}
    assert stems == {
        *("win-rate-against-kl", "reward-against-kl", "deficit-by-n", "pareto-win-rate"),
        *("pareto-reward", "win-rate-against-sampled-tokens", "deficit-against-sampled-tokens"),
        *("win-rate-against-train-flops", "deficit-against-train-flops", "length-against-kl"),
        *("distinct2-against-kl", "win-rate-by-temperature", "kl-by-temperature", "training"),
    }
    for stem in stems:
        assert (work / "figures" / f"{stem}.pdf").read_bytes().startswith(b"%PDF")
        assert (work / "figures" / f"{stem}.svg").read_text().startswith("<svg")


def test_every_figure_is_valid(work, monkeypatch):
    """By Vega-Lite's own schema, which a report does without."""
    seen = []

    def save(chart, *paths, data):
        chart.to_dict(validate=True)
        seen.append(paths)

    monkeypatch.setattr(style, "save", save)
    outputs.write(work)
    assert len(seen) == 14
    with pytest.raises(style.alt.utils.schemapi.SchemaValidationError):
        style.alt.Chart().mark_point(size="no size").to_dict(validate=True)


# ------------------------------------------------------------------------------- the page's text


def test_the_page_is_self_contained_and_escaped(work):
    text = (work / "report.html").read_text(encoding="utf-8")
    parsed = Page(text)
    assert not {tag for tag, _ in parsed.tags} & {"img", "link", "iframe", "object", "base", "form"}
    for _, attributes in parsed.tags:
        assert not any(name.startswith("on") or name in ("src", "href") for name in attributes)
    assert not re.search(r"@import|@font-face", text)
    assert EVIL not in text
    policy = next(
        a["content"] for tag, a in parsed.tags if "content-security-policy" in str(a).lower()
    )
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    data, *scripts = parsed.scripts
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    samples = json.loads(data)["samples"]
    assert len(samples) == 8
    names = [name for name, _ in samples[0]["columns"]]
    assert names[:3] == ["reference", "best of 16", "vbon-n2-s0"]
    assert samples[0]["columns"][2][1][0][0].startswith(EVIL)


def test_the_page_says_what_it_must(work):
    text = shown(work)
    for part in (
        "The deficit of a policy",
        "A policy is on the front when",
        "8 of 12 runs are evaluated",
        "dpo-n4-s0 : training; step 7 of 20",
        "ipo-n4-s0 : trained, not evaluated yet; step 20 of 20",
        "sft-n4-s0 : finished; this method has no evaluation",
        "begun : cannot be read",
        "1 min 15 s",
        "95 % bootstrap over prompts, 40 resamples of 8 prompts",
        "cache temperature",
        "python -m experiments.compare",
    ):
        assert part in text, part
    assert "not finite" not in text.lower()
    assert not {"None", "nan"} & set(text.split())


def test_json_ends_no_script():
    text = page.embedded_json({"text": "</script><!-- & \u2028 \ud800"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"text": "</script><!-- & \u2028 ?"}


def test_samples_that_do_not_fit_are_left_out_and_said_so():
    columns = [["reference", [["<" * 5000, 0.5]]]]
    samples = [{"prompt": "a", "columns": columns}] * 20
    kept, sentence = page.fitted(samples, 60_000)
    assert 0 < len(kept) < 20
    assert sentence == f"{20 - len(kept)} of 20 prompts are left out to keep the page small."
    assert kept[0]["columns"][0][1][0][0].endswith("(4000 more characters)")
    assert page.fitted(samples[:1], 60_000)[1] == ""


def test_200_runs_stay_below_the_limit_in_size_and_time(tmp_path):
    config_cells = [{"method": "kl_rl", "n": 2.0, "seed": seed} for seed in range(2)]
    fake_models.write_work(tmp_path, config_cells, prompts=16, text=" many words" * 60, steps=300)
    first = tmp_path / "runs" / "kl_rl-n2-s0"
    for index in range(2, 200):
        method = ("vbon", "kl_rl", "dpo", "ipo")[index % 4]
        fake_models.copy_run(first, {"method": method, "n": 2.0 ** (index % 5), "seed": index})
    started = time.perf_counter()
    outputs.write(tmp_path)
    assert time.perf_counter() - started < 60
    size = (tmp_path / "report.html").stat().st_size
    assert size < page.SIZE_LIMIT
    assert "are left out to keep" in shown(tmp_path) or size < 5_900_000
    assert "200 of 200 runs are evaluated" in shown(tmp_path)
    assert "means over equal stretches of steps" in shown(tmp_path)


# ------------------------------------------------------------------------------- any folder


def test_the_programs_last_line_is_the_page(small, tmp_path):
    done = program("report", "--workdir", small)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == str(small / "report.html")
    assert "Traceback" not in done.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    done = program("report", "--workdir", empty)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert not list(empty.iterdir())


def test_a_folder_whose_first_run_has_just_begun(tmp_path):
    config = fake_models.defaults().to_dict()
    fake_models.write_run(tmp_path, {"method": "vbon", "n": 4.0, "seed": 0}, config, logged=0)
    assert outputs.write(tmp_path) == []
    assert "vbon-n4-s0 : training; step 0 of 100" in shown(tmp_path)
    fake_models.write_run(tmp_path, {"method": "vbon", "n": 4.0, "seed": 0}, config, logged=3)
    outputs.write(tmp_path)
    assert (tmp_path / "figures" / "training.svg").is_file()


def test_a_cache_alone_shows_best_of_n(tmp_path):
    fake_models.write_cache(tmp_path / "references" / "eval", prompts=4)
    rows = outputs.write(tmp_path)
    assert {row["method"] for row in rows} == {"best_of_n", "soft_best_of_n"}
    text = shown(tmp_path)
    assert "0 of 0 runs are evaluated" in text
    assert "The reference policy itself has not been evaluated yet." in text


def test_a_programming_error_ends_the_report(small, no_figures, monkeypatch):
    def broken(*_):
        raise AttributeError("a typo")

    monkeypatch.setattr(layout, "responses", broken)
    with pytest.raises(AttributeError, match="a typo"):
        outputs.write(small)


def test_a_method_of_a_users_own_is_shown_like_any_other(small):
    config = json.loads((small / "compare.json").read_text())["config"]
    cell = {"method": "simpo", "n": 4.0, "seed": 0, "simpo.gamma": 0.5}
    fake_models.write_run(small, cell, config)
    rows = outputs.write(small)
    label = "simpo (simpo.gamma=0.5)"
    assert (rows[-1]["method"], rows[-1]["label"]) == ("simpo", label)
    for name in ("means.csv", "pareto.csv", "report.html", "figures/deficit-by-n.svg"):
        assert label in (small / name).read_text()


def test_what_is_damaged_has_a_sentence_and_the_rest_is_shown(small, no_figures):
    first, second = sorted((small / "runs").iterdir())
    (first / "config.json").write_text("{")
    (second / "evaluation" / "responses-t1.parquet").write_bytes(b"PAR1")
    (small / "llm_judge.csv").write_bytes(b"method,n\nvbon,two\n")
    number = {"value": 0.75, "se": 0.02, "lo": 0.71, "hi": 0.79}
    stage = {"stage": "sft", "method": "reward_model", "rows": 41, "accuracy": number}
    fake_models.write_json(small / "stages" / "sft" / "evaluation.json", stage)
    fake_models.write_json(small / "stages" / "broken" / "evaluation.json", {})
    outputs.write(small)
    text = shown(small)
    assert f"{first.name} : cannot be read" in text
    assert f"{second.name} is in neither the Pareto shares nor the means over seeds" in text
    assert f"{second.name} is not among the samples" in text
    assert "llm_judge.csv cannot be read" in text
    assert "1 of 2 runs are evaluated" in text
    assert "Models trained first" in text
    assert re.search(r"sft reward_model 41 – 0\.750 \[0\.710, 0\.790\] –", text)
    assert "broken/evaluation.json cannot be read" in text


def test_a_damaged_cache_leaves_the_training_curves_and_a_nan_is_named(small, no_figures):
    path = small / "runs" / "kl_rl-n4-s0" / "evaluation" / "evaluation.json"
    rows = json.loads(path.read_text())
    rows[0]["kl"] = math.nan
    path.write_text(json.dumps(rows))
    outputs.write(small)
    assert "Not finite, and left out of the figures: kl_rl: kl." in shown(small)
    next((small / "references" / "eval").glob("*.parquet")).write_bytes(b"")
    assert outputs.write(small) == []
    text = shown(small)
    assert "The reference cache is not used" in text
    assert "Training curves" in text
