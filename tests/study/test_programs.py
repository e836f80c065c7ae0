"""Every program and every command of the documentation, on a tiny policy or the demo's."""

import dataclasses
import json
import pathlib
import re
import shlex

import jax
import numpy as np
import pytest
import torch
import transformers

from tests.documents import documented
from tests.tiny_config import ROOT, overrides, refuse, succeed, write_times
from vbon_jax import files
from vbon_jax.models import decoder
from vbon_jax.models.huggingface import model_folder
from vbon_jax.workdir import results

pytestmark = pytest.mark.slow
RUN = "vbon-n2-s0"


CHOSEN = {"train__eval_every": 2, "train__eval_prompts": 4, "train__best_metric": "eval/win_rate"}


@pytest.fixture(scope="module")
def compared(tiny, tmp_path_factory) -> pathlib.Path:
    """The workdir of a whole comparison: both methods at N = 2, the best checkpoints kept."""
    workdir = tmp_path_factory.mktemp("compared")
    done = succeed("compare", "--workdir", workdir, *overrides(tiny, **CHOSEN))
    workdir.with_suffix(".txt").write_text(done.stdout)
    return workdir


def test_compare_writes_every_row_and_column(compared):
    rows = results.read_results(compared / "results.csv")
    header = (compared / "results.csv").read_text().splitlines()[0]
    promised = (
        "method,n,bound,seed,temperature,reward,reward_se,win_rate,win_rate_lo,win_rate_hi,kl,"
        "kl_se,length,eos_rate,distinct2,bon_win_rate_at_kl,deficit,sampled_tokens,reward_calls,"
        "train_flops,seconds"
    )
    assert header.startswith(promised)
    names = ["reference", *["best_of_n"] * 3, *["soft_best_of_n"] * 2, "vbon", "kl_rl"]
    assert [row["method"] for row in rows] == names
    reference, first, second = rows[0], rows[1], rows[2]
    assert abs(reference["kl"]) <= 1e-6
    assert reference["win_rate_lo"] <= 0.5 <= reference["win_rate_hi"]
    assert first["kl"] == pytest.approx(0.0, abs=1e-9)
    assert second["win_rate"] == pytest.approx(2 / 3, abs=0.02)  # few ties
    vbon, kl_rl = rows[6], rows[7]
    # 6 steps x 16 responses each; vBoN's share of the cache: every prompt was drawn once
    assert kl_rl["reward_calls"] == 96
    assert vbon["reward_calls"] == 96 + 24 * 8
    assert vbon["train_flops"] == kl_rl["train_flops"] > 1e6
    assert vbon["bound"] == "l1"
    assert kl_rl["bound"] is None
    assert vbon["gradient"] == kl_rl["gradient"] == "ppo"
    assert reference["gradient"] is None


def test_the_report_is_the_same_from_the_folder_alone(compared):
    names = ("results.csv", "means.csv", "pareto.csv", "report.html")
    before = [(compared / name).read_text() for name in names]
    assert "vbon-n2-s0" in before[-1]
    succeed("report", "--workdir", compared)
    assert [(compared / name).read_text() for name in names] == before


def test_compare_goes_on_where_it_stopped(compared, tiny):
    stamps = write_times(compared, "**/*.jsonl")
    done = succeed("compare", "--workdir", compared, *overrides(tiny, **CHOSEN))
    assert write_times(compared, "**/*.jsonl") == stamps
    assert done.stdout == compared.with_suffix(".txt").read_text()


def test_a_cache_for_something_else_is_refused(compared, tiny):
    refuse("seed", "compare", "--workdir", compared, *overrides(tiny, references__seed=5, **CHOSEN))


def test_an_exported_policy_loads_in_transformers(compared, tmp_path):
    succeed("export", "--run", compared / "runs" / RUN, "--output", tmp_path / "policy")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "policy").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "policy")
    texts = {"the second act": " of this drama works.", "on the whole,": " a delight", "a": ""}
    rows = [{"prompt": prompt, "response": response} for prompt, response in texts.items()]
    source, output = tmp_path / "rows.jsonl", tmp_path / "scored" / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--model", tmp_path / "policy", "--input", source, "--output", output]
    succeed("score", *arguments)
    for row, line in zip(rows, output.read_text().splitlines(), strict=True):
        scored = json.loads(line)
        prompt = tokenizer(row["prompt"])["input_ids"]
        response = tokenizer(row["response"])["input_ids"] if row["response"] else []
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        expected = [
            float(logits[len(prompt) - 1 + index, token]) for index, token in enumerate(response)
        ]
        np.testing.assert_allclose(scored["token_log_probs"], expected, atol=1e-4)
        assert scored["log_prob"] == pytest.approx(sum(expected), abs=1e-3)
        assert scored["prompt"] == row["prompt"]


def test_the_best_checkpoint_is_exported_too(compared, tmp_path):
    run = compared / "runs" / RUN
    arguments = ["--run", run, "--output", tmp_path / "best", "--checkpoint=best"]
    succeed("export", *arguments)
    assert (tmp_path / "best" / "model.safetensors").is_file()
    rows = files.read_jsonl(run / "metrics.jsonl")
    saved = {int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()}
    measured = {row["step"] + 1: row["eval/win_rate"] for row in rows if "eval/win_rate" in row}
    assert set(measured) == {2, 4, 6} and {4, 6} <= saved
    assert max(measured[step] for step in saved) == max(measured.values())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a"}', "line 2"),
        ("not json", "line 2"),
        ('{"prompt": "a", "response": 3}', "response"),
        (json.dumps({"prompt": "a " * 100, "response": "b"}), "line 2"),
    ],
)
def test_score_refuses_bad_rows(tiny, tmp_path, line, words):
    source = tmp_path / "rows.jsonl"
    source.write_text('{"prompt": "a", "response": "b"}\n' + line + "\n")
    arguments = ["--model", tiny / "policy", "--input", source, "--output", tmp_path / "out.jsonl"]
    refuse(words, "score", *arguments)
    assert not (tmp_path / "out.jsonl").exists()


def test_supervised_training_of_a_given_folder(tiny, tmp_path):
    changes = {"method": "sft", "train__minibatches": 1, "train__text_tokens": 32}
    succeed("train", "--workdir", tmp_path, *overrides(tiny, **changes))
    rows = files.read_jsonl(tmp_path / "runs" / "sft-n4-s0" / "metrics.jsonl")
    losses = [row["loss/nll"] for row in rows]
    assert len(losses) == 6
    assert losses[-1] < losses[0]


def test_a_trained_reward_model_is_exported(tiny, tmp_path):
    """A language model as a classifier, trained with adapters, merged."""
    base = model_folder.load(tiny / "policy", kind="decoder")
    labels = ("NEGATIVE", "POSITIVE")
    config, params = decoder.with_score(base.config, base.params, labels, jax.random.key(0))
    model_folder.save(
        tmp_path / "reward", config, params, settings=base.settings,
        tokenizer=model_folder.load_tokenizer(tiny / "policy"),
    )  # fmt: skip
    changes = {
        "method": "reward_model", "train__minibatches": 1, "train__text_tokens": 48,
        "data__over_long": "truncate", "reward__path": tmp_path / "reward",
        "reward__function": "", "policy__lora__pattern": "layer_1/.*",
    }  # fmt: skip
    succeed("train", "--workdir", tmp_path, *overrides(tiny, **changes))
    run, output = tmp_path / "runs" / "reward_model-n4-s0", tmp_path / "exported"
    arguments = ["--run", run, "--output", output]
    refuse("has no policy with policy.lora", "export", *arguments, "--adapters")
    succeed("export", *arguments)
    exported = model_folder.load(output, kind="classifier")
    assert exported.config == config
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()),
                         exported.params, params)  # fmt: skip
    assert moved["score"]["kernel"]
    assert moved["layer_1"]["attention"]["query"]["kernel"]
    assert not any(jax.tree.leaves((moved["layer_0"], moved["tokens"])))


def test_a_prompt_that_the_reward_cannot_read(tiny, tmp_path):
    """Found before anything is sampled; `data.longest_prompt` leaves it out."""
    base = model_folder.load(tiny / "policy", kind="decoder")
    short = dataclasses.replace(base.config, max_positions=24)
    params = base.params | {"positions": {"embedding": base.params["positions"]["embedding"][:24]}}
    config, params = decoder.with_score(short, params, ("POSITIVE",), jax.random.key(0))
    tokenizer = model_folder.load_tokenizer(tiny / "policy")
    network = base.settings | {"n_positions": 24}
    model_folder.save(tmp_path / "reward", config, params, settings=network, tokenizer=tokenizer)
    changes = {
        "reward__path": tmp_path / "reward", "reward__function": "", "data__max_tokens": 0,
        "data__over_long": "truncate",
    }  # fmt: skip
    sizes = overrides(tiny, **changes)
    refuse("tokens where 24 fit", "collect", "--workdir", tmp_path / "long", *sizes)
    assert not (tmp_path / "long").exists()
    changes |= {"data__longest_prompt": 12, "reward__over_long": "truncate"}
    succeed("collect", "--workdir", tmp_path / "short", *overrides(tiny, **changes))


def test_given_pairs_beside_a_method_that_takes_none(tiny, tmp_path):
    """And no cached response reaches the last new token, and prompts fill the policy's places."""
    pairs = tmp_path / "pairs.jsonl"
    row = {"prompt": "the film", "chosen": " was good", "rejected": " was bad"}
    rows = [row, row | {"chosen": " was fine"}, row | {"rejected": row["chosen"]}]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {
        "methods": "dpo,bond", "pairs__path": pairs, "train__steps": 2,
        "pairs__on_tie": "drop",
        "data__max_tokens": 0, "data__over_long": "truncate", "sampling__max_new_tokens": 21,
    }  # fmt: skip
    done = succeed("compare", "--workdir", tmp_path / "work", *overrides(tiny, **changes))
    assert "2 pairs in" in done.stderr
    assert "1 with equal responses left out" in done.stderr
    inputs = json.loads((tmp_path / "work/runs/dpo-n2-s0/stage.json").read_text())["inputs"]
    assert "pairs fingerprint" in inputs
    assert "references seed" not in inputs
    ledger = json.loads((tmp_path / "work/runs/dpo-n2-s0/ledger.json").read_text())
    assert ledger["sampled_tokens"] == 0


def test_cells_may_set_any_key(tiny, tmp_path):
    config = tmp_path / "exact.py"
    config.write_text(
        "from vbon_jax.config import defaults\n"
        "def get_config(arg=None):\n"
        "    config = defaults()\n"
        "    with config.unlocked():\n"
        "        config.cells = ({'method': 'vbon', 'n': 3.5, 'seed': 1, 'bound': 'exact'},\n"
        "                        {'n': 1, 'train.learning_rate': 5e-4})\n"
        "    return config.lock()\n"
    )
    arguments = ["--config", config, "--workdir", tmp_path / "work"]
    changes = {"train__steps": 2, "train__eval_every": 1, "train__eval_prompts": 4}
    succeed("compare", *arguments, *overrides(tiny, **changes))
    rows = results.read_results(tmp_path / "work" / "results.csv")[-2:]
    assert [(row["n"], row["bound"], row["seed"]) for row in rows] == [
        (3.5, "exact", 1),
        (1, "l1", 0),
    ]
    run = tmp_path / "work" / "runs" / "vbon-n3.5-s1-bound=exact"
    logged = files.read_jsonl(run / "metrics.jsonl")[-1]
    assert 0.0 <= logged["eval/win_rate"] <= 1.0


@pytest.mark.slow
def test_what_a_run_is_evaluated_by_is_part_of_it(tiny, tmp_path):
    """The prompts that choose are not those of the results, and no key of theirs may change."""
    changes = {"train__steps": 2, "train__eval_every": 1, "train__eval_prompts": 4,
               "train__checkpoint_every": 1, "train__best_metric": "eval/win_rate",
               "evaluation__checkpoint": "best", "method": "bon_sft", "n": 2}  # fmt: skip
    arguments = ["--workdir", tmp_path, *overrides(tiny, **changes)]
    succeed("train", *arguments)
    (row,) = map(json.loads, succeed("evaluate", *arguments).stdout.splitlines())
    logged = files.read_jsonl(tmp_path / "runs" / "bon_sft-n2-s0" / "metrics.jsonl")
    assert row["win_rate"] not in [step["eval/win_rate"] for step in logged]
    cached = [files.read_json(tmp_path / "references" / split / files.RECORD_FILE)["inputs"]
              for split in ("eval", "selection")]  # fmt: skip
    assert cached[0]["prompts"] != cached[1]["prompts"]
    assert cached[1]["num_prompts"] == 4
    for key, old, new in (("evaluation.seed", 0, 7), ("evaluation.samples_per_prompt", 4, 2)):
        refuse(f"{key} was {old} and is {new}", "train", *arguments, f"--config.{key}={new}")
    refuse("data.eval_limit was 12 and is 8", "evaluate", *arguments, "--config.data.eval_limit=8")
    fewer = "--config.train.eval_prompts=3"
    refuse("train.eval_prompts was 4 and is 3", "train", *arguments, fewer)


# The rest of the documented commands, with what makes them run in seconds.


def test_the_documented_commands_are_those_that_are_tested():
    known = ("git clone", "cd ", "make ", "python -m experiments.", "python benchmarks/")
    for command in documented():
        assert command.startswith(known), f"no test runs {command!r}"
        if command.startswith("make "):
            target = command.split()[1]
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


ELSEWHERE = {  # with settings of their own
    "exact": "exact/test_exact.py",
    "cdf_study": "exact/test_cdf_study.py",
    "import_samples": "sampling/test_external_samples.py",
    "llm_judge": "evaluation/test_llm_judge.py",
}


def experiment_commands() -> list[str]:
    """But for those of configs/tldr.py and configs/hh.py, which test_stages.py runs."""
    commands = {line for line in documented() if line.startswith("python -m experiments.")}
    commands -= {line for line in commands if re.search(r"configs/(tldr|hh)\.py", line)}
    commands = {line for line in commands if program_of(line) not in ELSEWHERE}
    return sorted(commands, key=lambda line: (program_of(line) == "evaluate", line))  # after train


def program_of(command: str) -> str:
    return command.split()[2].removeprefix("experiments.")


@pytest.mark.parametrize("name", ELSEWHERE)
def test_commands_that_are_run_elsewhere(name):
    assert name in {program_of(line) for line in documented() if " -m experiments." in line}
    text = (ROOT / "tests" / ELSEWHERE[name]).read_text()
    assert re.search(rf'(program|succeed)\("{name}"|import {name} as program', text)


@pytest.fixture(scope="module")
def documented_work(tmp_path_factory) -> pathlib.Path:
    """The working directory of the documented commands, which build on each other."""
    return tmp_path_factory.mktemp("documented")


@pytest.mark.parametrize("command", experiment_commands())
def test_documented_commands_run(command, compared, documented_work, tiny, tmp_path):
    """As printed but for the folders in capitals and the sizes, one of them in its own process."""
    name, *arguments = shlex.split(command)[2:]
    name = name.removeprefix("experiments.")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "the plot", "response": " works"}\n')
    places = {
        "POLICY": tiny / "policy",
        "CLASSIFIER": "",
        "REVIEWS": tiny / "reviews",
        "ROWS.jsonl": rows,
        "SCORED.jsonl": tmp_path / "scored.jsonl",
        "EXPORTED": tmp_path / "exported",
    }
    filled = []
    for argument in arguments:
        key, equals, value = argument.rpartition("=")
        if value.startswith("runs/"):
            run = value.partition("/runs/")[2]
            workdir = compared if name == "report" else documented_work
            value = compared / "runs" / RUN if run else workdir
        filled.append(f"{key}{equals}{places.get(value, value)}")
    if name == "generate":
        filled += ["--max_new_tokens=6", "--reward.function=tests.reward_functions:vowels"]
    elif name not in ("score", "export", "report"):
        filled += overrides(tiny, train__steps=2)
    succeed(name, *filled, environment={} if name == "collect" else None)


COMPARED = {"methods": "vbon,qrpo", "seeds": 0, "budget.sampled_tokens": 1500}


@pytest.mark.parametrize(
    ("config", "workdir", "changes"),
    [("configs/demo.py", "runs/demo", {}), ("configs/demo.py:compare", "runs/compare", COMPARED)],
)
def test_the_demo_in_small(tmp_path, config, workdir, changes):
    """What `make demo` and `make compare` run, with its models trained in seconds."""
    makefile = (ROOT / "Makefile").read_text()
    assert f"-m experiments.compare --config {config} --workdir {workdir}" in makefile
    sizes = {
        "data.train": "toy_reviews:train?reviews=400", "data.eval": "toy_reviews:eval?reviews=400",
        "data.train_limit": 16, "data.eval_limit": 8,
        "stages.policy.data.train": "toy_reviews:train?reviews=400",
        "stages.policy.vocab_size": 300, "stages.policy.network.n_embd": 16,
        "stages.policy.train.steps": 4, "stages.policy.train.batch_size": 8,
        "stages.reward.data.train": "toy_reviews:beginnings?reviews=400",
        "stages.reward.vocab_size": 300, "stages.reward.network.dim": 16,
        "stages.reward.train.steps": 4, "stages.reward.train.batch_size": 8,
        "references.samples_per_prompt": 8, "train.steps": 2, "train.batch_size": 8,
        "evaluation.samples_per_prompt": 2, "evaluation.resamples": 50, "n_values": 2,
    } | changes  # fmt: skip
    arguments = [f"--config.{key}={value}" for key, value in sizes.items()]
    command = ["compare", "--config", config, "--workdir", tmp_path, *arguments]
    done = succeed(*command)
    assert (tmp_path / "report.html").is_file()
    assert "deficit" in done.stdout
    again = succeed(*command)
    assert again.stdout == done.stdout


@pytest.mark.parametrize("gradient", ["rloo", "grpo"])
def test_a_run_without_a_value_head(tiny, tmp_path, gradient):
    succeed("train", "--workdir", tmp_path, *overrides(tiny, gradient=gradient))
    rows = files.read_jsonl(tmp_path / "runs" / "vbon-n4-s0" / "metrics.jsonl")
    assert len(rows) == 6
    assert rows[0]["rollout/kl_sampled"] == pytest.approx(0.0, abs=1e-6)
    assert rows[-1]["rollout/kl_sampled"] != 0.0
    assert not {"loss/value", "rollout/explained_variance"} & rows[0].keys()
