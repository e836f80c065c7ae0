"""Every key once, with its unit and its default. The other configs start from here.

A key is given on the command line as `--config.train.steps=100`; tuples as
`--config.n_values=2,4,8`. An empty path means: build the embedded default for it.
"""

from ml_collections import ConfigDict

QUESTION = """Which of two responses to the prompt is the better one: more helpful, more accurate \
and better written? Length by itself is no merit.

Prompt:
{prompt}

Response A:
{first}

Response B:
{second}"""


def defaults() -> ConfigDict:
    """Every key with its default, locked."""
    config = ConfigDict()
    config.seed = 0  # of training; the caches and the evaluation have seeds of their own

    # Data. Prompts are texts' beginnings, or whole texts where max_tokens is 0.
    config.data = ConfigDict()
    config.data.train = ""  # file (JSON lines, JSON, CSV, Parquet), folder, or owner/name:config
    # of the Hugging Face hub (docs/data.md); "" = embedded reviews
    config.data.eval = ""  # held-out prompts; those that are training prompts are left out
    config.data.split_train = "train"  # or a part of a split: "train[:90%]"
    config.data.split_eval = "eval"  # "eval" = the first of test, eval and validation
    config.data.columns = ConfigDict()  # name -> the source's own: {"text": "review"}
    config.data.filter = ConfigDict()  # of rows, column -> value, or tuple of values, to keep, or
    # with "not " before the column to leave out: {"not subreddit": ("tifu", "askreddit")}
    config.data.filter_eval = ConfigDict()  # of held-out rows, in the filter's place; {} = as it
    config.data.stream_rows = 0  # filtered rows of a split that are read, of the hub as a stream;
    # 0 = all of them
    config.data.field = "text"  # the field of a row that holds the text
    config.data.completion_field = ""  # sft: the field with what follows that text; "" = nothing
    config.data.reference_field = ""  # of a held-out row: a text, or a list of them, that responses
    # are held against by ROUGE; "" = none
    config.data.label_field = "label"  # reward_model: the field with the number of the class; "" =
    # the rows are preferences
    config.data.min_tokens = 2  # tokens of a prompt, at least
    config.data.max_tokens = 8  # and at most; 0 = the whole text is the prompt
    config.data.longest_prompt = 0  # tokens of a prompt at most, as where a reward reads fewer than
    # the policy; 0 = what the policy's positions leave beside its new tokens
    config.data.train_limit = 1024  # distinct prompts; 0 = all
    config.data.eval_limit = 256
    config.data.over_long = "error"  # a prompt that is longer: error|truncate|drop

    # The policy, its reference (the same folder) and the reward.
    config.policy = ConfigDict()
    config.policy.path = ""  # a Hugging Face folder (or hub name) of a causal language model
    config.policy.dtype = "float32"  # of activations; parameters are float32
    config.policy.lora = ConfigDict()  # low-rank adapters, which are then all that is trained (a
    # reward model's new head is, too)
    config.policy.lora.pattern = (
        ""  # over names of dense layers, "layer_\\d+/attention/.*"; "" = none
    )
    config.policy.lora.rank = 8
    config.policy.lora.alpha = 16.0  # the low-rank term is multiplied by alpha / rank
    config.reward = ConfigDict()
    config.reward.path = ""  # a Hugging Face sequence-classification folder (or hub name)
    config.reward.function = ""  # or a Python callable texts -> floats, "package.module:name"
    config.reward.label = "POSITIVE"  # the label, by name or number, whose score is the reward
    config.reward.output = "logit"  # logit | log_prob | prob
    config.reward.text = "full"  # what is scored: full = prompt and response | response
    config.reward.batch_size = 64  # texts
    config.reward.over_long = "error"  # a text longer than the classifier takes: error|truncate,
    # which takes its beginning away
    config.reward_model = ConfigDict()
    config.reward_model.centring = 0.0  # of the squared sum of a pair's rewards, on preferences
    config.stages = ConfigDict()  # models that are made first, by name (experiments/stages.py);
    # "stage:NAME" stands for the folder of one
    config.judges = ConfigDict()  # other rewards that evaluation scores the same responses with,
    # name -> keys as in config.reward: {"gold": {"path": "FOLDER", "label": "LABEL_0"}}

    # Sampling, the same for the reference cache, for rollouts and for the ruler.
    config.sampling = ConfigDict()
    config.sampling.max_new_tokens = 40  # tokens
    config.sampling.temperature = 1.0  # the policy is softmax(logits / temperature)
    config.references = ConfigDict()
    config.references.samples_per_prompt = 128  # M
    config.references.prompts_per_shard = 16  # an interrupted build loses at most one shard
    config.references.batch_prompts = 4  # prompts sampled at a time, M rows each
    config.references.seed = 0
    config.references.used = 0  # of the M, how many a run reads (the first ones); 0 = all, or under
    # a budget of sampled tokens as many as it pays for: as 1/8 of it, or 1/2 where the method draws
    # from the cache, for one that samples too
    config.references.refresh_every = 0  # offline methods: instead of the cache, every so many
    # steps M fresh responses of the reference policy to train.batch_size prompts; 0 = the cache

    # The method: one for `train`, all of them for `compare`.
    config.method = "vbon"  # vbon | kl_rl | bond | j_bond | raft | online_bonbon (online),
    # vbon_regression | qrpo | bon_sft | bon_sft_kl | bonbon | bonbon_released | bonbon_calibrated |
    # dpo | ipo (from the cache), sft | reward_model (text)
    config.n = 4.0  # N of Best-of-N, a real number from 1; the KL coefficient is 1 / (N - 1)
    config.bound = "l1"  # vbon, bond: l1 | exact
    config.gradient = "ppo"  # vbon, kl_rl: ppo (GAE, value head) | rloo | grpo, against the
    # other responses to the prompt, without a value head
    config.cdf = ConfigDict()
    config.cdf.estimator = "harmonic"  # log F from M rewards: harmonic | add_one | exponential_fit
    config.pairs = ConfigDict()
    config.pairs.alpha = 0.005  # bonbon*: weight of the best's likelihood; 1 minus it is the pair's
    config.pairs.beta = 0.0  # dpo, ipo, qrpo; 0 = beta*_n, at which IPO aims at Best-of-N, and for
    # qrpo 1 / (N - 1)
    config.pairs.average = False  # ipo: log-probabilities are means over tokens, not sums
    config.pairs.path = ""  # preferences that are given: a source as data.train, of prompt, chosen
    # and rejected, conversations, HH dialogues or BoNBoN's best and worst (docs/data.md)
    config.pairs.split = "train"
    config.pairs.columns = ConfigDict()  # as data.columns, and the filter as data.filter
    config.pairs.filter = ConfigDict()
    config.pairs.on_tie = "error"  # a row with equal responses, or equal rewards: drop | error
    config.pairs.on_empty = "error"  # a row with an empty response: drop | error
    config.bon_sft = ConfigDict()
    config.bon_sft.select = "weighted"  # best of N from all M, by its chance: weighted | best, of N
    # that are drawn
    config.bon_sft.kl_weight = 0.1  # bon_sft_kl: of the KL to the reference
    config.bond = ConfigDict()
    config.bond.backward = 0.5  # bond, j_bond: weight of the backward KL; 1 minus it the forward's
    config.bond.anchor_rate = 0.02  # j_bond: of the anchor's moving average, a step
    config.bond.anchor_kl = 1.0  # j_bond: of the KL to the anchor
    config.budget = ConfigDict()  # of each run, its share of the reference cache counted in; 0 =
    config.budget.sampled_tokens = 0  # none, a run is train.steps long. At most one of the two
    config.budget.train_flops = 0.0
    config.methods = ("vbon", "kl_rl")
    config.n_values = (2, 4, 8)
    config.seeds = (0,)
    config.cells = ()  # dictionaries of keys, a run each (configs/sweep.py builds them); () =
    # methods x n_values x seeds
    config.by_method = ConfigDict()  # keys as above that the runs of one method set for themselves:
    # {"dpo": {"train": {"learning_rate": 5e-5}}}; a cell that sets one of them goes before

    # Optimisation.
    config.train = ConfigDict()
    config.train.steps = 100
    config.train.batch_size = 64  # prompts a step (rows of text for sft and reward_model)
    config.train.samples_per_prompt = 4  # responses to each prompt of a step
    config.train.text_tokens = (
        256  # sft, reward_model: tokens of a row; a longer text of sft is cut,
    )
    # any other treated as data.over_long says
    config.train.packed = False  # sft: several texts in a row, none of which sees another
    config.train.epochs = 4  # passes over a step's samples
    config.train.minibatches = 4  # updates a pass
    config.train.learning_rate = 1e-4
    config.train.schedule = "constant"  # constant | linear | cosine, over the whole run
    config.train.warmup_updates = 0
    config.train.weight_decay = 0.0
    config.train.beta1 = 0.9
    config.train.beta2 = 0.999
    config.train.epsilon = 1e-8
    config.train.max_gradient_norm = 1.0
    config.train.trainable = ""  # "" = all; "last:2" = the last two layers and what follows them
    # (final norm, untied head, value head); else a regular expression over parameter names
    config.train.checkpoint_every = 10  # steps; the last step is always saved
    config.train.best_metric = "objective/mean"  # the higher the better
    config.train.eval_every = 0  # steps between evaluations on held-out prompts; 0 = none
    config.train.eval_prompts = 64
    config.ppo = ConfigDict()
    config.ppo.discount = 1.0
    config.ppo.gae_lambda = 0.95
    config.ppo.clip = 0.2
    config.ppo.value_clip = 0.2
    config.ppo.value_coefficient = 0.1  # of the value loss beside the policy's
    config.ppo.value_learning_rate = 1e-3  # of the value head; the network has train's
    config.ppo.whiten_advantages = True
    config.ppo.kl_target = 0.0  # nats a response, for an adaptive KL coefficient; 0 = fixed
    config.ppo.kl_horizon = 10000.0  # responses
    config.ppo.reward_clip = 0.0  # bound on the absolute transformed reward; 0 = none
    config.ppo.missing_eos_penalty = 0.0  # taken from a truncated response's transformed reward
    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices; -1 = what fsdp leaves
    config.mesh.fsdp = 1

    # Evaluation.
    config.evaluation = ConfigDict()
    config.evaluation.samples_per_prompt = 8  # K
    config.evaluation.batch_prompts = 64
    config.evaluation.temperatures = ()  # () = sampling.temperature
    config.evaluation.ruler_n = (1, 2, 4, 8, 16, 32, 64)  # of Best-of-N; those below M are shown
    config.evaluation.soft_temperatures = (1.0,)  # of soft Best-of-N's softmax, the reward's unit
    config.evaluation.checkpoint = "last"  # last | best
    config.evaluation.seed = 0
    config.evaluation.resamples = 2000  # of the bootstrap over prompts
    config.evaluation.shown_prompts = 12  # in the report

    # A language model that compares responses (experiments.llm_judge), over any chat-completions
    # endpoint as OpenAI's; each pair is asked in both orders.
    config.llm_judge = ConfigDict()
    config.llm_judge.url = ""  # of the API, up to and including /v1; "" = no such judge
    config.llm_judge.model = ""  # its name there
    config.llm_judge.key_variable = ""  # the environment variable that holds the API key; "" = none
    config.llm_judge.baseline = "reference"  # what runs are held against: reference | a run's name
    config.llm_judge.runs = ()  # which are judged, by name; () = all that are evaluated
    config.llm_judge.prompts = 100  # the first held-out ones, one response each
    config.llm_judge.template = QUESTION  # with {prompt}, {first} and {second}
    config.llm_judge.answer_tokens = 16  # of an answer; more for a model that reasons
    config.llm_judge.limit_field = "max_tokens"  # that limit's name: or max_completion_tokens
    config.llm_judge.temperature = 0.0  # of the answers; below 0 = the endpoint's own
    config.llm_judge.concurrency = 4  # requests under way at once
    config.llm_judge.timeout_seconds = 60.0  # of a request
    config.llm_judge.retries = 5  # of a question, after failures and after unreadable answers
    config.llm_judge.backoff_seconds = 1.0  # before the first retry, doubled for each one after it
    config.llm_judge.price_in = -1.0  # dollars for a million tokens of questions; 0 = free, below
    config.llm_judge.price_out = -1.0  # 0 = not given, an error; and for a million of answers
    config.llm_judge.max_cost = 1.0  # dollars of a working directory, never exceeded

    # The embedded default: a grammar of reviews, a policy and a classifier trained on it.
    config.embedded = ConfigDict()
    config.embedded.reviews = 12000
    config.embedded.eval_reviews = 600
    config.embedded.seed = 0
    config.embedded.vocab_size = 2048  # at most; the grammar has fewer words than that
    config.embedded.width = 128
    config.embedded.num_layers = 2
    config.embedded.num_heads = 4
    config.embedded.reward_layers = 1
    config.embedded.max_positions = 80
    config.embedded.policy_steps = 600
    config.embedded.reward_steps = 120
    config.embedded.batch_size = 64
    config.embedded.learning_rate = 2e-3
    return config.lock()


def get_config(arg: str | None = None) -> ConfigDict:
    """The defaults, for `--config`; `arg` is not used."""
    return defaults()
