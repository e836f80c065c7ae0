"""Text from a model: prompts in, the best of N responses to each out.

`generate` is a function of the prompts and the options; what is shown on a terminal has its control
characters written out.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from vbon_jax.data import batching, formats, sources, token_ids
from vbon_jax.data.prompt_sets import PromptSet
from vbon_jax.models.huggingface import model_folder
from vbon_jax.sampling import rewards, sampler
from vbon_jax.types import InputError, Responses

logger = logging.getLogger(__name__)

# Control characters but for tab and line feed, those that turn the direction of writing, and halves
# of characters, which cannot be written at all.
HARMFUL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Options:
    """The values of the flags of the same names."""

    model: str
    prompt: tuple[str, ...] = ()
    input: str | None = None
    output: str | None = None
    chat: bool = False
    samples: int = 1
    best_of: int = 1
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    batch: int = 32
    reward: ConfigDict | None = None  # with the keys of `config.reward`

    @property
    def drawn(self) -> int:
        """Responses that are drawn for each prompt."""
        return self.samples * self.best_of

    @property
    def has_reward(self) -> bool:
        """Whether a classifier or a function is named."""
        return self.reward is not None and bool(self.reward.path or self.reward.function)


class Given(NamedTuple):
    """Prompts as they were given."""

    texts: list[str]
    places: list[str]  # for errors
    columns: Mapping[str, list] = {}  # other fields of their rows


class Generator(NamedTuple):
    """What responses are generated with."""

    options: Options
    checkpoint: model_folder.Checkpoint
    tokenizer: Any
    sampling: sampler.Sampling
    reward: rewards.Reward | None


# Before anything is computed ----------------------------------------------------------------------


def check_options(options: Options) -> None:
    """InputError for options that contradict each other, and for a file that would be lost."""
    if options.prompt and options.input is not None:
        raise InputError("--prompt and --input are both given; keep one of them")
    if options.has_reward and options.reward.path and options.reward.function:
        raise InputError("--reward.path and --reward.function are both given; keep one of them")
    if options.best_of > 1 and not options.has_reward:
        raise InputError(
            f"--best_of={options.best_of} needs a reward to choose by; add --reward.path=DIR or "
            "--reward.function=package.module:name"
        )
    output = pathlib.Path(options.output or "")
    if output.is_file() and output.stat().st_size:
        raise InputError(f"--output={output}: it exists already; give another name, or remove it")


def read_prompts(options: Options) -> Given:
    """The prompts of the flags, of a file, or of standard input, which is one prompt."""
    if options.prompt:
        return Given(list(options.prompt), [f"--prompt={text!r:.40}" for text in options.prompt])
    if options.input is None:
        content = "" if sys.stdin.isatty() else _utf8(sys.stdin.buffer.read(), "standard input")
        if not content:
            raise InputError("there is no prompt; give --prompt, --input or text on standard input")
        return Given([re.sub(r"\r?\n\Z", "", content)], ["standard input"])
    path = pathlib.Path(options.input)
    if path.suffix == ".jsonl":
        table = sources.read(path)
        texts = [table.text(row, "prompt") for row in range(len(table.rows))]
        return Given(texts, table.places, formats.columns(table, without="prompt"))
    if path.is_file():
        lines = _utf8(path.read_bytes(), str(path)).rstrip("\r\n").split("\n")
        texts = [line.rstrip("\r") for line in lines]
    else:
        raise InputError(f"--input={path}: no such file; give a file with a prompt on each line")
    places = [f"{path}: line {number}" for number in range(1, len(texts) + 1)]
    return Given(texts, places)


def _utf8(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 ({error.reason}); save it as UTF-8") from None


def encode(given: Given, tokenizer: Any, options: Options) -> PromptSet:
    """The token ids of prompts, in their order, equal ones too.

    The BOS is in front where the tokenizer puts it there by itself, and an empty prompt is the BOS.
    InputError where there is none, and for what is not Unicode text.
    """
    rendered = []
    for text, place in zip(given.texts, given.places, strict=True):
        if re.search("[\ud800-\udfff]", text):
            raise InputError(f"{place}: the prompt is not Unicode text; write it as UTF-8")
        rendered.append(_as_message(tokenizer, text, options.model) if options.chat else text)
    ids = token_ids.prompt_ids(tokenizer, rendered, given.places)
    return PromptSet(ids, given.texts, columns=given.columns)


def _as_message(tokenizer: Any, text: str, model: str) -> str:
    """A user's message in the tokenizer's chat template."""
    if not tokenizer.chat_template:
        raise InputError(
            f"{model}: its tokenizer has no chat template; leave out --chat, or give the folder of "
            "a model that was trained on dialogues"
        )
    try:
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # whatever a template finds wrong
        raise InputError(
            f"{model}: its chat template fails on a user's message alone "
            f"({type(error).__name__}: {error}); leave out --chat"
        ) from error


def load(options: Options, tokenizer: Any) -> Generator:
    """The model and the reward that the options name, each checked."""
    checkpoint = model_folder.load(options.model, kind="decoder")
    model_folder.check_vocabulary(tokenizer, checkpoint.config, options.model)
    sampling = sampler.Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        eos_token_ids=model_folder.eos_token_ids(checkpoint, tokenizer, options.model),
    )
    reward = rewards.load(options.reward) if options.has_reward else None
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
    key = jax.random.key(options.seed)
    longest = model.config.max_positions - options.max_new_tokens
    height = max(1, min(options.batch // options.drawn, len(prompts.token_ids)))
    for places, count in batching.filled_batches(len(prompts.token_ids), height):
        responses = sampler.generate(
            model.config,
            model.params,
            batching.pad_prompts([prompts.token_ids[place] for place in places], longest=longest),
            sampler.prompt_keys(key, places),
            num_samples=options.drawn,
            sampling=generator.sampling,
        )
        responses = jax.device_get(responses._replace(prompt_index_b=places))
        own = Responses(*(a if a is None else a[:count] for a in responses))  # without filling
        yield from _best(generator, prompts, own)


def _best(generator: Generator, prompts: PromptSet, responses: Responses) -> Iterator[list[dict]]:
    """The rows of each prompt of a batch."""
    options, tokenizer, reward = generator.options, generator.tokenizer, generator.reward
    shape, ids_s = responses.lengths_bn.shape, responses.token_ids()
    index_s = np.repeat(responses.prompt_index_b, options.drawn)
    rewards_bn = np.zeros(shape, np.float32)
    if reward is not None:
        scored_s = rewards.score_responses(reward, tokenizer, prompts, index_s, ids_s)
        rewards_bn = scored_s.reshape(shape)
    groups_bkn = rewards_bn.reshape(len(rewards_bn), options.samples, options.best_of)
    best_bk = groups_bkn.argmax(-1) + np.arange(options.samples) * options.best_of
    _, texts = rewards.texts(tokenizer, [prompts.token_ids[i] for i in index_s], ids_s)
    for row, prompt in enumerate(responses.prompt_index_b):
        yield [
            {
                "prompt": prompts.texts[prompt],
                "response": texts[row * options.drawn + place],
                "log_prob": float(responses.log_probs_bng[row, place].sum(dtype=np.float64)),
                "tokens": ids_s[row * options.drawn + place],
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


def as_shown(prompt: str, rows: list[dict[str, Any]], options: Options, *, several: bool) -> str:
    """The responses to a prompt as text for a terminal, each with a line about it."""
    lines = [f">>> {prompt}"] if several else []
    for number, row in enumerate(rows, 1):
        notes = [f"sample {number} of {options.samples}"] if options.samples > 1 else []
        notes += [f"reward {row['reward']:.4f}"] if "reward" in row else []
        notes += [f"best of {options.best_of}"] if options.best_of > 1 else []
        lines += [row["response"], *([f"-- {', '.join(notes)}"] if notes else [])]
    return harmless("\n".join(lines) + "\n" * (1 + several))


def _open(path: str | None) -> contextlib.AbstractContextManager[TextIO | None]:
    if path is None:
        return contextlib.nullcontext()
    try:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        return open(path, "w", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"--output={path}: {error.strerror}; give a file that can be written"
        ) from error


def _write(generator: Generator, prompts: PromptSet, file: TextIO | None) -> None:
    """All rows to the file, each prompt's as soon as it has them; without one, shown."""
    several = len(prompts.texts) > 1
    progress = tqdm.tqdm(prompts.texts, unit="prompt", desc="generate", disable=file is None)
    for prompt, rows in zip(progress, generate(generator, prompts), strict=True):
        if file is None:
            sys.stdout.write(as_shown(prompt, rows, generator.options, several=several))
            sys.stdout.flush()
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()


def main(options: Options) -> None:
    """Check everything that can be checked, then generate."""
    check_options(options)
    given = read_prompts(options)
    tokenizer = model_folder.load_tokenizer(options.model)
    prompts = encode(given, tokenizer, options)
    generator = load(options, tokenizer)
    check_prompts(generator, prompts, given.places)
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack the characters
    try:
        with _open(options.output) as file:
            _write(generator, prompts, file)
    except KeyboardInterrupt:
        kept = f"; {options.output} has what was finished" if options.output else ""
        print(f"\ninterrupted{kept}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
