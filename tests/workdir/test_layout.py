"""A working directory is read whatever state it is in; only a damaged file is passed over."""

import json
import shutil

import pytest

from tests import fake_models
from vbon_jax import files
from vbon_jax.report import outputs
from vbon_jax.types import InputError
from vbon_jax.workdir import layout, results, run

CELLS = [{"method": "kl_rl", "n": 4.0, "seed": seed} for seed in (0, 1)]
RUN = "runs/kl_rl-n4-s0"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = fake_models.write_work(tmp_path_factory.mktemp("written"), CELLS, prompts=4)
    number = {"value": 0.75, "se": 0.02, "lo": 0.71, "hi": 0.79}
    stage = {"stage": "sft", "method": "reward_model", "rows": 41, "accuracy": number}
    fake_models.write_json(folder / "stages" / "sft" / "evaluation.json", stage)
    return folder


@pytest.fixture
def work(written, tmp_path):
    """A copy of a comparison of two finished runs."""
    return shutil.copytree(written, tmp_path / "work")


def test_a_whole_folder_is_read(work):
    result = layout.read(work)
    assert [run.name for run in result.runs] == ["kl_rl-n4-s0", "kl_rl-n4-s1"]
    assert {run.state for run in result.runs} == {"evaluated"}
    assert result.runs[0].record.label == result.runs[0].rows[0]["label"] == "kl_rl"
    assert result.runs[0].rows[0]["sampled_tokens"] == 1000 * fake_models.STEPS
    assert [row["method"] for row in result.reference_rows] == ["reference"]
    assert result.settings["resamples"] == 40
    assert result.command == "python -m experiments.compare"
    assert result.temperature == 1.0
    assert [row["accuracy"] for row in layout.stages(result)] == [0.75]
    assert not result.problems


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
@pytest.mark.parametrize("name", ["run.json", "config.json", "stage.json", "metrics.jsonl"])
def test_a_run_that_is_damaged_has_its_reason_for_a_state(work, name, content):
    (work / RUN / name).write_text(content + "\n")
    result = layout.read(work)
    assert [run.name for run in result.runs] == ["kl_rl-n4-s1", "kl_rl-n4-s0"]
    assert result.runs[1].state.startswith(f"cannot be read ({name}: ")
    assert result.runs[1].record is None
    assert not result.runs[1].rows


@pytest.mark.parametrize("content", ["{", "3", '[{"method": "kl_rl"}]'])
@pytest.mark.parametrize(
    "name", ["ledger.json", "evaluation/evaluation.json", "evaluation/stage.json"]
)
def test_a_damaged_evaluation_leaves_the_run(work, name, content):
    (work / RUN / name).write_text(content)
    damaged = layout.read(work).runs[0]
    last = name.rpartition("/")[-1]
    assert damaged.state.startswith(f"its evaluation cannot be read ({last}: ")
    assert (damaged.rows, damaged.step) == ([], fake_models.STEPS)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("compare.json", "compare.json cannot be read"),
        ("reference/evaluation.json", "The reference's evaluation cannot be read"),
        ("reference/stage.json", "The reference's evaluation cannot be read"),
        ("references/eval/stage.json", "The reference cache is not used"),
        ("references/eval/shard-*.parquet", "The reference cache is not used"),
        ("stages/sft/evaluation.json", "stages/sft/evaluation.json cannot be read"),
    ],
)
def test_another_damaged_file_is_a_problem(work, name, problem):
    next(work.glob(name)).write_text("{")
    result = layout.read(work)
    layout.stages(result)
    assert problem in result.problems[0]


def test_damaged_responses_name_their_file(work):
    path = work / RUN / "evaluation" / "responses-t1.parquet"
    row = layout.read(work).runs[0].rows[0]
    for content, why in ((b"PAR1", ""), (None, "responses-t1.parquet")):
        path.write_bytes(content) if content else path.unlink()
        with pytest.raises(files.Damaged, match=f"responses-t1.parquet cannot be read.*{why}"):
            layout.responses(path.parent, row, ("rewards",))
    path.write_bytes((work / "runs/kl_rl-n4-s1/evaluation/responses-t1.parquet").read_bytes())
    with pytest.raises(files.Damaged, match=r"cannot be read: .*loudness"):
        layout.responses(path.parent, row, ("rewards", "loudness"))
    with pytest.raises(files.Damaged, match="responses to 4 prompts, and the cache has 5"):
        layout.response_arrays(path.parent, row, ("rewards",), 5)


@pytest.mark.parametrize("error", [AttributeError, KeyError, TypeError, ValueError])
@pytest.mark.parametrize("reader", [(layout, "policy_rows"), (run.Record, "read")])
def test_a_programming_error_is_an_error(work, monkeypatch, reader, error):
    def broken(*_):
        raise error("a typo")

    monkeypatch.setattr(*reader, broken)
    with pytest.raises(error, match="a typo"):
        layout.read(work)


def test_runs_are_sorted_by_method_n_and_seed(work):
    config = json.loads((work / "compare.json").read_text())["config"]
    for cell in (
        {"method": "vbon", "n": 8.0, "seed": 0},
        {"method": "vbon", "n": 2.0, "seed": 1},
        {"method": "vbon", "n": 2.0, "seed": 0},
    ):
        fake_models.write_run(work, cell, config, logged=3)
    names = [run.name for run in layout.read(work).runs]
    vbon = ["vbon-n2-s0", "vbon-n2-s1", "vbon-n8-s0"]
    assert names == [*vbon, "kl_rl-n4-s0", "kl_rl-n4-s1"]


def test_a_record_is_what_was_written(tmp_path):
    record = fake_models.make_record({"method": "vbon", "n": 4.5, "seed": 1})
    record.write(tmp_path)
    assert run.Record.read(tmp_path) == record
    assert set(record.columns()) < set(results.COLUMNS)
    (tmp_path / run.FILE).unlink()
    with pytest.raises(files.Damaged, match=r"run\.json cannot be read"):
        run.Record.read(tmp_path)


def test_a_folder_that_is_none_is_refused(tmp_path):
    for folder, words in ((tmp_path, "neither runs nor"), (tmp_path / "none", "no such folder")):
        with pytest.raises(InputError, match=words):
            layout.read(folder)


def test_a_run_against_another_cache_has_no_rows(work):
    for folder in (work / RUN / "evaluation", work / "reference"):
        stage = json.loads((folder / "stage.json").read_text())
        stage["inputs"]["references seed"] = 5
        (folder / "stage.json").write_text(json.dumps(stage))
    result = layout.read(work)
    first, second = result.runs
    assert first.state == "evaluated against another reference cache (its seed differs)"
    assert (len(first.rows), len(second.rows)) == (0, 1)
    assert result.reference_rows == []
    assert result.problems == ["The reference policy itself has not been evaluated yet."]


def test_a_run_of_a_budget_has_no_number_of_steps_to_come(tmp_path):
    config = fake_models.defaults()
    config.budget.sampled_tokens = 1000
    fake_models.write_run(tmp_path, CELLS[0], config.to_dict(), logged=3)
    (run_read,) = layout.read(tmp_path).runs
    assert (run_read.state, run_read.step, run_read.steps) == ("training", 3, None)
    assert outputs.state(run_read) == "training; step 3"
