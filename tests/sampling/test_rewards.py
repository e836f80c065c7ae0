"""Rewards: which text is read, what a classifier says of it, and what is refused."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.tiny_config import check_refusal
from vbon_jax.config import defaults
from vbon_jax.data import prompt_sets, reward_inputs, tokenizers, toy_reviews
from vbon_jax.models import classifier, encoder
from vbon_jax.models.huggingface import model_folder
from vbon_jax.sampling import rewards
from vbon_jax.types import InputError

NETWORK = {"model_type": "distilbert", "vocab_size": 320, "dim": 16, "n_layers": 1, "n_heads": 2}
NETWORK |= {"hidden_dim": 32, "max_position_embeddings": 112, "initializer_range": 0.5}
CONFIG = model_folder.config_of(NETWORK, labels=("bad", "so-so", "good"), source="NETWORK")


@pytest.fixture(scope="module")
def texts():
    written = [r.text for r in toy_reviews.generate(20, seed=3)]
    return ["", "dull", *written, *(text[: 7 * n] for n, text in enumerate(written[:8]))]


@pytest.fixture(scope="module")
def wordpiece():
    return tokenizers.train_wordpiece(
        (r.text for r in toy_reviews.generate(300, seed=0)), vocab_size=320
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, wordpiece):
    path = tmp_path_factory.mktemp("models") / "three"
    params = encoder.init(CONFIG, jax.random.key(0))
    model_folder.save(path, CONFIG, params, settings=NETWORK, tokenizer=wordpiece)
    return path


def scores(reward, texts):
    """A reward's scores of texts, given as responses to empty prompts."""
    return reward.score([""] * len(texts), texts)


def write(path, wordpiece, *, labels=CONFIG.labels, settings=NETWORK):
    config = dataclasses.replace(CONFIG, labels=labels)
    params = encoder.init(config, jax.random.key(1))
    model_folder.save(path, config, params, tokenizer=wordpiece, settings=settings)
    return path


# Text ---------------------------------------------------------------------------------------------


def test_a_reward_reads_prompt_and_response_as_one_run_without_special_tokens():
    tokenizer = tokenizers.train_tokenizer(["the plot is good"], vocab_size=280)
    snowman = tokenizer("☃")["input_ids"]
    plot = tokenizer("the plot")["input_ids"]
    good = [*tokenizer(" is good , .")["input_ids"], tokenizer.eos_token_id]
    assert len(snowman) == 3
    prompts, responses = [plot, snowman[:1], [0]], [good, [*snowman[1:], 0], []]
    # A character that is cut between prompt and response is whole; " ," keeps its space.
    assert rewards.texts(tokenizer, prompts, responses) == (
        ["the plot", "", ""],
        [" is good , .", "☃", ""],
    )
    with pytest.raises(ValueError, match="zip"):
        rewards.texts(tokenizer, prompts, responses[:2])


def test_a_space_that_only_the_inside_of_a_text_has_belongs_to_the_response():
    class Words:
        """Decodes as SentencePiece does: no space before the first word of a text."""

        def batch_decode(self, rows, **options):
            assert options == {
                "skip_special_tokens": True,
                "clean_up_tokenization_spaces": False,
            }
            return [" ".join(f"w{token}" for token in row) for row in rows]

    texts = rewards.texts(Words(), [[1, 2], [], [1, 2]], [[3], [4, 5], []])
    assert texts == (["w1 w2", "", "w1 w2"], [" w3", "w4 w5", ""])


def test_responses_are_scored_with_their_prompts_rows():
    tokenizer = tokenizers.train_tokenizer(["the plot is good"], vocab_size=280)
    ids = [tuple(tokenizer(text)["input_ids"]) for text in ("the", "plot", " good", " bad")]
    prompts = prompt_sets.PromptSet(ids[:2], ["the", "plot"], columns={"answer": ["a", "b"]})
    seen = []

    def score(*arguments):
        seen.append(arguments)
        return np.arange(3, dtype=np.float32)

    reward = rewards.Reward(score, "fingerprint", ("answer",))
    places, responses = np.asarray([1, 0, 1]), [ids[2], ids[3], ids[3]]
    scored = rewards.make_scorer(reward, tokenizer, prompts, ())(places, responses)
    assert scored.tolist() == [0, 1, 2]
    columns = {"answer": ["b", "a", "b"]}
    assert seen == [(["plot", "the", "plot"], [" good", " bad", " bad"], columns)]


# Classifier ---------------------------------------------------------------------------------------


def test_a_label_is_scored_as_logit_log_probability_or_probability():
    logits_bc = np.asarray([[0.0, math.log(3.0)], [200.0, 0.0]], np.float32)

    def of(output, *, independent=False, logits_bc=logits_bc, index=1):
        return rewards._select(logits_bc, index, output=output, independent=independent)

    np.testing.assert_array_equal(of("logit"), logits_bc[:, 1])
    np.testing.assert_allclose(of("prob"), [0.75, 0.0], atol=1e-6)
    np.testing.assert_allclose(of("log_prob"), [math.log(0.75), -200.0], rtol=1e-6)
    np.testing.assert_allclose(of("prob", independent=True), [0.75, 0.5], rtol=1e-6)
    one = of("log_prob", logits_bc=np.asarray([[0.0], [-150.0]], np.float32), index=0)
    np.testing.assert_allclose(one, [math.log(0.5), -150.0], rtol=1e-6)
    assert {of(output).dtype for output in ("logit", "prob", "log_prob")} == {np.dtype(np.float32)}


@pytest.mark.slow
def test_a_text_scores_what_it_scores_alone(folder, wordpiece, texts):
    checkpoint = model_folder.load(folder)
    classify = jax.jit(encoder.classify, static_argnums=0)
    alone = []
    for text in texts:
        ids = wordpiece(text)["input_ids"]
        padded = np.full((1, CONFIG.max_positions), 7, np.int32)  # 7: what stands there is unread
        padded[0, : len(ids)] = ids
        lengths = np.asarray([len(ids)], np.int32)
        alone.append(classify(checkpoint.config, checkpoint.params, padded, lengths)[0, 2])
    assert np.std(alone) > 0.1
    order = np.random.default_rng(0).permutation(len(texts))
    reward = rewards.classifier(folder, label="good")
    scored = scores(reward, texts)
    assert scored.dtype == np.float32 and scored.shape == (len(texts),)
    np.testing.assert_allclose(scored, alone, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(scores(reward, [texts[place] for place in order]), scored[order])
    assert reward.score([], []).shape == (0,)


@pytest.mark.slow
def test_labels_are_given_by_name_or_number(folder, texts):
    by_name = [scores(rewards.classifier(folder, label=name), texts) for name in CONFIG.labels]
    for index, expected in enumerate(by_name):
        for label in (index, str(index)):
            scored = scores(rewards.classifier(folder, label=label), texts)
            np.testing.assert_array_equal(scored, expected)
    probs = [
        scores(rewards.classifier(folder, label=name, output="prob"), texts)
        for name in CONFIG.labels
    ]
    np.testing.assert_allclose(sum(probs), 1.0, rtol=1e-5)
    for label in ("GOOD", 3, "-1", -1, ""):
        with pytest.raises(InputError, match=r"no label .*one of: 0 bad, 1 so-so, 2 good"):
            rewards.classifier(folder, label=label)


@pytest.mark.parametrize(
    ("label", "labels", "expected"),
    [
        ("good", ("bad", "good"), 1),
        (0, ("bad", "good"), 0),
        ("1", ("0", "1"), 1),  # name and number are the same one
        (1, ("good", "good"), 1),
        ("good", ("good", "good"), "more than one of the labels 0 good, 1 good; choose by number"),
        (1, ("1", "0"), "more than one of the labels 0 1, 1 0"),  # a name or a number
        ("fine", ("bad", "good"), "no label 'fine'; choose one of: 0 bad, 1 good"),
        (2, ("bad", "good"), "no label 2"),
    ],
)
def test_a_label_is_one_of_the_labels(label, labels, expected):
    def choose():
        return reward_inputs.label_index("folder", label, labels)

    if isinstance(expected, int):
        assert choose() == expected
    else:
        check_refusal(choose, "folder", expected)


@pytest.mark.slow
def test_labels_that_do_not_exclude_each_other_have_their_own_probability(
    tmp_path, wordpiece, texts
):
    plain = write(tmp_path / "plain", wordpiece)
    settings = {**model_folder.load(plain).settings, "problem_type": "multi_label_classification"}
    several = write(tmp_path / "several", wordpiece, settings=settings)
    one = write(tmp_path / "one", wordpiece, labels=("reward",))
    for path, label in ((several, "bad"), (one, "reward")):
        logits = scores(rewards.classifier(path, label=label), texts)
        probs = scores(rewards.classifier(path, label=label, output="prob"), texts)
        np.testing.assert_allclose(probs, 1 / (1 + np.exp(-logits)), rtol=1e-5)


@pytest.mark.slow
def test_a_text_too_long_is_an_error_or_is_cut(folder, texts):
    long = " ".join(texts[2:10])
    reward = rewards.classifier(folder, label="good")
    with pytest.raises(
        InputError, match=r"text 1 \(.*\) has \d+ tokens where 112 fit.*truncate"
    ) as error:
        scores(reward, ["short", long])
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)
    cut = rewards.classifier(folder, label="good", over_long="truncate")
    assert np.isfinite(scores(cut, ["short", long])).all()
    np.testing.assert_array_equal(scores(cut, [long]), scores(cut, ["It begins. " + long]))
    assert scores(cut, [long]) != scores(cut, [long + " bad bad"])  # what was said last is read


@pytest.mark.slow
def test_a_classifier_reads_prompt_and_response_joined_or_the_response_alone(folder, texts):
    joined = rewards.classifier(folder, label="good")
    alone = rewards.classifier(folder, label="good", text="response")
    prompts, responses = [text[:20] for text in texts], [text[20:40] for text in texts]
    np.testing.assert_array_equal(
        joined.score(prompts, responses), scores(joined, [text[:40] for text in texts])
    )
    np.testing.assert_array_equal(alone.score(prompts, responses), scores(joined, responses))


@pytest.mark.slow
def test_few_shapes_are_compiled(folder, texts):
    reward = rewards.classifier(folder, label="good")
    scores(reward, texts)
    compiled = classifier.logits._cache_size()
    for first in range(0, 24, 3):
        scores(reward, texts[first:])
        scores(rewards.classifier(folder, label="bad"), texts[first:])
    assert classifier.logits._cache_size() == compiled  # one for 16, 32, 48, 64, 80, ... tokens
    settled = classifier.logits._cache_size()
    scores(reward, texts)
    assert classifier.logits._cache_size() == settled


@pytest.mark.slow
def test_a_fingerprint_covers_all_that_changes_a_score(folder, tmp_path, wordpiece):
    other = write(tmp_path / "other", wordpiece)
    prints = [
        rewards.classifier(path, **choice).fingerprint
        for path, choice in (
            (folder, {"label": "good"}),
            (folder, {"label": "bad"}),
            (folder, {"label": "good", "output": "prob"}),
            (folder, {"label": "good", "text": "response"}),
            (folder, {"label": "good", "over_long": "truncate"}),
            (other, {"label": "good"}),
        )
    ]
    assert len(set(prints)) == len(prints)
    again = rewards.classifier(folder, label=2)  # the same scores by other words
    assert again.fingerprint == prints[0]


@pytest.mark.slow
def test_the_real_classifier_prefers_praise(shared):
    path = shared / "models" / "distilbert-imdb-mini"
    reward = rewards.classifier(path, label="POSITIVE", output="prob")
    praise, blame = reward.score(
        ["a wonderful, moving film", "dull, tedious and badly acted"],
        [" with superb acting", "; a waste of time"],
    )
    assert praise > 0.8 and blame < 0.2


# Callables ----------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module that can be imported, and forgets it afterwards."""
    monkeypatch.syspath_prepend(tmp_path)

    def write_module(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)

    return write_module


def test_a_function_is_named_by_its_import_path(module):
    module(
        "my_rewards",
        "import numpy as np\n"
        "def length(prompts, responses):\n    return [len(text) for text in responses]\n"
        "def halves(*texts):\n    return np.full(len(texts[1]), 0.5, np.float64)\n",
    )
    reward = rewards.from_callable("my_rewards:length")
    scored = scores(reward, ["a", "", "abc"])
    assert scored.dtype == np.float32 and scored.tolist() == [1.0, 0.0, 3.0]
    assert scores(rewards.from_callable("my_rewards:halves"), ("x", "y")).tolist() == [0.5, 0.5]
    assert reward.score([], []).shape == (0,)
    assert rewards.from_callable("operator:add").fingerprint  # importable is enough to be named


def test_a_function_gets_the_columns_that_its_signature_names(module):
    module(
        "columns",
        "def one(prompts, responses, answer):\n    return [a == r for a, r in "
        "zip(answer, responses)]\n"
        "def default(prompts, responses, *, scale=(2.0,), answer=None):\n"
        "    return [scale[0]] * len(prompts)\n"
        "def all(prompt, response, **columns):\n"
        "    return [len(columns) + len(columns['answer'])] * len(prompt)\n",
    )
    texts, columns = (["q", "r"], ["4", "5"]), {"answer": ["4", "4"], "response": ["x", "y"]}
    expected = {"one": [1, 0], "default": [2, 2], "all": [3, 3]}
    reads = {"one": ("answer",), "default": ("scale", "answer"), "all": None}
    for name, scored in expected.items():
        reward = rewards.from_callable(f"columns:{name}")
        assert reward.columns == reads[name]
        assert reward.score(*texts, columns).tolist() == scored
    one = rewards.from_callable("columns:one")
    with pytest.raises(InputError, match=r"reads the column 'answer'.*they have: reply.*columns"):
        one.score(*texts, {"reply": ["4", "4"]})
    with pytest.raises(ValueError, match="prompts, responses and values"):
        one.score(*texts, {"answer": ["4"]})


def test_a_function_of_one_list_of_texts_learns_what_a_reward_is(module):
    module("old", "def score(texts):\n    return [0.0] * len(texts)\n")
    with pytest.raises(InputError, match=r"takes \(texts\); .*\(prompts, responses, \*\*columns\)"):
        rewards.from_callable("old:score")


def test_a_configuration_names_a_classifier_or_a_function(folder):
    settings = defaults().reward
    with settings.unlocked():
        settings.update(path="elsewhere", label="good", output="prob", text="response")
    expected = rewards.classifier(folder, label="good", output="prob", text="response")
    assert rewards.load(settings, str(folder)).fingerprint == expected.fingerprint
    for key, value in (("text", "prompt"), ("output", "odds"), ("over_long", "drop")):
        wrong = ConfigDict(settings.to_dict() | {key: value})
        with pytest.raises(InputError, match=rf"reward\.{key}='{value}': choose one of "):
            rewards.load(wrong, str(folder))
    settings.function = "tests.reward_functions:vowels"
    with pytest.raises(InputError, match=r"reward\.label='good': .* reward\.function=''"):
        rewards.load(settings)
    settings = defaults().reward
    settings.function = "tests.reward_functions:vowels"
    assert scores(rewards.load(settings), ["ab"]).tolist() == [0.5]


def test_a_functions_fingerprint_follows_its_source(module, monkeypatch):
    same = "def score(prompts, responses):\n    return [0.0] * len(prompts)\n"
    module("reward_a", same)
    first = rewards.from_callable("reward_a:score").fingerprint
    assert rewards.from_callable("reward_a:score").fingerprint == first
    module("reward_b", same)
    assert rewards.from_callable("reward_b:score").fingerprint != first
    monkeypatch.setattr(rewards, "_source", lambda function: same + "# edited\n")
    assert rewards.from_callable("reward_a:score").fingerprint != first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("length", "not an import path; write package.module:function"),
        (".local:f", "not an import path"),
        ("os:system; rm", "not an import path"),
        ("no_such_module_here:f", "cannot import no_such_module_here .*PYTHONPATH"),
        ("math:no_such", "math has no function no_such; name one"),
        ("math:pi", "math has no function pi"),
        ("broken_reward:f", "cannot import broken_reward .*correct it"),
    ],
)
def test_a_name_that_is_not_a_reward_is_refused(module, name, message):
    module("broken_reward", "def f(texts:\n")
    with pytest.raises(InputError, match=message) as error:
        rewards.from_callable(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            [1.0, float("nan"), float("inf")],
            "nan for response 1 and is not finite for 2 of 3 .*'two",
        ),
        ([1e39, 0.0, 0.0], "inf for response 0 .*'one"),
        ([1.0, 2.0], r"shape \(2,\) for 3 responses"),
        ([[1.0], [2.0], [3.0]], r"shape \(3, 1\) for 3 responses"),
        (1.0, r"shape \(\) for 3 responses"),
        ([1.0, None, 2.0], "did not give numbers"),
        (["1", "2", "3"], "did not give numbers"),
        ([1j, 0, 0], "did not give numbers"),
        ([[1.0], [1.0, 2.0], 3.0], "did not give numbers"),
        (None, "did not give numbers"),
        (({"POSITIVE": 1.0},) * 3, "did not give numbers"),
    ],
)
def test_what_is_not_a_reward_is_named(returned, message):
    score = rewards._checked("pkg:f", lambda prompts, responses, columns: returned)
    with pytest.raises(InputError, match=f"reward pkg:f .*{message}.*return") as error:
        score([""] * 3, ["one\n" * 50, "two\n", "three"])
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
