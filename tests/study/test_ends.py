"""What a machine can do to a program is one line that names it and its remedy, no traceback."""

import csv
import json
import os
import subprocess
import sys

import pytest

from tests import fake_models
from tests.tiny_config import ROOT, overrides, program, refuse, succeed
from vbon_jax.report import style

pytestmark = pytest.mark.slow
WRITERS = ("train", "collect", "compare", "evaluate", "report", "llm_judge", "cdf_study", "exact")


def own_process(name: str, *arguments, limit: int | None = None, cwd=ROOT, **environment):
    """A program as a user starts it; `limit` is the largest file that it may write, in KiB."""
    command = [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)]
    if limit is not None:
        command = ["bash", "-c", f'ulimit -f {limit}; exec "$@"', "bash", *command]
    return subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        check=False,
        timeout=120,
    )


def check_line(done: subprocess.CompletedProcess, *words: str) -> None:
    """Status 2 and a last line with these words; no traceback."""
    printed = done.stderr.decode() if isinstance(done.stderr, bytes) else done.stderr
    assert done.returncode == 2, printed[-3000:]
    assert "Traceback" not in printed
    for word in words:
        assert word in printed.strip().splitlines()[-1], printed[-3000:]


# ------------------------------------------------------------------------------- places


@pytest.mark.parametrize("name", WRITERS)
def test_a_workdir_elsewhere_is_refused_by_every_program(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("gs://bucket/x", "s3://bucket/x"):
        refuse("this machine's file systems", name, f"--workdir={place}")
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "x", "/dev/null/x", "/proc/x/y"):
        refuse(f"{place} cannot be written", name, f"--workdir={place}")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("export", ["--run=.", "--output=gs://b/x"]),
        ("export", ["--run=s3://b/x", "--output=x"]),
        ("export", ["--run=.", "--output=/dev/null/x"]),
        ("score", ["--model=m", "--input=i", "--output=/proc/x/y"]),
        ("score", ["--model=m", "--input=i", "--output=/tmp"]),
        ("generate", ["--model=m", "--prompt=x", "--output=gs://b/x"]),
        ("generate", ["--model=m", "--prompt=x", "--output=/dev/null/x"]),
        ("generate", ["--model=m", "--input=hdfs://b/x"]),
        ("import_samples", ["--workdir=x", "--prompts=/dev/null/x"]),
        ("train", [f"--workdir={'x' * 300}"]),
        ("train", ["--workdir="]),
        ("train", ["--workdir=x", "--config=https://host/recipe.py"]),
    ],
)
def test_other_paths_that_cannot_be_used(name, arguments, tmp_path):
    check_line(program(name, *arguments), arguments[-1].partition("=")[2])


def test_a_home_folder_is_not_made_here(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    succeed("collect", "--workdir=~/work", *overrides(tiny))
    assert (tmp_path / "work" / "references" / "eval").is_dir()
    assert not (ROOT / "~").exists()


@pytest.mark.skipif(not os.access("/sys", os.R_OK), reason="no file system that is never written")
def test_a_place_that_turns_read_only_is_seen_before_compute(tiny, tmp_path):
    (tmp_path / "runs").symlink_to("/sys/kernel")
    done = program("compare", "--workdir", tmp_path, *overrides(tiny))
    check_line(done, str(tmp_path / "runs"), "cannot be written")
    assert not (tmp_path / "references").exists()


@pytest.mark.parametrize("limit", [0, 100])
def test_a_full_disk_is_one_line_and_the_same_command_continues(tiny, tmp_path, limit):
    sizes = {"train__checkpoint_every": 1, "method": "bon_sft", "n": 2}
    arguments = ["--workdir", tmp_path, *overrides(tiny, **sizes)]
    check_line(own_process("train", *arguments, limit=limit), "cannot be written")
    if limit:  # the caches fit, the first checkpoint does not
        assert (tmp_path / "references").exists()
        succeed("train", *arguments)
        assert len(list(tmp_path.glob("runs/*/ledger.json"))) == 1


IDLE = """
import threading, time
from vbon_jax import cli, files

def main():
    threading.Thread(target=time.sleep, args=(60,)).start()  # as Orbax's, which wait for each other
    try:
        raise files.SaveFailed("a checkpoint cannot be written")
    except files.SaveFailed:
        raise files.Unwritable("metrics.jsonl", OSError(28, "No space left on device"))

cli.run(main)
"""


def test_threads_of_a_save_that_failed_are_not_waited_for(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", IDLE], cwd=ROOT, capture_output=True, timeout=30, check=False
    )
    check_line(done, "metrics.jsonl", "No space left on device")


# ------------------------------------------------------------------------------- environment


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("JAX_PLATFORMS", "nonsense", "nonsense"),
        ("JAX_PLATFORMS", "cuda", "JAX_PLATFORMS=cuda"),
        ("JAX_DEFAULT_MATMUL_PRECISION", "nonsense", "jax_default_matmul_precision"),
        ("JAX_ENABLE_X64", "maybe", "JAX_ENABLE_X64"),
        ("JAX_NUM_CPU_DEVICES", "many", "jax_num_cpu_devices"),
    ],
)
def test_what_jax_cannot_start_with_is_one_line(tmp_path, name, value, words):
    done = own_process("exact", f"--workdir={tmp_path / 'x'}", **{name: value})
    check_line(done, words, "JAX does not start")
    assert not (tmp_path / "x").exists()


PAGE = """
import pathlib, sys
from vbon_jax.report import outputs, style
style.save = lambda *given, **options: None  # figures take long, and no text is read for them
outputs.write(pathlib.Path(sys.argv[1]))
"""


def test_text_is_utf8_in_a_c_locale(tiny, tmp_path):
    """Rows, and a page of responses that are not ASCII in a folder that is not either."""
    rows, scored = tmp_path / "rows.jsonl", tmp_path / "scored.jsonl"
    rows.write_text('{"prompt": "the plöt", "response": " is göod"}\n', encoding="utf-8")
    cells = [{"method": "vbon", "n": 2.0, "seed": 0}]
    work = fake_models.write_work(tmp_path / "wörk", cells, prompts=4, text=" göod")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    given = [f"--model={tiny / 'policy'}", f"--input={rows}", f"--output={scored}"]
    done = own_process("score", *given, **locale)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(scored.read_text("utf-8"))["prompt"] == "the plöt"
    environment = os.environ | locale
    subprocess.run([sys.executable, "-c", PAGE, work], cwd=ROOT, env=environment, check=True)
    assert "göod" in (work / "report.html").read_text("utf-8")


def test_the_reader_of_help_may_leave():
    help_text = subprocess.Popen(
        [sys.executable, "-m", "experiments.train", "--help"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    help_text.stdout.close()  # as `| head -0` does
    printed = help_text.stderr.read()
    help_text.stderr.close()
    assert help_text.wait() == 0
    assert printed == b""


def test_an_output_that_takes_nothing_is_one_line():
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "experiments.report", "--help"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    check_line(done, "No space left on device")
    assert done.stderr.count(b"\n") == 1


def test_a_folder_with_a_configs_package_of_its_own(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("")
    recipe = ROOT / "configs" / "hh.py"
    done = own_process("train", f"--config={recipe}", "--workdir=x", cwd=tmp_path)
    check_line(done, "judges.judge")  # the recipe was read; what it leaves open is named


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import nowhere_at_all", ("line 1", "nowhere_at_all")),
        ("def get_config(:", ("SyntaxError",)),
        ("x = 1 / 0", ("line 1", "ZeroDivisionError")),
        ("from vbon_jax.config import defaults\ndef get_config():\n    return defaults().nothing",
         ("line 3", "nothing")),
        ("def get_config():\n    return {}", ("ConfigDict",)),
        ("def get_config(arg):\n    return arg", ("get_config",)),
    ],
)  # fmt: skip
def test_what_a_recipe_raises_is_one_line(tmp_path, text, words):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(text)
    done = program("train", f"--config={recipe}", f"--workdir={tmp_path / 'x'}")
    check_line(done, "recipe.py", *words)


# ------------------------------------------------------------------------------- evaluate, export


def test_evaluate_trains_nothing(tiny, tmp_path):
    workdir = ["--workdir", tmp_path]
    refuse("vbon-n1-s0 is not trained to its end", "evaluate", *workdir, *overrides(tiny, n=1))
    assert not (tmp_path / "runs").exists()
    succeed("train", *workdir, *overrides(tiny, n=2))
    refuse("learning_rate", "evaluate", *workdir, *overrides(tiny, n=2, train__learning_rate=0.5))
    succeed("evaluate", *workdir, *overrides(tiny, n=2))
    run = tmp_path / "runs" / "vbon-n2-s0"
    for name in ("ledger.json", "checkpoints"):
        (run / name).rename(tmp_path / name)
        refuse("is not trained to its end", "evaluate", *workdir, *overrides(tiny, n=2))
        (tmp_path / name).rename(run / name)
    succeed("evaluate", *workdir, *overrides(tiny, n=2))
    (run / "config.json").write_text("{")
    check_line(program("export", "--run", run, "--output", tmp_path / "o"), "config.json")


def numbers(workdir) -> list[dict]:
    """The rows of the results but for the seconds."""
    rows = csv.DictReader((workdir / "results.csv").read_text().splitlines())
    return [{name: cell for name, cell in row.items() if name != "seconds"} for row in rows]


def test_files_of_an_evaluation_that_are_damaged_are_made_again(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(style, "save", lambda *given, **options: None)
    succeed("compare", "--workdir", tmp_path, *overrides(tiny, methods="vbon"))
    results = numbers(tmp_path)
    evaluation = tmp_path / "runs" / "vbon-n2-s0" / "evaluation"
    for path in (
        evaluation / "evaluation.json",
        evaluation / "responses-t1.parquet",
        evaluation / "length_control" / "rows.json",
        tmp_path / "reference" / "evaluation.json",
        tmp_path / "references" / "eval" / "shard-000000-000008.parquet",
        tmp_path / "runs" / "vbon-n2-s0" / "ledger.json",
    ):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        done = succeed("compare", "--workdir", tmp_path, *overrides(tiny, methods="vbon"))
        (line,) = [line for line in done.stderr.splitlines() if "made again" in line]
        assert str(path) in line
    assert numbers(tmp_path) == results
