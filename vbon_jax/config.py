"""Every configuration key once: default, meaning, bounds, who reads it, what it identifies.

A key is set on the command line as `--config.train.steps=100`, a tuple as
`--config.n_values=2,4,8`. Defaults, checks, run identity and `--help` are all read from `KEYS`;
nothing else lists keys.
"""

import difflib
import functools
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict, FrozenConfigDict

from vbon_jax.types import InputError

QUESTION = """Which of two responses to the prompt is the better one: more helpful, more accurate \
and better written? Length by itself is no merit.

Prompt:
{prompt}

Response A:
{first}

Response B:
{second}"""


class Key(NamedTuple):
    """One configuration key. A tuple's bounds and choices are those of each of its elements."""

    name: str  # dotted
    default: Any  # its type is the key's type; {} is a group whose keys a user chooses
    help: str
    choices: tuple = ()
    least: float | None = None  # value >= least
    above: float | None = None  # value > above
    most: float | None = None  # value <= most; None = what 32 bits hold
    element: type | None = None  # of a tuple; None = the type of the default's first one
    methods: tuple[str, ...] = ()  # whose runs read it; () = programs do, whatever the methods are
    needs: tuple = ()  # a key's name, and the values of it with which this key is read; or any
    shared: bool = False  # one value for all runs of a working directory
    identifies: str = "run"  # what is another one when it changes: "run", "evaluation" or ""

    @property
    def kind(self) -> type | None:
        """The type of its value, or of each element; None where anything is taken."""
        if not isinstance(self.default, tuple):
            return type(self.default)
        return self.element or (type(self.default[0]) if self.default else None)


# Methods, by what they read.
ROLLOUT = ("vbon", "kl_rl")
BOND = ("bond", "j_bond")
GROUPS = (*ROLLOUT, *BOND)  # train.samples_per_prompt responses of the policy to each prompt
BON_SFT = ("bon_sft", "bon_sft_kl")
REGRESSION = ("vbon_regression", "qrpo")
GIVEN_PAIRS = ("bonbon", "bonbon_released", "dpo", "ipo")
BONBON = ("bonbon", "bonbon_released", "bonbon_calibrated", "online_bonbon")
CACHED = (*REGRESSION, *BON_SFT, *GIVEN_PAIRS, "bonbon_calibrated")  # draw from the cache
RANKED = ("vbon", *BOND, "vbon_regression", "bonbon_calibrated")
PROMPTED = (*GROUPS, "raft", "online_bonbon", *CACHED)
TEXT = ("sft", "reward_model")
EVERY = (*PROMPTED, *TEXT)

SEED = {"least": 0, "most": 2**32 - 1}  # JAX cannot tell a larger one from a smaller
LARGE = 1e9  # bounds what has no natural bound
FLOAT32 = (1.2e-38, 3.4e38)  # what is smaller is 0 where it is computed with, what is larger inf


def _group(prefix: str, *keys: Key, **same: Any) -> list[Key]:
    """Keys below a prefix, with fields that all of them share unless a key states its own."""
    defaults = Key._field_defaults
    rows = []
    for key in keys:
        unset = {name for name in same if getattr(key, name) == defaults[name]}
        given = {name: same[name] for name in unset}
        rows.append(key._replace(name=f"{prefix}.{key.name}", **given))
    return rows


KEYS: list[Key] = [
    Key("seed", 0, "of training; the caches and the evaluation have seeds of their own",
        methods=EVERY, **SEED),
    # ------------------------------------------------------------------------ data
    *_group(
        "data",
        Key("train", "", "file (JSON lines, JSON, CSV, Parquet), folder, or owner/name:config of "
            "the Hugging Face hub, or toy_reviews:train (docs/data.md)", identifies=""),
        Key("eval", "", "held-out prompts, by which results are measured; those that training, "
            "given pairs or stages learn from are left out", identifies=""),
        Key("split_train", "train", "the split of training rows"),
        Key("split_eval", "eval", '"eval" = the first of test, eval and validation'),
        Key("columns", {}, 'name -> the source\'s own: {"text": "review"}'),
        Key("filter", {}, "column -> value, or tuple of values, of the rows to keep; with "
            '"not " before the column, to leave out: {"not subreddit": ("tifu", "askreddit")}'),
        Key("filter_eval", {}, "of held-out rows, in place of filter; {} = as filter"),
        Key("field", "text", "the field of a row that holds the text"),
        Key("completion_field", "", 'the field with what follows that text; "" = nothing',
            methods=("sft",)),
        Key("label_field", "label", 'the field with the class number; "" = the rows are '
            "preferences", methods=("reward_model",)),
        Key("min_tokens", 2, "tokens of a prompt, at least", least=1, methods=PROMPTED,
            needs=("data.max_tokens",)),
        Key("max_tokens", 8, "and at most; 0 = the whole text is the prompt", least=0,
            methods=PROMPTED),
        Key("longest_prompt", 0, "tokens of a prompt at most, where a reward reads fewer than the "
            "policy; 0 = what the policy's positions leave beside its new tokens", least=0,
            methods=PROMPTED),
        Key("train_limit", 1024, "distinct prompts; 0 = all", least=0, methods=PROMPTED),
        Key("eval_limit", 256, "distinct held-out prompts; 0 = all", least=0, methods=PROMPTED,
            identifies=""),
        Key("over_long", "error", "a prompt that is longer",
            choices=("error", "truncate", "drop")),
        methods=EVERY,
        shared=True,
    ),
    # ------------------------------------------------------------------------ policy, reward
    *_group(
        "policy",
        Key("path", "", "a Hugging Face folder (or hub name) of a causal language model, or "
            '"stage:NAME"', methods=(*PROMPTED, "sft"), identifies=""),
        Key("dtype", "float32", "of activations; parameters are float32",
            choices=("float32", "bfloat16"), methods=PROMPTED),
        Key("lora.pattern", "", "low-rank adapters over dense layers whose name matches, such as "
            '"layer_\\\\d+/attention/.*", are then all that is trained; "" = none'),
        Key("lora.rank", 8, "of the adapters", least=1, needs=("policy.lora.pattern",)),
        Key("lora.alpha", 16.0, "the low-rank term is multiplied by alpha / rank", above=0,
            most=LARGE, needs=("policy.lora.pattern",)),
        methods=EVERY,
        shared=True,
    ),
    *_group(
        "reward",
        Key("path", "", "a Hugging Face sequence-classification folder (or hub name), or "
            '"stage:NAME"', methods=(*PROMPTED, "reward_model"), identifies=""),
        Key("function", "", 'or a Python function, "package.module:name"', identifies=""),
        Key("label", "POSITIVE", "the label, by name or number, whose score is the reward",
            methods=(*PROMPTED, "reward_model"), needs=("reward.function", "")),
        Key("output", "logit", "of the label", choices=("logit", "log_prob", "prob"),
            needs=("reward.function", "")),
        Key("text", "full", "what a classifier reads: prompt and response, or the response alone",
            choices=("full", "response"), methods=(*PROMPTED, "reward_model"),
            needs=("reward.function", "")),
        Key("template", "auto", "chat: it reads a conversation's messages in the chat template of "
            "its own tokenizer; none: text; auto: as it was taught, else chat where prompts are "
            "conversations and it has a template", choices=("auto", "chat", "none"),
            methods=(*PROMPTED, "reward_model"), needs=("reward.function", "")),
        Key("missing_eos_penalty", 0.0, "taken from the reward of a response without an EOS",
            least=0, most=LARGE),
        Key("over_long", "error", "a text longer than the classifier takes; truncate takes its "
            "beginning away", choices=("error", "truncate"), needs=("reward.function", "")),
        methods=PROMPTED,
        shared=True,
    ),
    Key("reward_model.centring", 0.0, "of the squared sum of a pair's rewards, on preferences",
        least=0, most=LARGE, methods=("reward_model",), needs=("data.label_field", "")),
    Key("stages", {}, "models that are trained first, by name, each with keys of its own and the "
        "defaults of every run; wherever a model's path is a key, \"stage:NAME\" is the folder of "
        "one (vbon_jax/study/stages.py)", shared=True, identifies=""),
    Key("judges", {}, "other rewards that evaluation scores the same responses with, name -> keys "
        'as in config.reward: {"gold": {"path": "FOLDER", "label": "LABEL_0"}}', shared=True,
        identifies=""),
    # ------------------------------------------------------------------------ sampling, the cache
    *_group(
        "sampling",
        Key("max_new_tokens", 40, "tokens of a response at most", least=1),
        Key("temperature", 1.0, "the policy is softmax(logits / temperature)", above=0, most=100),
        methods=PROMPTED,
        shared=True,
    ),
    *_group(
        "references",
        Key("samples_per_prompt", 128, "M", least=1, shared=True, identifies=""),
        Key("prompts_per_shard", 16, "an interrupted build loses at most one shard", least=1,
            shared=True, identifies=""),
        Key("batch_prompts", 4, "prompts sampled at a time, M rows each", least=1, shared=True,
            identifies=""),
        Key("seed", 0, "of the cache's samples", shared=True, identifies="", **SEED),
        Key("used", 0, "of the M, how many a run reads (the first ones); 0 = all, or under a "
            "budget of sampled tokens as many as it pays for: as 1/8 of it, or 1/2 where the "
            "method draws from the cache, for one that samples too", least=0,
            methods=("vbon", "bond", *CACHED)),
    ),
    # ------------------------------------------------------------------------ method
    Key("method", "vbon", "the method of train; see docs/methods.md", methods=EVERY),
    Key("n", 4.0, "N of Best-of-N, a real number; the KL coefficient is 1 / (N - 1)", least=1,
        most=LARGE, methods=PROMPTED),
    Key("bound", "l1", "of log pi_BoN", choices=("l1", "exact"), methods=("vbon", "bond")),
    Key("gradient", "ppo", "ppo (GAE, value head), or rloo and grpo: against the other responses "
        "to the prompt, without a value head", choices=("ppo", "rloo", "grpo"), methods=ROLLOUT),
    Key("cdf.estimator", "harmonic", "of log F from M rewards",
        choices=("harmonic", "add_one", "exponential_fit"), methods=RANKED),
    *_group(
        "pairs",
        Key("alpha", 0.005, "weight of the best's likelihood; 1 minus it is the pair's", least=0,
            most=1, methods=BONBON),
        Key("beta", 0.0, "0 = beta*_n, at which IPO aims at Best-of-N, and for qrpo 1 / (N - 1)",
            least=0, most=LARGE, methods=("dpo", "ipo", "qrpo")),
        Key("average", False, "log-probabilities are means over tokens, not sums",
            methods=("ipo",)),
        Key("path", "", "preferences that are given: a source as data.train, of prompt, chosen and "
            "rejected (docs/data.md)", methods=(*GIVEN_PAIRS, "bonbon_calibrated"), identifies=""),
        Key("split", "train", "of pairs.path", methods=GIVEN_PAIRS, needs=("pairs.path",)),
        Key("columns", {}, "as data.columns", methods=GIVEN_PAIRS, needs=("pairs.path",)),
        Key("filter", {}, "as data.filter", methods=GIVEN_PAIRS, needs=("pairs.path",)),
        Key("on_tie", "error", "a row with equal responses, or equal rewards",
            choices=("drop", "error"), methods=(*GIVEN_PAIRS, *TEXT)),
        Key("on_empty", "error", "a row with an empty response", choices=("drop", "error"),
            methods=(*GIVEN_PAIRS, *TEXT)),
        Key("on_turns", "error", "a row with a response of further turns",
            choices=("drop", "error"), methods=(*GIVEN_PAIRS, *TEXT)),
    ),
    *_group(
        "bon_sft",
        Key("select", "weighted", "best of N from all M, by its chance, or of N that are drawn",
            choices=("weighted", "best"), methods=BON_SFT),
        Key("kl_weight", 0.1, "of the KL to the reference", least=0, most=LARGE,
            methods=("bon_sft_kl",)),
    ),
    *_group(
        "bond",
        Key("backward", 0.5, "weight of the backward KL; 1 minus it is the forward's", least=0,
            most=1, methods=BOND),
        Key("anchor_rate", 0.02, "of the anchor's moving average, a step", above=0, most=1,
            methods=("j_bond",)),
        Key("anchor_kl", 1.0, "weight of the KL to the anchor", least=0, most=LARGE,
            methods=("j_bond",)),
    ),
    *_group(
        "budget",
        Key("sampled_tokens", 0, "of each run, its share of the reference cache counted in; 0 = "
            "none, a run is train.steps long", least=0, methods=PROMPTED),
        Key("train_flops", 0.0, "in place of sampled_tokens", least=0, most=1e30, methods=EVERY),
    ),
    # ------------------------------------------------------------------------ the comparison
    Key("methods", ("vbon", "kl_rl"), "of compare", shared=True, identifies=""),
    Key("n_values", (2, 4, 8), "of compare", least=1, most=LARGE, element=float, shared=True,
        identifies=""),
    Key("seeds", (0,), "of compare", shared=True, identifies="", **SEED),
    Key("cells", (), "dictionaries of keys, a run each (configs/sweep.py builds them); () = "
        "methods x n_values x seeds", shared=True, identifies=""),
    Key("by_method", {}, "keys that the runs of one method set for themselves, such as "
        '{"dpo": {"train": {"learning_rate": 5e-5}}}; a cell that sets one of them goes before',
        shared=True),
    # ------------------------------------------------------------------------ optimisation
    *_group(
        "train",
        Key("steps", 100, "of the loop", least=1),
        Key("batch_size", 64, "prompts a step (rows of text for sft and reward_model)", least=1),
        Key("samples_per_prompt", 4, "responses to each prompt of a step", least=1,
            methods=(*GROUPS, *CACHED)),
        Key("text_tokens", 256, "tokens of a row; a longer text of sft is cut, any other treated "
            "as data.over_long says", least=2, methods=TEXT),
        Key("epochs", 4, "passes over a step's samples", least=1),
        Key("minibatches", 4, "updates a pass", least=1),
        Key("learning_rate", 1e-4, "peak", above=0, most=10),
        Key("schedule", "constant", "of the learning rate, over the whole run",
            choices=("constant", "linear", "cosine")),
        Key("warmup_updates", 0, "w: update u, from 1, has u / w of the rate until it is whole",
            least=0),
        Key("weight_decay", 0.0, "of AdamW, on the kernels of dense layers alone", least=0,
            most=10),
        Key("beta1", 0.9, "of AdamW", least=0, most=0.9999999),
        Key("beta2", 0.999, "of AdamW", least=0, most=0.9999999),
        Key("epsilon", 1e-8, "of AdamW", least=1e-30, most=1),
        Key("max_gradient_norm", 1.0, "gradients are clipped to it; 0 = no clipping", least=0,
            most=LARGE),
        Key("trainable", "", '"" = all; "last:2" = the last two layers and what follows them '
            "(final norm, untied head, heads of a classifier); else a regular expression over "
            "parameter names; a head that no checkpoint brings is always trained"),
        Key("checkpoint_every", 10, "steps; the last step is always saved", least=1,
            identifies=""),
        Key("eval_every", 0, "steps between evaluations of the policy, for curves and for choosing "
            "a checkpoint; 0 = none", least=0, methods=PROMPTED, shared=True),
        Key("eval_prompts", 64, "prompts of such an evaluation: of data.train, and of those that "
            "no run trains on", least=2, methods=PROMPTED, needs=("train.eval_every",),
            shared=True),
        Key("best_metric", "", "of such an evaluation, by which the best checkpoint is kept (the "
            'lowest deficit, the highest of the others); "" = the last one alone',
            choices=("", "eval/win_rate", "eval/reward", "eval/deficit"), methods=PROMPTED,
            needs=("train.eval_every",)),
        methods=EVERY,
    ),
    *_group(
        "ppo",
        Key("discount", 1.0, "of GAE", least=0, most=1, needs=("gradient", "ppo")),
        Key("gae_lambda", 0.95, "of GAE", least=0, most=1, needs=("gradient", "ppo")),
        Key("clip", 0.2, "of the importance ratio", above=0, most=1, methods=GROUPS),
        Key("value_clip", 0.2, "of the value head's change", above=0, most=LARGE,
            needs=("gradient", "ppo")),
        Key("value_coefficient", 0.1, "of the value loss beside the policy's", least=0, most=LARGE,
            needs=("gradient", "ppo")),
        Key("value_learning_rate", 1e-3, "of the value head; the network has train's", above=0,
            most=10, needs=("gradient", "ppo")),
        Key("whiten_advantages", True, "to mean 0 and variance 1 over a batch's tokens",
            needs=("gradient", "ppo")),
        Key("reward_clip", 0.0, "bound on the absolute transformed reward; 0 = none", least=0,
            most=LARGE),
        methods=ROLLOUT,
    ),
    *_group(
        "mesh",
        Key("data", -1, "devices; -1 = what fsdp leaves", least=-1),
        Key("fsdp", 1, "devices that parameters are split over", least=1),
        Key("pmap", False, "updates run under pmap over the local devices in place of jit over "
            "the mesh; every device then has all parameters (fsdp=1)"),
        methods=EVERY,
        shared=True,
        identifies="",
    ),
    # ------------------------------------------------------------------------ evaluation
    *_group(
        "evaluation",
        Key("samples_per_prompt", 8, "K", least=1),
        Key("batch_prompts", 64, "prompts sampled at a time", least=1, identifies=""),
        Key("temperatures", (), "() = sampling.temperature", least=0, most=100, element=float),
        Key("ruler_n", (1, 2, 4, 8, 16, 32, 64), "of Best-of-N; those below M are shown", least=1,
            identifies=""),
        Key("soft_temperatures", (1.0,), "of soft Best-of-N's softmax, the reward's unit",
            above=0, most=LARGE, identifies=""),
        Key("checkpoint", "last", "which one is evaluated", choices=("last", "best")),
        Key("seed", 0, "of its samples and its bootstrap", **SEED),
        Key("resamples", 2000, "of the bootstrap over prompts: 1 of 40 lies outside of an "
            "interval's end", least=40),
        Key("shown_prompts", 12, "in the report", least=0, identifies=""),
        shared=True,
        identifies="evaluation",
    ),
    *_group(
        "llm_judge",
        Key("url", "", 'of a chat-completions API as OpenAI\'s, up to and including /v1; "" = no '
            "such judge"),
        Key("model", "", "its name there"),
        Key("key_variable", "", 'the environment variable that holds the API key; "" = none'),
        Key("baseline", "reference", "what runs are compared with: reference, or a run's name"),
        Key("runs", (), "which are judged, by name; () = all that are evaluated", element=str),
        Key("prompts", 100, "the first held-out ones, one response each", least=2),
        Key("template", QUESTION, "with {prompt}, {first} and {second}"),
        Key("answer_tokens", 16, "of an answer; more for a model that reasons", least=1),
        Key("limit_field", "max_tokens", "that limit's name in a request",
            choices=("max_tokens", "max_completion_tokens")),
        Key("temperature", 0.0, "of the answers; below 0 = the endpoint's own", least=-1,
            most=100),
        Key("concurrency", 4, "requests under way at once", least=1),
        Key("timeout_seconds", 60.0, "of a request", above=0, most=86400),
        Key("retries", 5, "of a question, after failures and after unreadable answers", least=0),
        Key("backoff_seconds", 1.0, "before the first retry, doubled for each one after it",
            least=0, most=86400),
        Key("price_in", -1.0, "dollars for a million tokens of questions; 0 = free, below 0 = not "
            "given, an error", least=-1, most=LARGE),
        Key("price_out", -1.0, "and for a million of answers", least=-1, most=LARGE),
        Key("max_cost", 1.0, "dollars of a working directory, never exceeded", least=0,
            most=LARGE),
        shared=True,
        identifies="",
    ),
]  # fmt: skip


# --------------------------------------------------------------------------------- reading a table


def defaults(keys: Iterable[Key] = ()) -> ConfigDict:
    """Every key with its default, and those of `keys` besides, locked."""
    config = ConfigDict()
    add(config, (*KEYS, *keys))
    return config.lock()


def add(config: ConfigDict, keys: Iterable[Key]) -> None:
    """Give a configuration the keys that it lacks, with their defaults."""
    with config.unlocked():
        for key in keys:
            *groups, name = key.name.split(".")
            node = config
            for group in groups:
                if group not in node:
                    node[group] = ConfigDict()
                node = node[group]
            if name not in node:
                node[name] = ConfigDict() if key.default == {} else key.default


def get_config(arg: str | None = None) -> ConfigDict:
    """The defaults, for `--config`; `arg` is not used."""
    return defaults()


def get(config: ConfigDict | Mapping[str, Any], name: str) -> Any:
    """The value of a dotted key."""
    return functools.reduce(lambda node, part: node[part], name.split("."), config)


def set_key(config: ConfigDict, name: str, value: Any, source: str) -> None:
    """Change one dotted key of a configuration that is not frozen.

    Raises InputError, beginning with `source`, where there is no such key or the value has another
    type.
    """
    try:
        old = get(config, name)
    except (KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{source}: {unknown(name)}") from error
    if isinstance(old, ConfigDict):
        raise InputError(f"{source}: {name} is a group of keys; set {name}.NAME")
    try:
        config.update_from_flattened_dict({name: value})
    except TypeError as error:
        raise InputError(
            f"{source}: {name}={value!r} is {type(value).__name__}, not {type(old).__name__}"
        ) from error


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested configuration as `{"a.b": value}`; tuples as lists, as JSON reads them back."""
    leaves = {}
    for name, value in config.items():
        if hasattr(value, "items"):
            leaves |= {f"{name}.{inner}": leaf for inner, leaf in flat(value).items()}
        else:
            leaves[name] = list(value) if isinstance(value, tuple) else value
    return leaves


def unknown(name: str, known: Iterable[str] = ()) -> str:
    """A sentence for a key that does not exist, with the nearest ones that do."""
    names = list(known) or [key.name for key in KEYS]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"nearest: {', '.join(near)}" if near else "--help lists all keys"
    return f"there is no key {name!r}; {hint}"


def check(config: ConfigDict, keys: Iterable[Key] = KEYS) -> None:
    """Refuse a value outside of its key's bounds or choices: InputError, in one line, naming it."""
    for key in keys:
        value = get(config, key.name)
        elements = value if isinstance(value, tuple | list) else (value,)
        for element in elements:
            if wanted := _refused(key, element):
                raise InputError(f"{key.name}={element!r}: {wanted}")


def _refused(key: Key, value: Any) -> str:
    """The remedy for a value that its key refuses; "" where it can be used."""
    if key.choices:
        return "" if value in key.choices else f"choose one of {_choices(key)}"
    if key.kind not in (int, float):
        return "give a text" if key.kind is str and not isinstance(value, str) else ""
    wanted = f"give {'a whole number' if key.kind is int else 'a number'}{_range(key)}"
    if isinstance(value, bool) or not isinstance(value, int if key.kind is int else int | float):
        return wanted
    smallest, largest = (1, 2**31 - 1) if key.kind is int else FLOAT32
    inside = (
        (value == 0 or abs(value) >= smallest)
        and (key.least is None or value >= key.least)
        and (key.above is None or value > key.above)
        and value <= (largest if key.most is None else key.most)
    )
    return "" if inside else wanted


def _choices(key: Key) -> str:
    return ", ".join(choice or '""' for choice in key.choices)


def _range(key: Key) -> str:
    """ " from 0 to 1", the bounds that a key states."""
    ends = ((key.least, "from"), (key.above, "above"), (key.most, "to"))
    return "".join(f" {word} {end:.10g}" for end, word in ends if end is not None)


# --------------------------------------------------------------------------------- who reads a key


def changed(config: ConfigDict | Mapping[str, Any], keys: Iterable[Key] = KEYS) -> list[Key]:
    """The keys of which a configuration has another value than the default."""

    def is_default(value: Any, default: Any) -> bool:
        if default == {}:
            return not value
        return tuple(value) == default if isinstance(default, tuple) else value == default

    return [key for key in keys if not is_default(get(config, key.name), key.default)]


def unread(config: ConfigDict, key: Key) -> str:
    """Why the run of a configuration does not read one of its keys; "" where it does.

    What a method from outside of the package reads is not known, and taken to be everything.
    """
    method = config.method
    if key.methods and method in EVERY and method not in key.methods:
        return f"{method} does not read it"
    return unmet(config, key)


def check_needs(config: ConfigDict | Mapping[str, Any], keys: Iterable[Key]) -> None:
    """Refuse a key that is set while the other key that it needs is not: InputError."""
    for key in changed(config, keys):
        if reason := unmet(config, key):
            raise InputError(f"{key.name}={get(config, key.name)!r}: {reason}; leave it out")


def unmet(config: ConfigDict | Mapping[str, Any], key: Key) -> str:
    """What another key would have to be for a key to be read; "" where it is that."""
    if not key.needs:
        return ""
    (name, *values), value = key.needs, get(config, key.needs[0])
    if value in values if values else bool(value):
        return ""
    return f"it is read with {name}={values[0]!r} alone" if values else f"it is read with {name}"


def identity(config: ConfigDict, of: str = "run", keys: Iterable[Key] = ()) -> dict[str, Any]:
    """The keys that identify a "run" or an "evaluation", flat: equal identities, equal numbers.

    A key that the run does not read is none of them, whatever other runs have it for. `keys` are
    those of a user's own method, besides `KEYS`.
    """
    kept = {}
    for key in (*KEYS, *keys):
        if key.identifies == of and not unread(config, key):
            value = get(config, key.name)
            if isinstance(value, ConfigDict | FrozenConfigDict):
                kept |= {f"{key.name}.{name}": leaf for name, leaf in flat(value).items()}
            else:
                kept[key.name] = list(value) if isinstance(value, tuple) else value
    return kept


def origins(config: ConfigDict) -> dict[str, Any]:
    """The keys that models, rows and prompts follow from, flat: what a fingerprint stands for."""
    chosen = ("data.", "policy.", "reward.", "pairs.", "stages.", "train.eval_")
    return {name: value for name, value in flat(config).items() if name.startswith(chosen)}


def constants(config: ConfigDict, names: Iterable[str]) -> FrozenConfigDict:
    """Some keys, frozen and hashable: what a jitted function may depend on."""
    chosen = ConfigDict()
    for name in names:
        *groups, last = name.split(".")
        node = chosen
        for group in groups:
            if group not in node:
                node[group] = ConfigDict()
            node = node[group]
        node[last] = get(config, name)
    return FrozenConfigDict(chosen)


def help_text(keys: Iterable[Key] = ()) -> str:
    """All keys, and those of `keys`, for `--help`: a line or two each, with default and readers."""
    lines = []
    for key in (*KEYS, *keys):
        default = "" if key.default == "" else f" = {key.default!r}"
        notes = [key.help]
        if key.choices:
            notes.append(f"one of {_choices(key)}")
        if bounds := _range(key):
            notes.append(bounds.strip())
        if others := [name for name in EVERY if name not in key.methods] if key.methods else []:
            few = len(others) < len(key.methods)
            notes.append("read by " + ("all but " if few else "")
                         + ", ".join(others if few else key.methods))  # fmt: skip
        if key.needs:
            notes.append("with " + "=".join([key.needs[0], *map(repr, key.needs[1:])]))
        shown = " = (the question)" if key.name == "llm_judge.template" else default
        indent = " " * 6
        notes = textwrap.fill("; ".join(notes), 96, initial_indent=indent, subsequent_indent=indent)
        lines.append(f"  --config.{key.name}{shown}\n{notes}")
    return "\n".join(lines)


def owner(name: str) -> Key | None:
    """The key of a dotted name, or the free group that it is in; None where there is neither."""
    for key in KEYS:
        if name == key.name or (key.default == {} and name.startswith(f"{key.name}.")):
            return key
    return None
