"""Inputs that a user may give by mistake, and the words of the one line that answers each.

A case is `(program, arguments, words)`: the program ends with status 2, and the last line on
standard error has all the words: the flag, key, file or field, and mostly the remedy. `@x` in an
argument is the file `x` of FILES, `@model/x` the folder `x` of MODELS, `@/x` is `x` in an
empty folder, RUN the keys of a small run, TINY its policy.
"""

import json
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

Case = tuple[str, str, tuple[str, ...]]


def _lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


GOOD = [{"text": f"a film number {i} that runs"} for i in range(8)]
PAIR = {"prompt": "the film", "chosen": " is good", "rejected": " is bad"}
FILES: dict[str, bytes] = {
    "good.jsonl": _lines(*GOOD),
    "empty.jsonl": b"",
    "blank.jsonl": _lines(GOOD[0]) + b"\n" + _lines(GOOD[1]),
    "cut.jsonl": _lines(GOOD[0]) + b'{"text": "a fi',
    "latin.jsonl": _lines(GOOD[0]) + '{"text": "Caf\u00e9"}\n'.encode("latin-1"),
    "list.jsonl": b"[1, 2]\n",
    "number.jsonl": b"17\n",
    "utf16.jsonl": '{"text": "a"}\n'.encode("utf-16"),
    "nofield.jsonl": _lines({"txt": "a"}),
    "none.jsonl": _lines({"text": None}),
    "nested.jsonl": _lines({"text": {"a": 1}}),
    "deep.json": b"[" * 100_000 + b"]" * 100_000,
    "huge.jsonl": b'{"text": "a film", "id": ' + b"9" * 5000 + b"}\n",
    "half.jsonl": b'{"text": "a \\ud83d film"}\n',
    "same.jsonl": _lines(*[GOOD[0]] * 4),
    "object.json": b'{"text": 3}',
    "broken.json": b'[{"text": "a"},]',
    "ragged.csv": b"text,label\na,1\nb,2,3\n",
    "twice.csv": b"text,text\na,b\n",
    "index.csv": b",text\n0,a film\n1,a plot\n",
    "quote.csv": b'text\n"a film\n',
    "header.csv": b"text\n",
    "latin.csv": "text\nCaf\u00e9\n".encode("latin-1"),
    "fake.parquet": b"PAR1 not really",
    "label_text.jsonl": _lines({"text": "a film", "label": "good"}),
    "label_float.jsonl": _lines({"text": "a film", "label": 0.5}),
    "label_negative.jsonl": _lines({"text": "a film", "label": -1}),
    "label_none.jsonl": _lines({"text": "a film"}),
    "label_big.jsonl": _lines({"text": "a film", "label": 2**40}),
    "pair.jsonl": _lines(PAIR),
    "pair_equal.jsonl": _lines(PAIR | {"rejected": " is good"}),
    "pair_empty.jsonl": _lines(PAIR | {"rejected": " "}),
    "pair_missing.jsonl": _lines({"prompt": "a", "chosen": "b"}),
    "pair_type.jsonl": _lines(PAIR | {"chosen": 3}),
    "pair_rewards.jsonl": _lines(PAIR | {"chosen_reward": 0, "rejected_reward": 1}),
    "pair_nan.jsonl": _lines(PAIR | {"chosen_reward": float("nan"), "rejected_reward": 1}),
    "pair_messages.jsonl": _lines({"chosen": [{"role": "user", "content": "a"}], "rejected": []}),
    "pair_hh.jsonl": _lines(
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}
    ),
    "score_empty.jsonl": b"",
    "score_field.jsonl": _lines({"prompt": "a film"}),
    "score_type.jsonl": _lines({"prompt": "a film", "response": ["b"]}),
    "score_long.jsonl": _lines({"prompt": "a film " * 60, "response": " b"}),
    "score_good.jsonl": _lines({"prompt": "the film", "response": " is good"}),
    "prompts.txt": b"a film\n",
    "latin.txt": "Caf\u00e9\n".encode("latin-1"),
    "no_function.py": b"x = 3\n",
    "raises.py": b"def get_config(arg=None):\n    raise KeyError('no such thing')\n",
    "syntax.py": b"def get_config(:\n",
    "returns.py": b"def get_config(arg=None):\n    return {'train': 1}\n",
    "a_file": b"not a folder",
}


def write_files(folder: pathlib.Path) -> None:
    """Write FILES, and those that are not bytes: Parquet and folders of parts."""
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe")]
    )
    pq.write_table(pa.table({"text": ["a film"], "other": broken}), folder / "utf8.parquet")
    far = pa.array([2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["a film"], "when": far}), folder / "time.parquet")
    for name, parts in {
        "half_split": ("train-00000-of-00002",),
        "two_sizes": ("train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"),
        "other_split": ("validation",),
    }.items():
        (folder / name).mkdir()
        for part in parts:
            (folder / name / f"{part}.jsonl").write_bytes(_lines(*GOOD))


# ------------------------------------------------------------------------------- model folders


def _edit_config(**changes: object) -> Callable[[pathlib.Path], None]:
    def edit(folder: pathlib.Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config = {key: value for key, value in (config | changes).items() if value != "DELETE"}
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def _edit_tensors(edit_tensors: Callable[[dict], dict]) -> Callable[[pathlib.Path], None]:
    def edit(folder: pathlib.Path) -> None:
        path = folder / "model.safetensors"
        save_file(edit_tensors(load_file(path)), path, metadata={"format": "pt"})

    return edit


def _replace(name: str, content: bytes | None) -> Callable[[pathlib.Path], None]:
    def edit(folder: pathlib.Path) -> None:
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)

    return edit


def _first(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict], dict]:
    return lambda tensors: {
        name: change(value) if at == 0 else value
        for at, (name, value) in enumerate(sorted(tensors.items()))
    }


def _with_nan(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values.flat[0] = np.nan
    return values


def _bin_only(folder: pathlib.Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


MODELS: dict[str, Callable[[pathlib.Path], None]] = {
    "no_config": _replace("config.json", None),
    "bad_config": _replace("config.json", b'{"model_type": '),
    "list_config": _replace("config.json", b"[]"),
    "latin_config": _replace("config.json", b'{"model_type": "gpt2\xff"}'),
    "no_type": _edit_config(model_type="DELETE"),
    "new_type": _edit_config(model_type="gpt17"),
    "type_number": _edit_config(model_type=3),
    "remote_code": _edit_config(model_type="mine", auto_map={"AutoConfig": "mine.Config"}),
    "width_text": _edit_config(n_embd="sixteen"),
    "width_zero": _edit_config(n_embd=0),
    "width_negative": _edit_config(n_embd=-16),
    "heads": _edit_config(n_head=3),
    "activation": _edit_config(activation_function="wavy"),
    "pruned": _edit_config(pruned_heads={"0": [0]}),
    "layers": _edit_config(n_layer=3),
    "layers_huge": _edit_config(n_layer=10**6),
    "vocabulary": _edit_config(vocab_size=20),
    "eos_outside": _edit_config(eos_token_id=50256),
    "no_weights": _replace("model.safetensors", None),
    "pickle_only": _bin_only,
    "empty_weights": _replace("model.safetensors", b""),
    "cut_weights": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:-100]),
    "rubbish_weights": _replace("model.safetensors", b"\xff" * 200),
    "missing_tensor": _edit_tensors(lambda t: dict(sorted(t.items())[1:])),
    "wrong_shape": _edit_tensors(_first(lambda v: np.concatenate([v, v]))),
    "integers": _edit_tensors(_first(lambda v: v.astype(np.int32))),
    "nan": _edit_tensors(_first(_with_nan)),
    "prefixed": _edit_tensors(lambda t: {f"module.{k}": v for k, v in t.items()}),
    "adapter": _replace("adapter_config.json", b"{}"),
    "no_tokenizer": lambda folder: [
        path.unlink() for path in folder.iterdir() if "token" in path.name],
    "bad_tokenizer": _replace("tokenizer.json", b"{"),
    "index": lambda folder: [
        (folder / "model.safetensors").rename(folder / "other.safetensors"),
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "missing.safetensors"}}))],
}  # fmt: skip


def make_model(policy: pathlib.Path, name: str, folder: pathlib.Path) -> None:
    """A copy of a policy's folder with what MODELS changes in it."""
    shutil.copytree(policy, folder)
    MODELS[name](folder)


# ------------------------------------------------------------------------------- cases

POLICY = "--config.policy.path="
FLAGS: list[Case] = [
    *((name, "", ("--workdir", "missing")) for name in (
        "compare", "train", "evaluate", "collect", "report", "llm_judge", "cdf_study")),
    ("score", "", ("--model",)),
    ("score", "--model=x --input=y", ("--output",)),
    ("export", "", ("--run",)),
    ("export", "--run=@ --output=@/x", ("config.json",)),
    ("export", "--run=@ --output=@/x --checkpoint=first", ("checkpoint", "first")),
    ("compare", "--workdir=@/w --no_such_flag=3", ("no_such_flag",)),
    ("compare", "--workdir=@/w word", ("unexpected argument", "word")),
    ("compare", "--workdir=@/w --config=@/missing.py", ("missing.py",)),
    ("compare", "--workdir=@/w --config=@a_file", ("a_file",)),
    ("compare", "--workdir=@/w --config=@no_function.py", ("no_function.py", "get_config")),
    ("compare", "--workdir=@/w --config=@raises.py", ("raises.py",)),
    ("compare", "--workdir=@/w --config=@syntax.py", ("syntax.py",)),
    ("compare", "--workdir=@/w --config=@returns.py", ("returns.py", "ConfigDict")),
    ("compare", "--workdir=@/w --config=configs/imdb.py:other", ("other",)),
    ("import_samples", "--workdir=@/w", ("--samples", "--prompts")),
    ("import_samples", "--workdir=@/w --split=test --samples=x", ("split", "test")),
    ("generate", "", ("--model",)),
    ("generate", "--model=@/none --prompt=a", ("none",)),
    ("generate", "--model=TINY --prompt=a --input=@prompts.txt", ("--prompt", "--input")),
    ("generate", "--model=TINY --prompt=a --best_of=4", ("--best_of=4", "reward")),
    ("generate", "--model=TINY --prompt=a --best_of=0", ("best_of",)),
    ("generate", "--model=TINY --prompt=a --samples=0", ("samples",)),
    ("generate", "--model=TINY --prompt=a --top_p=0", ("top_p",)),
    ("generate", "--model=TINY --prompt=a --top_p=1.5", ("top_p",)),
    ("generate", "--model=TINY --prompt=a --top_k=-1", ("top_k",)),
    ("generate", "--model=TINY --prompt=a --temperature=-1", ("temperature",)),
    ("generate", "--model=TINY --prompt=a --temperature=nan", ("temperature",)),
    ("generate", "--model=TINY --prompt=a --max_new_tokens=0", ("max_new_tokens",)),
    ("generate", "--model=TINY --prompt=a --max_new_tokens=4000", ("max_new_tokens", "positions")),
    ("generate", "--model=TINY --prompt=a --seed=-1", ("seed",)),
    ("generate", "--model=TINY --prompt=a --output=@good.jsonl", ("--output", "exists")),
    ("generate", "--model=TINY --prompt=a --output=@a_file/x", ("a_file/x", "cannot be written")),
    ("generate", "--model=TINY --input=@/none.txt", ("--input", "none.txt")),
    ("generate", "--model=TINY --input=@latin.txt", ("latin.txt", "UTF-8")),
    ("generate", "--model=TINY --input=@empty.jsonl", ("empty.jsonl",)),
    ("generate", "--model=TINY --prompt=a --chat", ("chat template",)),
    ("generate", "--model=TINY --prompt=a --reward.function=nothing",
     ("'nothing'", "package.module:function")),
    ("generate", "--model=TINY --prompt=a --reward.function=no.such:thing", ("no.such",)),
    ("generate", "--model=TINY --prompt=a --reward.path=TINY", ("architectures",)),
    ("score", "--model=TINY --input=@score_empty.jsonl --output=@/o", ("score_empty", "empty")),
    ("score", "--model=TINY --input=@score_field.jsonl --output=@/o", ("line 1", "'response'")),
    ("score", "--model=TINY --input=@score_type.jsonl --output=@/o", ("line 1", "'response'")),
    ("score", "--model=TINY --input=@score_long.jsonl --output=@/o", ("line 1", "tokens")),
    ("score", "--model=TINY --input=@half.jsonl --output=@/o", ("line 1",)),
    ("score", "--model=TINY --input=@score_good.jsonl --output=@/o --batch=0", ("batch",)),
    ("score", "--model=TINY --input=@score_good.jsonl --output=@a_file/o", ("a_file",)),
    ("report", "--workdir=@/none", ("none",)),
    ("report", "--workdir=@", ("neither runs nor", "--workdir")),
    ("cdf_study", "--workdir=@", ("reference cache",)),
    ("cdf_study", "--workdir=@ --seed=-1", ("seed",)),
    ("evaluate", "--workdir=@/w RUN", ("w",)),
]  # fmt: skip
KEYS: list[Case] = [
    ("train", f"RUN --workdir=@/w --config.{change}", words)
    for change, words in {
        "tran.steps=3": ("tran.steps", "train.steps"),
        "train.steps=many": ("train.steps", "whole number"),
        "train.steps=0": ("train.steps",),
        "train.steps=2.5": ("train.steps",),
        "train=3": ("train",),
        "seed=-1": ("seed",),
        "seed=5000000000": ("seed",),
        "references.seed=-1": ("references.seed",),
        "evaluation.seed=-1": ("evaluation.seed",),
        "evaluation.resamples=0": ("evaluation.resamples",),
        "evaluation.ruler_n=0,2": ("evaluation.ruler_n",),
        "evaluation.temperatures=-1": ("evaluation.temperatures",),
        "evaluation.samples_per_prompt=0": ("evaluation.samples_per_prompt",),
        "evaluation.checkpoint=first": ("evaluation.checkpoint",),
        "train.learning_rate=-1e-3": ("train.learning_rate",),
        "train.learning_rate=nan": ("train.learning_rate",),
        "train.learning_rate=inf": ("train.learning_rate",),
        "train.weight_decay=-1": ("train.weight_decay",),
        "train.weight_decay=nan": ("train.weight_decay",),
        "train.max_gradient_norm=-1": ("train.max_gradient_norm",),
        "train.warmup_updates=-1": ("train.warmup_updates",),
        "train.beta1=1": ("train.beta1",),
        "train.beta2=1": ("train.beta2",),
        "train.epsilon=0": ("train.epsilon",),
        "train.schedule=stairs": ("train.schedule", "cosine"),
        "train.batch_size=0": ("train.batch_size",),
        "train.minibatches=3": ("train.minibatches",),
        "train.samples_per_prompt=0": ("train.samples_per_prompt",),
        "train.trainable=nothing": ("train.trainable",),
        "train.trainable=(": ("train.trainable",),
        "train.trainable=last:x": ("train.trainable",),
        "train.checkpoint_every=0": ("train.checkpoint_every",),
        "train.eval_prompts=-5": ("train.eval_prompts",),
        "train.best_metric=eval/win_rate": ("train.best_metric",),
        "ppo.clip=-0.5": ("ppo.clip",),
        "ppo.gae_lambda=1.9": ("ppo.gae_lambda",),
        "ppo.discount=2": ("ppo.discount",),
        "ppo.value_learning_rate=nan": ("ppo.value_learning_rate",),
        "gradient=sgd": ("gradient", "rloo"),
        "bound=l2": ("bound", "exact"),
        "cdf.estimator=mean": ("cdf.estimator", "harmonic"),
        "n=0.5": ("n",),
        "n=nan": ("n",),
        "n=x": ("n", "a number"),
        "method=magic": ("magic", "vbon"),
        "method=no.such:thing": ("no.such",),
        "sampling.max_new_tokens=0": ("sampling.max_new_tokens",),
        "sampling.max_new_tokens=48": ("sampling.max_new_tokens", "positions"),
        "sampling.temperature=0": ("sampling.temperature",),
        "references.samples_per_prompt=0": ("references.samples_per_prompt",),
        "data.over_long=cut": ("data.over_long", "truncate"),
        "data.min_tokens=9": ("data.min_tokens", "data.max_tokens"),
        "data.field=txt": ("'txt'", "text"),
        "policy.dtype=float8": ("policy.dtype", "bfloat16"),
        "policy.lora.pattern=nothing": ("nothing",),
        "policy.lora.rank=0": ("policy.lora.rank",),
        "policy.path=": ("policy.path",),
        "policy.path=stage:none": ("none",),
        "reward.function=": ("reward.path",),
        "reward.function=tests.reward_functions": ("tests.reward_functions",),
        "reward.function=tests.reward_functions:none": ("none",),
        "reward.path=x": ("reward.path", "reward.function"),
        "mesh.fsdp=3": ("mesh",),
        "mesh.data=0": ("mesh",),
        "budget.sampled_tokens=-1": ("budget.sampled_tokens",),
        "pairs.alpha=2": ("pairs.alpha",),
        "bond.backward=-1": ("bond.backward",),
    }.items()
]  # fmt: skip
COMPARISONS: list[Case] = [
    ("compare", f"RUN --workdir=@/w --config.{change}", words)
    for change, words in {
        "methods=": ("methods",),
        "n_values=": ("n_values",),
        "seeds=": ("seeds",),
        "methods=vbon,magic": ("magic",),
        "methods=vbon,vbon": ("duplicate",),
        "n_values=0.5": ("n_values",),
        "seeds=-1": ("seed",),
        "seeds=0,0": ("duplicate",),
        "methods=raft --config.n_values=2.5": ("whole number",),
        "methods=bonbon --config.n_values=1": ("n=1",),
        "methods=bonbon --config.n_values=9": ("samples_per_prompt",),
    }.items()
]
DATA: list[Case] = [
    ("train", f"RUN --workdir=@/w --config.data.train=@{name}", words)
    for name, words in {
        "/none.jsonl": ("none.jsonl", "no such file"),
        "": ("train.jsonl",),
        "a_file": ("a_file",),
        "empty.jsonl": ("empty.jsonl", "empty"),
        "blank.jsonl": ("line 2", "blank"),
        "cut.jsonl": ("line 2", "JSON"),
        "latin.jsonl": ("line 2", "UTF-8"),
        "utf16.jsonl": ("utf16.jsonl", "UTF-8"),
        "list.jsonl": ("line 1", "list"),
        "number.jsonl": ("line 1", "int"),
        "nofield.jsonl": ("line 1", "'text'", "txt"),
        "none.jsonl": ("line 1", "'text'"),
        "nested.jsonl": ("line 1", "'text'"),
        "deep.json": ("deep.json",),
        "huge.jsonl": ("line 1",),
        "half.jsonl": ("line 1",),
        "object.json": ("row 1", "'text'"),
        "broken.json": ("broken.json",),
        "ragged.csv": ("row 2", "3 cells"),
        "twice.csv": ("twice.csv",),
        "index.csv": ("index.csv",),
        "quote.csv": ("row 1",),
        "header.csv": ("no rows",),
        "latin.csv": ("row 1", "UTF-8"),
        "fake.parquet": ("fake.parquet", "Parquet"),
        "utf8.parquet": ("utf8.parquet", "other"),
        "time.parquet": ("time.parquet", "when"),
        "half_split": ("half_split", "00001", "fetch"),
        "two_sizes": ("two_sizes",),
        "other_split": ("other_split", "train.jsonl"),
    }.items()
] + [
    ("train", "RUN --workdir=@/w --config.method=dpo --config.n=2 "
     f"--config.pairs.path=@{name}", words)
    for name, words in {
        "/none": ("none",),
        "pair_equal.jsonl": ("line 1", "equal"),
        "pair_empty.jsonl": ("line 1", "empty"),
        "pair_missing.jsonl": ("line 1", "'rejected'"),
        "pair_type.jsonl": ("line 1", "'chosen'"),
        "pair_rewards.jsonl": ("line 1", "chosen_reward"),
        "pair_nan.jsonl": ("line 1", "chosen_reward"),
        "pair_messages.jsonl": ("line 1",),
        "pair_hh.jsonl": ("line 1", "Assistant"),
    }.items()
] + [
    ("train", "--workdir=@/w --config.method=reward_model "
     f"--config.reward.path=TINY --config.data.train=@{name}", words)
    for name, words in {"label_none.jsonl": ("config.json", "architectures")}.items()
]  # fmt: skip
FOLDERS: list[Case] = [
    ("score", f"--model=@model/{name} --input=@score_good.jsonl --output=@/o", words)
    for name, words in {
        "no_config": ("config.json",),
        "bad_config": ("config.json",),
        "list_config": ("config.json",),
        "latin_config": ("config.json",),
        "no_type": ("config.json", "model_type"),
        "new_type": ("gpt17",),
        "type_number": ("config.json",),
        "remote_code": ("mine",),
        "width_text": ("config.json", "n_embd"),
        "width_zero": ("config.json",),
        "width_negative": ("config.json",),
        "heads": ("config.json",),
        "activation": ("wavy",),
        "pruned": ("pruned_heads",),
        "layers": ("h.2",),
        "layers_huge": ("config.json", "1000000 layers"),
        "vocabulary": ("vocab",),
        "eos_outside": ("50256",),
        "no_weights": ("safetensors",),
        "pickle_only": ("pytorch_model.bin", "safetensors"),
        "empty_weights": ("model.safetensors",),
        "cut_weights": ("model.safetensors",),
        "rubbish_weights": ("model.safetensors",),
        "missing_tensor": ("tensor",),
        "wrong_shape": ("shape",),
        "integers": ("is I32", "F32"),
        "nan": ("not finite",),
        "prefixed": ("module.",),
        "adapter": ("adapter_config.json",),
        "no_tokenizer": ("tokenizer",),
        "bad_tokenizer": ("tokenizer",),
        "index": ("missing.safetensors",),
    }.items()
]
WORKDIRS: list[Case] = [
    (program, f"RUN --workdir={place}", words)
    for program in ("compare", "train", "collect")
    for place, words in {
        "@a_file": ("a_file",),
        "@a_file/below": ("a_file",),
        "/dev/null/x": ("/dev/null",),
        "/proc/x": ("/proc",),
        "gs://bucket/runs": ("gs://",),
        "s3://bucket/runs": ("s3://",),
    }.items()
]
CASES = FLAGS + KEYS + COMPARISONS + DATA + FOLDERS + WORKDIRS
