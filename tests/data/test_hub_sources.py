"""What a configuration's data are: splits, filters and columns of each source, and given pairs."""

import csv
import json
import logging
import types

import pytest

from vbon_jax.config import defaults
from vbon_jax.data import sources, tokenizers
from vbon_jax.study import materials
from vbon_jax.types import InputError

ROWS = [
    {"query": f"{split} {name} {number}", "subreddit": name}
    for split in ("train", "test")
    for number, name in enumerate(("relationships", "tifu", "relationships", "askreddit"))
]


@pytest.fixture
def config(tmp_path):
    """Two files of posts in a folder, and a configuration that reads them."""
    for split in ("train", "test"):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["query", "subreddit"])
            writer.writeheader()
            writer.writerows(row for row in ROWS if row["query"].startswith(split))
    config = defaults()
    with config.unlocked():
        config.data.train = config.data.eval = str(tmp_path)
        config.data.columns.prompt = "query"
    return config


def read(config, split: str) -> list[str]:
    table = sources.read_split(config.data, split)
    return [row["prompt"] for row in table.rows]


def test_each_split_is_read_from_its_own_file(config):
    assert read(config, "train") == [row["query"] for row in ROWS[:4]]
    assert read(config, "eval") == [row["query"] for row in ROWS[4:]]
    config.data.split_train, config.data.split_eval = "test", "train"
    assert read(config, "train") == [row["query"] for row in ROWS[4:]]
    assert read(config, "eval") == [row["query"] for row in ROWS[:4]]
    config.data.split_eval = "other"
    with pytest.raises(InputError, match=r"the folder holds no other\.jsonl"):
        read(config, "eval")


def test_held_out_rows_have_the_filter_or_one_of_their_own(config):
    with config.unlocked():
        config.data.filter.subreddit = "relationships"
    assert read(config, "train") == ["train relationships 0", "train relationships 2"]
    assert read(config, "eval") == ["test relationships 0", "test relationships 2"]
    with config.unlocked():
        config.data.filter_eval["not subreddit"] = ("relationships", "tifu")
    assert read(config, "train") == ["train relationships 0", "train relationships 2"]
    assert read(config, "eval") == ["test askreddit 3"]


# Given pairs --------------------------------------------------------------------------------------


def given_pairs(path, **changes):
    tokenizer = tokenizers.train_tokenizer(["a small text"], vocab_size=260)
    shared = types.SimpleNamespace(
        tokenizer=tokenizer,
        models=types.SimpleNamespace(policy="policy"),
        sampling=types.SimpleNamespace(eos_token_ids=(tokenizer.eos_token_id,)),
        checkpoint=types.SimpleNamespace(config=types.SimpleNamespace(max_positions=120)),
    )
    config = defaults()
    with config.unlocked():
        config.pairs.path = str(path)
        for key, value in changes.items():
            config.pairs[key] = value
    pairs = materials.given_pairs(config, shared)
    return pairs, tokenizer


def test_pairs_of_dialogues_filtered_and_renamed(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    start = "\n\nHuman: hi\n\nAssistant:"
    rows = [
        {"better": f"{start} yes", "worse": f"{start} no", "kind": "good"},
        {"better": f"{start} same", "worse": f"{start} same", "kind": "good"},
        {"better": f"{start} other", "worse": f"{start} no", "kind": "bad"},
        {"better": f"{start} a", "worse": start, "kind": "good"},
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    changes = {"columns": {"chosen": "better", "rejected": "worse"}, "filter": {"kind": "good"}}
    with pytest.raises(InputError, match=r"train\.json: row 4: the rejected response is empty"):
        given_pairs(tmp_path, on_tie="drop", **changes)
    pairs, tokenizer = given_pairs(tmp_path, on_tie="drop", on_empty="drop", **changes)
    assert [tokenizer.decode(ids) for ids in pairs.prompt_ids] == [start]
    assert [tokenizer.decode(ids[:-1]) for ids in pairs.chosen_ids] == [" yes"]
    assert [tokenizer.decode(ids[:-1]) for ids in pairs.rejected_ids] == [" no"]
    assert pairs.tied == 1
    assert "1 pairs in" in caplog.text
    assert "1 with equal responses left out, 1 with an empty one" in caplog.text
    with pytest.raises(InputError, match=r"row 2: chosen and rejected are equal"):
        given_pairs(tmp_path, **changes)


def test_an_over_long_pair_is_named_by_its_place(tmp_path):
    rows = [{"prompt": "p", "chosen": "a", "rejected": "a"}, {"prompt": "p", "chosen": "b" * 50,
            "rejected": "c"}]  # fmt: skip
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"train\.jsonl: line 2: field 'chosen' has \d+ tokens"):
        given_pairs(tmp_path, on_tie="drop")
