"""A run: killed and resumed, on a mapped reward, on a loss that overflows, on what is refused."""

import json
import pathlib
import random
import time

import jax
import numpy as np
import pytest

from tests.tiny_config import check_refusal, overrides, refuse
from tests.training.one_run import run, small_task, started
from tests.training.tiny_task import MODEL, K, make_task
from vbon_jax import files
from vbon_jax.config import check
from vbon_jax.models import decoder
from vbon_jax.training import checkpoints, loop, methods, step
from vbon_jax.types import InputError


def metrics(folder: pathlib.Path, name: str = "metrics") -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> pathlib.Path:
    """The programs of the runs that are compared bit for bit, compiled by one that is not."""
    folder = tmp_path_factory.mktemp("compiled")
    process = started(tmp_path_factory.mktemp("compiling"), folder)
    process.join()
    assert process.exitcode == 0
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compiled) -> pathlib.Path:
    """The folder of an uninterrupted vBoN run."""
    folder = tmp_path_factory.mktemp("whole")
    process = started(folder, compiled)
    process.join()
    assert process.exitcode == 0
    return folder


@pytest.mark.slow
def test_a_row_a_step_and_the_kl_starts_at_zero(whole):
    rows = metrics(whole)
    assert [row["step"] for row in rows] == list(range(6))
    assert abs(rows[0]["rollout/kl_sampled"]) <= 1e-6
    assert rows[-1]["rollout/kl_sampled"] != 0.0
    assert all(np.isfinite(value) for row in rows for value in row.values())
    # 4 prompts x K samples x at most 5 tokens
    assert all(row["budget/reward_calls"] == 4 * K for row in rows)
    assert all(4 * K <= row["budget/sampled_tokens"] <= 20 * K for row in rows)


@pytest.mark.slow
def test_nothing_is_compiled_after_the_second_step(whole):
    counts = [row["time/compilations"] for row in metrics(whole, "timing")]
    assert counts[0] > 0
    assert counts[1:] == [counts[1]] * 5


@pytest.mark.slow
def test_a_finished_run_is_not_run_again(whole):
    before = (whole / "metrics.jsonl").stat().st_mtime_ns
    assert run(whole, small_task()) is None
    assert (whole / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.slow
def test_changed_inputs_are_refused_with_the_difference(whole):
    with pytest.raises(InputError, match=r"train\.learning_rate was 0\.001 and is 0\.5"):
        run(whole, small_task(), train__learning_rate=0.5)


@pytest.mark.slow
def test_killed_three_times_it_is_the_same_run(whole, compiled, tmp_path):
    """SIGKILL at three random moments of training; the same command gives the same metrics."""
    log = tmp_path / "metrics.jsonl"
    seed = time.time_ns() % 2**32
    generator = random.Random(seed)
    for target in sorted(generator.sample(range(1, 6), 3)):
        process = started(tmp_path, compiled)
        deadline = time.monotonic() + 240
        while process.is_alive() and time.monotonic() < deadline:
            if log.exists() and log.read_text().count("\n") >= target:
                break
            time.sleep(0.005)
        time.sleep(generator.random() * 0.2)
        process.kill()
        process.join()
    process = started(tmp_path, compiled)
    process.join()
    assert process.exitcode == 0
    assert log.read_bytes() == (whole / "metrics.jsonl").read_bytes(), f"seed {seed}"


@pytest.mark.slow
def test_the_best_checkpoint_is_measured_as_its_metric_says(tmp_path):
    """Restored, its parameters have the number that it was chosen by; no update lies between."""
    changes = {"train__checkpoint_every": 1, "train__eval_every": 1, "train__steps": 5}
    task = small_task("bon_sft", train__best_metric="eval/reward", **changes)
    network = decoder.init(MODEL, jax.random.key(0))

    def measure(params) -> dict[str, float]:
        """A number that rises and falls as parameters move."""
        total = float(np.asarray(params["decoder"]["norm_f"]["scale"], np.float64).sum())
        return {"eval/reward": float(np.sin(3e3 * total)), "eval/kl": total}

    loop.run(task.config, tmp_path, task, network, {}, evaluate=measure)
    logged = [row["eval/reward"] for row in metrics(tmp_path)]
    assert len(set(logged)) == 5
    for which, value in (("best", max(logged)), ("last", logged[-1])):
        params = loop.restore(tmp_path, which=which, task=task, network=network)
        assert measure({"decoder": params})["eval/reward"] == value
    config = task.config.copy_and_resolve_references()
    config.train.best_metric = ""
    with pytest.raises(InputError, match=r"keeps no best checkpoint.*train\.best_metric"):
        loop.restore(tmp_path, which="best", task=task._replace(config=config), network=network)


def test_the_best_deficit_is_the_lowest(tmp_path):
    saved = checkpoints.Writer(tmp_path, metric="eval/deficit")
    for at, deficit in enumerate((0.3, np.nan, -0.1, 0.2), start=1):
        saved.save(at, {"x": np.ones(2) * at}, {}, {"eval/deficit": deficit})
    saved.close()
    assert checkpoints.steps(tmp_path) == [3, 4]
    best = checkpoints.load(tmp_path, "best", "eval/deficit", {"x": np.ones(2)})
    np.testing.assert_array_equal(best["x"], [3.0, 3.0])


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    """It is named, in parameters and in moments; the last checkpoint stays the good one."""
    good = {"params": {"decoder": {"tokens": np.ones((3, 2), np.float32)}},
            "moments": [np.zeros(2, np.float32), np.zeros(1, np.int32)]}  # fmt: skip
    for name, place in (("params/decoder/tokens", good["params"]["decoder"]["tokens"][1]),
                        ("moments/0", good["moments"][0])):  # fmt: skip
        saved = checkpoints.Writer(tmp_path / name)
        saved.save(1, good, {}, {})
        for value in (np.nan, np.inf):
            kept, place[0] = float(place[0]), value
            words = f"step 2: {name} is not finite", "train.learning_rate"
            check_refusal(lambda saved=saved: saved.save(2, good, {}, {}), *words)
            place[0] = kept
        saved.close()
        assert checkpoints.resume(tmp_path / name, good)[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize("evaluated", [False, True])
def test_a_run_ends_where_its_parameters_are_not_finite(tmp_path, monkeypatch, evaluated):
    """Before they are evaluated, saved or called finished: the folder takes other settings."""

    def update(state, *_, **__):
        state.params["decoder"]["norm_f"]["scale"] *= np.inf
        return state, {"loss/total": 1.0}

    monkeypatch.setattr(step, "update", update)
    monkeypatch.setattr(step, "update_flops", lambda *_, **__: 1.0)
    task = make_task("bon_sft", n=2.0, train__steps=1, train__eval_every=1)
    network = decoder.init(MODEL, jax.random.key(0))
    measure = (lambda _: pytest.fail("it was evaluated")) if evaluated else None
    with pytest.raises(InputError, match=r"step 1: params/decoder/norm_f/scale is not finite"):
        loop.run(task.config, tmp_path, task, network, {}, evaluate=measure)
    assert not files.recorded(tmp_path)["finished"]
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))
    network["norm_f"]["bias"] *= np.nan
    with pytest.raises(InputError, match=r"params/decoder/norm_f/bias is not finite"):
        loop.run(task.config, tmp_path, task, network, {})


@pytest.mark.slow
def test_an_increasing_map_of_the_reward_changes_nothing(tmp_path):
    """vBoN reads ranks alone: bit for bit the same run, but for the raw reward in the log."""
    task = small_task()
    stretched = task._replace(
        score=lambda *ids: np.exp(task.score(*ids) / 9.0) - 5.0,
        cache=task.cache._replace(rewards_bn=np.exp(task.cache.rewards_bn / 9.0) - 5.0),
    )
    run(tmp_path / "plain", task)
    run(tmp_path / "mapped", stretched)
    plain, mapped = metrics(tmp_path / "plain"), metrics(tmp_path / "mapped")
    assert plain[0]["rollout/reward"] != mapped[0]["rollout/reward"]
    for ours, theirs in zip(plain, mapped, strict=True):
        assert ours | {"rollout/reward": 0} == theirs | {"rollout/reward": 0}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_an_infinite_loss_stops_with_the_batch_on_disk(tmp_path):
    task = small_task("kl_rl")
    costly = task._replace(
        score=lambda *ids: np.where(task.score(*ids) > 9, 3e38, -3e38).astype(np.float32)
    )
    with pytest.raises(InputError, match="before any update; look for rewards"):
        run(tmp_path, costly)
    batches = list(tmp_path.glob("bad_batch_*.npz"))
    assert len(batches) == 1
    with np.load(batches[0]) as arrays:
        assert any("returns" in name for name in arrays)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n": 0.5}, "n=0.5"),
        ({"bound": "l2"}, "bound"),
        ({"train__minibatches": 3}, "train.minibatches"),
        ({"train__trainable": "nothing_like_this"}, "train.trainable"),
        ({"train__best_metric": "no/metric"}, "no/metric"),
    ],
)
def test_what_a_run_cannot_do_is_refused_in_a_line(tmp_path, changes, words):
    task = small_task()
    config = task.config.copy_and_resolve_references()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})

    def checked_run():
        check(config)
        methods.check(config)
        run(tmp_path, task._replace(config=config))

    check_refusal(checked_run, words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "ppo"}, "vbon, kl_rl, bond, j_bond"),
        ({"reward__function": "tests.reward_functions:not_a_number"}, "finite"),
        ({"reward__function": "tests.reward_functions:absent"}, "absent"),
        ({"data__train": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"policy__path": "./nowhere"}, "nowhere"),
        ({"sampling__max_new_tokens": 60}, "max_new_tokens"),
    ],
)
def test_bad_input_is_one_line_and_status_two(tiny, tmp_path, changes, words):
    refuse(words, "train", "--workdir", tmp_path, *overrides(tiny, **changes))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.tran.steps=3"], "train.steps"),
        (["--config.zzz=3"], "no key 'zzz'"),
        (["--config.train.steps=many"], "many"),
        (["--config=nowhere.py"], "nowhere.py"),
        (["--nonsense=1"], "nonsense"),
        (["stray"], "stray"),
        ([], "--workdir"),
    ],
)
def test_bad_flags_are_one_line_and_status_two(tmp_path, arguments, words):
    refuse(words, "train", *(["--workdir", tmp_path] if arguments else []), *arguments)
