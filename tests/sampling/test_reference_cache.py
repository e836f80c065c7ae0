"""The reference cache: what is in it, how it goes on, and what it refuses."""

import contextlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tiny_config import check_refusal
from vbon_jax import files
from vbon_jax.data import prompt_sets
from vbon_jax.data.prompt_sets import PromptSet
from vbon_jax.sampling import reference_cache
from vbon_jax.types import InputError, Responses

PROMPTS = PromptSet(
    token_ids=[(1, 2), (3,), (4, 5, 6), (7,), (8, 9), (10,), (11, 12)],
    texts=["one two", "three", "4 5 6", "seven", "eight <b>", "", "e\nt"],
)
M, G = 3, 4


def provenance(**changes) -> reference_cache.Provenance:
    return reference_cache.Provenance(
        policy="p1",
        reward="r1",
        prompts=prompt_sets.fingerprint(PROMPTS),
        num_prompts=len(PROMPTS.token_ids),
        samples_per_prompt=M,
        max_new_tokens=G,
        temperature=1.0,
        top_k=0,
        top_p=0.9,
        seed=7,
    )._replace(**changes)


def sample(prompt_ids) -> Responses:
    """Samples that depend on the prompt's id alone, of unequal lengths, one without a token."""
    rows = [np.random.default_rng([7, int(prompt_id)]) for prompt_id in prompt_ids]
    lengths_bn = np.stack([rng.integers(0, G + 1, size=M) for rng in rows]).astype(np.int32)
    inside_bng = np.arange(G) < lengths_bn[..., None]
    tokens_bng = np.stack([rng.integers(1, 50, size=(M, G)) for rng in rows])
    log_probs_bng = np.stack([-rng.random((M, G)) for rng in rows])
    return Responses(
        tokens_bng=np.where(inside_bng, tokens_bng, 0).astype(np.int32),
        lengths_bn=lengths_bn,
        finished_bn=lengths_bn < G,
        log_probs_bng=np.where(inside_bng, log_probs_bng, 0).astype(np.float32),
    )


def score(prompts, responses):
    prompts = [PROMPTS.token_ids[place] for place in prompts]
    return np.asarray([sum(p) + 0.25 * sum(r) for p, r in zip(prompts, responses, strict=True)])


def decode(responses):
    return [" ".join(map(str, ids)) for ids in responses]


def build(folder, *, prompts_per_shard=2, sample=sample, score=score, progress=None, **changes):
    reference_cache.build(
        files.Artifact(folder, provenance(**changes)._asdict()),
        PROMPTS,
        sample=sample,
        score=score,
        decode=decode,
        prompts_per_shard=prompts_per_shard,
        progress=progress,
    )


def contents(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def check_equal(first: reference_cache.References, second: reference_cache.References) -> None:
    for name in ("tokens_bng", "lengths_bn", "finished_bn", "log_probs_bng", "rewards_bn"):
        np.testing.assert_array_equal(
            getattr(first.responses, name), getattr(second.responses, name)
        )
    assert reference_cache.read(first, range(7)) == reference_cache.read(second, range(7))


def test_what_goes_in_comes_out(tmp_path):
    build(tmp_path / "cache", prompts_per_shard=3)
    cache = reference_cache.load(tmp_path / "cache", provenance())
    samples = sample(range(7))
    for loaded, expected in zip(cache.responses[:4], samples[:4], strict=True):
        np.testing.assert_array_equal(loaded, expected)
        assert loaded.dtype == expected.dtype
    prompt_sums = np.asarray([3, 3, 15, 7, 17, 10, 23])[:, None]
    np.testing.assert_array_equal(cache.rewards_pm, prompt_sums + 0.25 * samples.tokens_bng.sum(-1))
    assert cache.rewards_pm.dtype == np.float32
    assert cache.sampled_tokens == samples.lengths_bn.sum()
    assert cache.provenance == provenance()
    names = sorted(file.name for file in (tmp_path / "cache").glob("[!.]*"))
    ranges = ("000000-000003", "000003-000006", "000006-000007")
    assert names == [*(f"shard-{rows}.parquet" for rows in ranges), "stage.json"]
    assert 0 < cache.seconds < 60


def test_texts_and_tokens_are_read_by_prompt_in_any_order(tmp_path):
    build(tmp_path / "cache", prompts_per_shard=2)
    cache = reference_cache.load(tmp_path / "cache")
    tokens = reference_cache.read(cache, [6, 0, 3, 0], column="response_tokens")
    samples = sample([6, 0, 3, 0])
    for row, loaded in enumerate(tokens):
        kept = zip(samples.tokens_bng[row], samples.lengths_bn[row], strict=True)
        assert loaded == [ids[:n].tolist() for ids, n in kept]
    assert reference_cache.read(cache, [6, 0, 3, 0]) == [decode(ids) for ids in tokens]
    assert reference_cache.read(cache, [4, 5], column="prompt") == ["eight <b>", ""]
    assert reference_cache.read(cache, [2], column="prompt_tokens") == [[4, 5, 6]]
    table = pq.read_table(cache.shards[0])
    assert table.schema.names == reference_cache.SCHEMA.names
    assert table["prompt_id"].to_pylist() == [0, 1]


@pytest.mark.parametrize("prompts_per_shard", [1, 3, 7, 100])
def test_the_cut_into_shards_changes_nothing(tmp_path, prompts_per_shard):
    build(tmp_path / "a", prompts_per_shard=2)
    build(tmp_path / "b", prompts_per_shard=prompts_per_shard)
    check_equal(reference_cache.load(tmp_path / "a"), reference_cache.load(tmp_path / "b"))


def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path):
    calls = []

    def interrupted(prompt_ids):
        calls.append(list(prompt_ids))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(prompt_ids)

    build(tmp_path / "whole")
    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        build(folder, sample=interrupted)
    assert not reference_cache.complete(folder)
    with pytest.raises(InputError, match=r"3 of 7 prompts have no responses.*first: 4.*again"):
        reference_cache.load(folder, provenance())
    # What a kill in the middle of a write leaves behind is overwritten.
    (folder / ".shard-000004-000006.parquet.tmp").write_bytes(b"half")
    kept = (folder / "shard-000002-000004.parquet").stat().st_mtime_ns

    seen = []
    build(folder, sample=interrupted, progress=lambda done, total: seen.append((done, total)))
    assert calls[3:] == [[4, 5], [6]]
    assert seen == [(4, 7), (6, 7), (7, 7)]
    assert (folder / "shard-000002-000004.parquet").stat().st_mtime_ns == kept
    assert contents(folder).keys() == contents(tmp_path / "whole").keys()
    check_equal(reference_cache.load(folder), reference_cache.load(tmp_path / "whole"))
    assert reference_cache.complete(folder)

    build(folder, sample=None, score=None)  # nothing is left to do, so neither is called
    (folder / "shard-000002-000004.parquet").unlink()
    assert not reference_cache.complete(folder)
    build(folder, prompts_per_shard=1)  # what was deleted is made again, in shards of any size
    assert (folder / "shard-000003-000004.parquet").exists()
    check_equal(reference_cache.load(folder), reference_cache.load(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("policy", "p2"),
        ("reward", "r2"),
        ("prompts", "other"),
        ("samples_per_prompt", 4),
        ("max_new_tokens", 5),
        ("temperature", 0.7),
        ("top_k", 10),
        ("top_p", 1.0),
        ("seed", 8),
        ("version", 1),
        ("imported", "f00"),
    ],
)
def test_a_cache_built_for_something_else_is_refused(tmp_path, field, value):
    folder = tmp_path / "cache"
    build(folder)
    before = contents(folder)
    built = getattr(provenance(), field)
    message = f"{field} was {built!r} and is {value!r}; give the old value, another --workdir, or"
    with pytest.raises(InputError, match=message):
        build(folder, **{field: value})
    with pytest.raises(InputError, match=message):
        reference_cache.load(folder, provenance(**{field: value}))
    assert contents(folder) == before


def test_damage_is_named(tmp_path):
    folder = tmp_path / "cache"
    build(folder)
    shard = folder / "shard-000002-000004.parquet"
    whole = shard.read_bytes()

    def refused(match):
        message = (
            f"{shard.name} cannot be read: .*{match}.*delete it and run the same command again"
        )
        with pytest.raises(InputError, match=message) as error:
            reference_cache.load(folder)
        assert "\n" not in str(error.value)

    # As if it was written so, or the folder's record would know.
    (folder / "stage.json").write_text(
        json.dumps(json.loads((folder / "stage.json").read_text()) | {"files": {}})
    )
    shard.write_bytes(whole[: len(whole) // 2])
    refused("")
    shard.write_bytes((folder / "shard-000006-000007.parquet").read_bytes())
    refused("1 rows instead of 2")
    shard.write_bytes((folder / "shard-000000-000002.parquet").read_bytes())
    refused("other prompts")

    shard.write_bytes(whole)
    table = pq.read_table(shard)
    for rewards, match in (
        ([[1.0, 2.0, 3.0], []], "prompt 3 has 0 rewards, not 3"),
        ([[1.0, 2.0, 3.0], [1.0, float("nan"), 2.0]], "not finite"),
    ):
        column = table.schema.get_field_index("rewards")
        field = reference_cache.SCHEMA.field("rewards")
        pq.write_table(table.set_column(column, field, pa.array(rewards, field.type)), shard)
        refused(match)
    pq.write_table(table.drop_columns("finished"), shard)
    refused("other columns")


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("change", [lambda b: b[:200], lambda b: b[:300] + b"!" + b[301:], None])
def test_a_damaged_shard_is_made_again_and_the_others_are_kept(tmp_path, caplog, finished, change):
    build(tmp_path / "whole")
    calls = []

    def killed_in_the_end(prompt_ids):
        calls.append(list(prompt_ids))
        if prompt_ids[0] == 6 and not finished:
            raise RuntimeError("killed")
        return sample(prompt_ids)

    folder = tmp_path / "cache"
    with contextlib.suppress(RuntimeError):
        build(folder, sample=killed_in_the_end)
    shard = folder / "shard-000002-000004.parquet"
    if change:
        shard.write_bytes(change(shard.read_bytes()))
        if finished:
            check_refusal(lambda: reference_cache.load(folder), str(shard), "cannot be read")
    else:
        shard.unlink()
    calls.clear()
    finished = True
    build(folder, sample=killed_in_the_end)
    assert [ids[0] for ids in calls] in ([2], [2, 6])
    (line,) = caplog.messages
    assert str(shard) in line
    check_equal(reference_cache.load(folder), reference_cache.load(tmp_path / "whole"))


def test_a_shard_that_no_record_lists_is_made_again(tmp_path):
    """A kill between the shard and the record, or a file that somebody put there."""

    def killed_after_two(prompt_ids):
        if prompt_ids[0]:
            raise RuntimeError("killed")
        return sample(prompt_ids)

    with contextlib.suppress(RuntimeError):
        build(tmp_path, sample=killed_after_two)
    build(tmp_path / "whole")
    stray = (tmp_path / "whole" / "shard-000004-000006.parquet").read_bytes()
    (tmp_path / "shard-000004-000006.parquet").write_bytes(stray[:-9])
    build(tmp_path)
    check_equal(reference_cache.load(tmp_path), reference_cache.load(tmp_path / "whole"))


def test_a_folder_without_a_good_record_is_refused(tmp_path):
    with pytest.raises(InputError, match="no reference cache"):
        reference_cache.load(tmp_path / "nowhere")
    assert not reference_cache.complete(tmp_path / "nowhere")
    folder = tmp_path / "cache"
    build(folder)
    record = folder / "stage.json"
    good = json.loads(record.read_text())
    for text in ("{", "[]", json.dumps({**good, "inputs": {"policy": "p1"}})):
        record.write_text(text)
        (folder / ".stage.json").write_text(text)
        with pytest.raises(InputError, match=r"stage\.json cannot be read"):
            reference_cache.load(folder)
    record.unlink()
    (folder / ".stage.json").unlink()
    with pytest.raises(InputError, match=r"has shards but no stage\.json; delete"):
        build(folder)


def test_a_reward_that_fails_leaves_no_shard(tmp_path):
    def refused_at_five(prompts, responses):
        if 5 in prompts:
            raise InputError("reward pkg:f gave nan")
        return score(prompts, responses)

    with pytest.raises(InputError, match="gave nan"):
        build(tmp_path / "cache", score=refused_at_five)
    assert len(list((tmp_path / "cache").glob("shard-*"))) == 2
    with pytest.raises(InputError, match="no prompts"):
        reference_cache.build(
            files.Artifact(tmp_path / "other", provenance()._asdict()),
            PromptSet([], []),
            sample=sample,
            score=score,
            decode=decode,
            prompts_per_shard=2,
        )


def test_rewards_that_are_known_are_not_scored(tmp_path):
    rewards_pm = np.arange(7 * M, dtype=np.float32).reshape(7, M)

    def with_rewards(prompt_ids):
        return sample(prompt_ids)._replace(rewards_bn=rewards_pm[prompt_ids])

    build(tmp_path, sample=with_rewards, score=None, prompts_per_shard=3, imported="f00")
    cache = reference_cache.load(tmp_path, provenance(imported="f00"))
    np.testing.assert_array_equal(cache.rewards_pm, rewards_pm)
    assert reference_cache.imported(tmp_path) == "f00"
    assert reference_cache.imported(tmp_path / "nowhere") is None
    assert cache.seconds == 0
    assert not cache.has_responses  # `sample` has some without a token
