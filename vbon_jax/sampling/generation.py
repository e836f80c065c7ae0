"""Text from a model, for a person.

`python -m experiments.generate --model DIR --prompt TEXT` prints what a decoder says, while it says
it where a terminal watches; with `--input FILE --output FILE.jsonl` it goes through many prompts,
and with neither it asks for them. With a reward and `--best_of N` the best of N is what is shown.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np
import tqdm

from vbon_jax.data import batching, sources, token_ids
from vbon_jax.models.huggingface import model_folder
from vbon_jax.sampling import rewards, sampler
from vbon_jax.sampling import terminal as text
from vbon_jax.types import InputError, Responses

EVERY = 4  # tokens between two pieces of a text that is watched


@dataclasses.dataclass(frozen=True)
class Options:
    """What the flags of the same names say."""

    model: str
    prompts: tuple[str, ...] = ()
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
    reward: str | None = None
    reward_function: str | None = None
    reward_label: str = "POSITIVE"
    reward_output: str = "logit"
    reward_text: str = "full"
    reward_over_long: str = "error"
    stream: bool | None = None
    batch: int = 32

    @property
    def drawn(self) -> int:
        """Responses that are drawn for each prompt."""
        return self.samples * self.best_of


class Prompt(NamedTuple):
    """A prompt and its number, which its random numbers come from."""

    index: int
    where: str  # for errors
    text: str  # as it was given
    ids: list[int]


class Response(NamedTuple):
    """A row of the output; nothing is written where there is no reward."""

    prompt: str
    response: str
    log_prob: float  # nats, of all its tokens at the sampling temperature
    tokens: list[int]  # an EOS included
    finished: bool  # ended by an EOS
    reward: float | None = None


class Speaker(NamedTuple):
    """What responses are made with."""

    options: Options
    checkpoint: model_folder.Checkpoint
    tokenizer: Any
    sampling: sampler.Sampling
    reward: rewards.Reward | None

    @property
    def room(self) -> int:
        """Tokens that the model's positions leave to a prompt."""
        return self.checkpoint.config.max_positions - self.sampling.max_new_tokens


# Before anything is computed ----------------------------------------------------------------------


def check(options: Options) -> None:
    """InputError for options that contradict each other, and for a file that would be lost."""
    both = "are both given; keep one of them"
    if options.prompts and options.input is not None:
        raise InputError(f"--prompt and --input {both}")
    if options.reward and options.reward_function:
        raise InputError(f"--reward and --reward_function {both}")
    if options.best_of > 1 and not (options.reward or options.reward_function):
        raise InputError(
            f"--best_of={options.best_of} needs a reward to choose by; add --reward=DIR or "
            "--reward_function=package.module:name"
        )
    if options.stream and options.drawn > 1:
        raise InputError(
            "--stream shows the one response to a prompt while it is made; leave it out, or "
            "--samples and --best_of"
        )
    output = pathlib.Path(options.output or "")
    if output.is_file() and output.stat().st_size:
        raise InputError(f"--output={output}: it is there already; give another name, or remove it")


def read_prompts(options: Options) -> list[tuple[str, str]] | None:
    """Where each prompt stands, and its text; None where a person is to be asked."""
    if options.prompts:
        return [(f"--prompt={given!r:.40}", given) for given in options.prompts]
    if options.input is None:
        if sys.stdin.isatty():
            return None
        content = _utf8(sys.stdin.buffer.read(), "standard input")
        if not content:
            raise InputError("there is no prompt; give --prompt, --input or text on standard input")
        return [("standard input", re.sub(r"\r?\n\Z", "", content))]
    path = pathlib.Path(options.input)
    if path.suffix == ".jsonl":
        table = sources.read(path)
        texts = [table.text(row, "prompt") for row in range(len(table.rows))]
    elif path.is_file():
        texts = _utf8(path.read_bytes(), str(path)).rstrip("\r\n").split("\n")
    else:
        raise InputError(f"--input={path}: no such file; give a file with a prompt on each line")
    return [(f"{path}: line {number}", given.rstrip("\r")) for number, given in enumerate(texts, 1)]


def _utf8(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 ({error.reason}); save it as UTF-8") from None


def encode(
    given: Sequence[tuple[str, str]], tokenizer: Any, options: Options, *, first: int = 0
) -> list[Prompt]:
    """Token ids of prompts, which are numbered from `first`.

    As everywhere here, the BOS is in front where the tokenizer puts it there by itself, and an
    empty prompt is the BOS. InputError where there is none, and for what is no Unicode text.
    """
    prompts = []
    for index, (where, written) in enumerate(given, first):
        if re.search("[\ud800-\udfff]", written):
            raise InputError(f"{where}: the prompt is no Unicode text; write it as UTF-8")
        asked = _as_message(tokenizer, written, options.model) if options.chat else written
        (ids,) = token_ids.prompt_ids(tokenizer, [asked], [where])
        prompts.append(Prompt(index, where, written, list(ids)))
    return prompts


def _as_message(tokenizer: Any, written: str, model: str) -> str:
    """What the tokenizer's chat template makes of a user's message."""
    if not tokenizer.chat_template:
        raise InputError(
            f"{model}: its tokenizer has no chat template; leave out --chat, or give the folder of "
            "a model that was trained on dialogues"
        )
    try:
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": written}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # whatever a template finds wrong
        raise InputError(
            f"{model}: its chat template fails on a user's message alone "
            f"({type(error).__name__}: {error}); leave out --chat"
        ) from error


def load(options: Options, tokenizer: Any) -> Speaker:
    """The model and the reward that the options name, each checked."""
    checkpoint = model_folder.load(options.model, kind="decoder")
    model_folder.check_vocabulary(tokenizer, checkpoint.config, options.model)
    eos = model_folder.eos_token_ids(checkpoint, tokenizer, options.model)
    names = ("max_new_tokens", "temperature", "top_k", "top_p")
    try:
        settings = {name: getattr(options, name) for name in names}
        sampling = sampler.Sampling(**settings, eos_token_ids=tuple(eos))
    except ValueError as error:
        raise InputError(f"--{error}") from error
    return Speaker(options, checkpoint, tokenizer, sampling, _reward(options))


def _reward(options: Options) -> rewards.Reward | None:
    if options.reward_function:
        return rewards.from_callable(options.reward_function)
    if not options.reward:
        return None
    return rewards.classifier(
        options.reward,
        label=options.reward_label,
        output=options.reward_output,
        text=options.reward_text,
        over_long=options.reward_over_long,
    )


def check_room(speaker: Speaker, prompts: Sequence[Prompt]) -> None:
    """InputError for a prompt that leaves no room for its response."""
    for prompt in prompts:
        if len(prompt.ids) > speaker.room:
            raise InputError(
                f"{prompt.where}: the prompt has {len(prompt.ids)} tokens, which with "
                f"--max_new_tokens={speaker.sampling.max_new_tokens} is more than the "
                f"{speaker.checkpoint.config.max_positions} positions of {speaker.options.model}; "
                "shorten it or ask for fewer new tokens"
            )


# Responses ----------------------------------------------------------------------------------------


def respond(speaker: Speaker, prompts: Sequence[Prompt]) -> Iterator[tuple[Prompt, list[Response]]]:
    """Each prompt with its `samples` responses, each of them the best of `best_of`.

    A prompt's responses depend on the seed, its number and its tokens, not on its neighbours.
    Batches are padded to a bucket and the last is filled up, so that few shapes are compiled.
    """
    options = speaker.options
    height = max(1, min(options.batch // options.drawn, len(prompts)))
    for places, count in batching.filled_batches(len(prompts), height):
        batch = [prompts[place] for place in places]
        samples = jax.device_get(sampler.generate(**_arguments(speaker, batch)))
        yield from zip(batch[:count], _best(speaker, batch[:count], samples), strict=True)


def watch(speaker: Speaker, prompt: Prompt, show: Callable[[str], None]) -> Response:
    """The first response to a prompt, of which `show` gets each piece as soon as it stands."""
    samples = None

    def growing() -> Iterator[list[int]]:
        nonlocal samples
        for samples in sampler.stream(**_arguments(speaker, [prompt]), every=EVERY):
            yield _tokens(samples)[0][0]

    for piece in text.pieces(speaker.tokenizer, prompt.ids, growing()):
        show(piece)
    return next(_best(speaker, [prompt], samples))[0]


def _arguments(speaker: Speaker, batch: Sequence[Prompt]) -> dict[str, Any]:
    """What `sampler.generate` and `sampler.stream` take."""
    key = jax.random.key(speaker.options.seed)
    return {
        "config": speaker.checkpoint.config,
        "params": speaker.checkpoint.params,
        "prompts": batching.pad_prompts([prompt.ids for prompt in batch], longest=speaker.room),
        "keys_b": sampler.prompt_keys(key, np.asarray([prompt.index for prompt in batch])),
        "num_samples": speaker.options.drawn,
        "sampling": speaker.sampling,
    }


def _tokens(samples: Responses) -> list[list[list[int]]]:
    """The tokens of every response, by prompt."""
    return [
        [ids[:length].tolist() for ids, length in zip(*of_prompt, strict=True)]
        for of_prompt in zip(samples.tokens_bng, samples.lengths_bn, strict=True)
    ]


def _best(
    speaker: Speaker, batch: Sequence[Prompt], samples: Responses
) -> Iterator[list[Response]]:
    """For each prompt of a batch (there may be more samples than that) what is kept."""
    options, tokens = speaker.options, _tokens(samples)[: len(batch)]
    rewards_bn = np.zeros((len(batch), options.drawn), np.float32)
    if speaker.reward is not None:
        asked = [prompt.ids for prompt in batch for _ in range(options.drawn)]
        said = [ids for of_prompt in tokens for ids in of_prompt]
        texts = rewards.texts(speaker.tokenizer, asked, said)
        rewards_bn = speaker.reward.score(*texts).reshape(rewards_bn.shape)
    groups_bkn = rewards_bn.reshape(len(batch), options.samples, options.best_of)
    best_bk = groups_bkn.argmax(-1) + np.arange(options.samples) * options.best_of
    for row, prompt in enumerate(batch):
        yield [
            Response(
                prompt=prompt.text,
                response=text.response(speaker.tokenizer, prompt.ids, tokens[row][place]),
                log_prob=float(samples.log_probs_bng[row, place].sum(dtype=np.float64)),
                tokens=tokens[row][place],
                finished=bool(samples.finished_bn[row, place]),
                reward=None if speaker.reward is None else float(rewards_bn[row, place]),
            )
            for place in best_bk[row]
        ]


# To a terminal and to a file ----------------------------------------------------------------------


def tell(written: str) -> None:
    """Text on standard output at once, its control characters made harmless."""
    sys.stdout.write(text.harmless(written))
    sys.stdout.flush()


def tell_note(response: Response, number: int, options: Options) -> None:
    """The end of a response's text, and a line of what else there is to say of it."""
    said = [f"sample {number} of {options.samples}"] if options.samples > 1 else []
    if response.reward is not None:
        said.append(f"reward {response.reward:.4f}")
    if options.best_of > 1:
        said.append(f"best of {options.best_of}")
    tell("\n" + (f"-- {', '.join(said)}\n" if said else ""))


def write(file: TextIO | None, response: Response) -> None:
    """A row of the file, on disk when this returns."""
    if file is not None:
        row = {name: value for name, value in response._asdict().items() if value is not None}
        file.write(json.dumps(row) + "\n")
        file.flush()


def write_all(speaker: Speaker, prompts: Sequence[Prompt], file: TextIO) -> None:
    """The responses to all prompts to the file, with progress on standard error."""
    total = len(prompts) * speaker.options.samples
    with tqdm.tqdm(total=total, unit="response", desc="generate") as progress:
        for _, responses in respond(speaker, prompts):
            for response in responses:
                write(file, response)
                progress.update()


def talk(
    speaker: Speaker, prompts: Sequence[Prompt], file: TextIO | None, *, watched: bool
) -> None:
    """The responses to all prompts on standard output (and in the file, where there is one).

    Watched ones are made prompt by prompt and shown meanwhile, the others batch by batch.
    """
    several = len(prompts) > 1

    def watch_all() -> Iterator[tuple[Prompt, list[Response]]]:
        for prompt in prompts:
            tell(f">>> {prompt.text}\n" if several else "")
            yield prompt, [watch(speaker, prompt, tell)]

    for prompt, responses in watch_all() if watched else respond(speaker, prompts):
        if several and not watched:
            tell(f">>> {prompt.text}\n")
        for number, response in enumerate(responses, 1):
            tell("" if watched else response.response)
            tell_note(response, number, speaker.options)
            write(file, response)
        tell("\n" if several else "")


def converse(speaker: Speaker, file: TextIO | None, *, watched: bool) -> None:
    """Asks for prompts and answers each by itself, until the input ends.

    An interrupt stops the response that is being made, and at the question the program.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (lets `input` edit its line)
    for index in itertools.count():
        try:
            given = input("prompt> ")
        except (EOFError, KeyboardInterrupt):
            tell("\n")
            return
        try:
            asked = [("the prompt", given)]
            prompts = encode(asked, speaker.tokenizer, speaker.options, first=index)
            check_room(speaker, prompts)
            talk(speaker, prompts, file, watched=watched)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            tell("\n")


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


def main(options: Options) -> None:
    """Check everything that can be checked, then generate."""
    check(options)
    given = read_prompts(options)
    tokenizer = model_folder.load_tokenizer(options.model)
    prompts = encode(given or (), tokenizer, options)
    speaker = load(options, tokenizer)
    check_room(speaker, prompts)
    if speaker.reward is not None:  # one that is broken is found before anything is drawn
        texts = [prompt.text for prompt in prompts[:1]]
        alone = options.reward_text == "response"  # a response that is read alone is not empty
        speaker.reward.score(texts, texts if alone else [""] * len(texts))
    quiet = options.output is not None and given is not None and not options.stream
    watched = options.stream
    if watched is None:
        watched = options.drawn == 1 and not quiet and sys.stdout.isatty()
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack the characters
    try:
        with _open(options.output) as file:
            if given is None:
                converse(speaker, file, watched=watched)
            elif quiet:
                write_all(speaker, prompts, file)
            else:
                talk(speaker, prompts, file, watched=watched)
    except KeyboardInterrupt:
        kept = f"; what was finished stands in {options.output}" if options.output else ""
        print(f"\ninterrupted{kept}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
