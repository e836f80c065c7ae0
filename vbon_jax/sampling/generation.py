"""Text from a model: prompts in, the best of N responses to each out.

`generate` is a function of the prompts and the options, which have the names of `KEYS`; what is
shown on a terminal has its control characters written out.
"""

import contextlib
import operator
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from vbon_jax import config, files
from vbon_jax.config import Key
from vbon_jax.data import batching, formats, response_ids, sources, token_ids
from vbon_jax.data.prompt_sets import PromptSet
from vbon_jax.functional import streams
from vbon_jax.models import log_probs, sharding
from vbon_jax.models.huggingface import model_folder
from vbon_jax.sampling import rewards, sampler
from vbon_jax.types import InputError, Responses

KEYS = (
    Key("model", "", "Hugging Face folder (or hub name) of a decoder."),
    Key("prompt", (), "A prompt; may be given several times."),
    Key("input", "", "Prompts: a text file, one a line, or rows with `prompt`."),
    Key("output", "", "JSON lines to write, a row a response."),
    Key("chat", False, "A prompt is a user's message in the model's chat template."),
    Key("samples", 1, "Responses to each prompt.", least=1),
    Key("best_of", 1, "Draws of which the reward chooses each.", least=1),
    Key("max_new_tokens", 128, "Tokens of a response, its end counted.", least=1),
    Key(
        "temperature", 1.0, "Divides the logits; 0 = always the likeliest token.", least=0, most=100
    ),
    Key("top_k", 0, "Keep the k likeliest tokens; 0 = all.", least=0),
    Key("top_p", 1.0, "Keep the likeliest tokens with this probability; 1 = all.", above=0, most=1),
    Key("seed", 0, "The same seed gives the same text.", **config.SEED),
    Key("batch", 32, "Responses drawn at a time.", least=1),
    *rewards.KEYS,
)
# Control characters but for tab and line feed, those that turn the direction of writing, and halves
# of characters, which cannot be written at all.
HARMFUL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Generator(NamedTuple):
    """The model, tokenizer and reward that responses are generated with."""

    options: ConfigDict
    checkpoint: model_folder.Checkpoint
    tokenizer: Any
    sampling: sampler.Sampling
    reward: rewards.Reward | None

    @property
    def num_samples(self) -> int:
        """Responses that are drawn for each prompt."""
        return self.options.samples * self.options.best_of


# Before anything is computed ----------------------------------------------------------------------


def check_options(options: ConfigDict) -> None:
    """InputError for options that contradict each other, and for a file that would be lost."""
    config.check(options, KEYS)
    for first, second in (("prompt", "input"), ("reward.path", "reward.function")):
        if config.get(options, first) and config.get(options, second):
            raise InputError(f"--{first} and --{second} are both given; keep one of them")
    if options.best_of > 1 and not (options.reward.path or options.reward.function):
        raise InputError(
            f"--best_of={options.best_of} needs a reward to choose by; add --reward.path=DIR or "
            "--reward.function=package.module:name"
        )
    if options.output:
        output = files.local_path(options.output)
        files.check_writable(output, what="file")
        if output.is_file() and output.stat().st_size:
            raise InputError(f"--output={output}: it exists; give another name, or remove it")


def read_prompts(options: ConfigDict) -> sources.Table:
    """The prompts of the flags, of a file, or of standard input, which is one prompt."""
    if options.prompt:
        return _table(list(options.prompt), "--prompt", "number")
    path = files.local_path(options.input)
    if path.suffix in sources.FORMATS:
        return sources.read(path)
    if not options.input:
        content = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
        if not content:
            raise InputError("there is no prompt; give --prompt, --input or text on standard input")
        return _table([re.sub(r"\r?\n\Z", "", _utf8(content, "standard input"))], "standard input")
    if not path.is_file():
        raise InputError(f"--input={path}: no such file; give a file with a prompt on each line")
    lines = _utf8(path.read_bytes(), str(path)).rstrip("\r\n").split("\n")
    return _table([line.rstrip("\r") for line in lines], str(path), "line")


def _table(texts: list[str], source: str, unit: str = "row") -> sources.Table:
    numbers = list(range(1, len(texts) + 1))
    return sources.Table([{"prompt": text} for text in texts], source, numbers, unit)


def _utf8(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 ({error.reason}); save it as UTF-8") from None


def encode(table: sources.Table, tokenizer: Any, *, chat: bool = False) -> PromptSet:
    """The token ids of prompts, in their order, equal ones too.

    The BOS is in front where the tokenizer puts it there by itself, and an empty prompt is the BOS.
    With `chat` a prompt is a user's message in the tokenizer's template. InputError where there is
    no BOS or no template, and for what is not Unicode text.
    """
    texts = [table.text(row, "prompt") for row in range(len(table.rows))]
    for text, place in zip(texts, table.places, strict=True):
        if not sources.is_unicode(text):
            raise InputError(f"{place}: the prompt is not Unicode text; write it as UTF-8")
    rendered = texts
    if chat:
        rows = [{"prompt": [{"role": "user", "content": text}]} for text in texts]
        rendered = formats.prompts(table._replace(rows=rows), tokenizer=tokenizer)
    ids = token_ids.prompt_ids(tokenizer, rendered, table.places)
    conversations = [row["prompt"] for row in rows] if chat else ()
    columns = formats.columns(table, without="prompt")
    return PromptSet(ids, texts, columns=columns, conversations=conversations)


def load(options: ConfigDict, tokenizer: Any) -> Generator:
    """The model and the reward that the options name, each checked."""
    checkpoint = model_folder.load(options.model, kind="decoder")
    checkpoint = checkpoint._replace(params=sharding.on_all_devices(checkpoint.params))
    sampling = sampler.Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        eos_token_ids=response_ids.response_ends(checkpoint, tokenizer, options.model).ids,
    )
    has_reward = options.reward.path or options.reward.function
    reward = rewards.load(options.reward, conversations=options.chat) if has_reward else None
    return Generator(options, checkpoint, tokenizer, sampling, reward)


def check_prompts(generator: Generator, prompts: PromptSet, places: list[str]) -> None:
    """InputError for a prompt that leaves no room for its response, and for a broken reward."""
    options, positions = generator.options, generator.checkpoint.config.max_positions
    for ids, place in zip(prompts.token_ids, places, strict=True):
        if len(ids) + options.max_new_tokens > positions:
            raise InputError(
                f"{place}: the prompt has {len(ids)} tokens, which with "
                f"--max_new_tokens={options.max_new_tokens} is more than the {positions} positions "
                f"of {options.model}; shorten it or ask for fewer new tokens"
            )
    if generator.reward is not None:
        rewards.try_out(generator.reward, prompts, options.reward)


# Responses ----------------------------------------------------------------------------------------


def generate(generator: Generator, prompts: PromptSet) -> Iterator[list[dict[str, Any]]]:
    """For each prompt a row for each of its `samples` responses, the best of `best_of` each.

    A prompt's responses depend on the seed, its place and its tokens, not on its neighbours.
    Batches are padded to a bucket and the last is filled up, so that few shapes are compiled.
    """
    options, model = generator.options, generator.checkpoint
    key = streams.key("generation", options.seed)
    longest = model.config.max_positions - options.max_new_tokens
    height = max(1, min(options.batch // generator.num_samples, len(prompts.token_ids)))
    for places, count in batching.filled_batches(len(prompts.token_ids), height):
        responses = sampler.generate(
            model.config,
            model.params,
            batching.pad_prompts([prompts.token_ids[place] for place in places], longest=longest),
            sampler.prompt_keys(key, places),
            num_samples=generator.num_samples,
            sampling=generator.sampling,
        )
        responses = log_probs.on_host(responses._replace(prompt_index_b=places), options.model)
        yield from _best(
            generator, prompts, jax.tree.map(operator.itemgetter(slice(count)), responses)
        )


def _best(generator: Generator, prompts: PromptSet, responses: Responses) -> Iterator[list[dict]]:
    """The rows of each prompt of a batch."""
    options, reward, num_samples = generator.options, generator.reward, generator.num_samples
    index_s, ids_s = np.repeat(responses.prompt_index_b, num_samples), responses.token_ids()
    rewards_bn = np.zeros(responses.lengths_bn.shape, np.float32)
    if reward is not None:
        eos_token_ids = generator.sampling.eos_token_ids
        score = rewards.make_scorer(reward, generator.tokenizer, prompts, eos_token_ids)
        rewards_bn = score(index_s, ids_s).reshape(rewards_bn.shape)
    groups_bkn = rewards_bn.reshape(len(rewards_bn), options.samples, options.best_of)
    best_bk = groups_bkn.argmax(-1) + np.arange(options.samples) * options.best_of
    _, texts = rewards.texts(generator.tokenizer, [prompts.token_ids[i] for i in index_s], ids_s)
    for row, prompt in enumerate(responses.prompt_index_b):
        yield [
            {
                "prompt": prompts.texts[prompt],
                "response": texts[row * num_samples + place],
                "log_prob": float(responses.log_probs_bng[row, place].sum(dtype=np.float64)),
                "tokens": ids_s[row * num_samples + place],
                "finished": bool(responses.finished_bn[row, place]),
            }
            | ({} if reward is None else {"reward": float(rewards_bn[row, place])})
            for place in best_bk[row]
        ]


# To a terminal and to a file ----------------------------------------------------------------------


def harmless(text: str) -> str:
    r"""A text whose control characters are written out (`\x1b`), for a terminal.

    Tab and line feed stay, and so does a backslash: this is to be read, not to be undone.
    """
    return HARMFUL.sub(lambda match: ascii(match[0])[1:-1], text)


def as_shown(prompt: str, rows: list[dict[str, Any]], options: ConfigDict, *, several: bool) -> str:
    """The responses to a prompt as text for a terminal, each with a line about it."""
    lines = [f">>> {prompt}"] if several else []
    for number, row in enumerate(rows, 1):
        notes = [f"sample {number} of {options.samples}"] if options.samples > 1 else []
        notes += [f"reward {row['reward']:.4f}"] if "reward" in row else []
        notes += [f"best of {options.best_of}"] if options.best_of > 1 else []
        lines += [row["response"], *([f"-- {', '.join(notes)}"] if notes else [])]
    return harmless("\n".join(lines) + "\n" * (1 + several))


def _open(path: str) -> contextlib.AbstractContextManager[TextIO | None]:
    if not path:
        return contextlib.nullcontext()
    with files.writing(path):
        file = files.local_path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        return file.open("w", encoding="utf-8")


def _write(generator: Generator, prompts: PromptSet, file: TextIO | None) -> None:
    """All rows to the file, each prompt's as soon as it has them; without one, shown."""
    several = len(prompts.texts) > 1
    progress = tqdm.tqdm(prompts.texts, unit="prompt", desc="generate", disable=file is None)
    for prompt, rows in zip(progress, generate(generator, prompts), strict=True):
        if file is None:
            sys.stdout.write(as_shown(prompt, rows, generator.options, several=several))
            sys.stdout.flush()
        else:
            with files.writing(file.name):
                file.writelines(files.dumps(row) + "\n" for row in rows)
                file.flush()


def main(options: ConfigDict) -> None:
    """Check everything that can be checked, then generate."""
    check_options(options)
    table = read_prompts(options)
    tokenizer = model_folder.load_tokenizer(options.model)
    prompts = encode(table, tokenizer, chat=options.chat)
    generator = load(options, tokenizer)
    check_prompts(generator, prompts, table.places)
    with _open(options.output) as file:
        _write(generator, prompts, file)
