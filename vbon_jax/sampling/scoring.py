"""Log-probabilities of given responses under a model.

No EOS is added: what is scored is the text that is given.
"""

import numpy as np
import tqdm

from vbon_jax.data import batching, response_ids, sources
from vbon_jax.data.token_ids import Ids
from vbon_jax.models import sharding
from vbon_jax.models.decoder import DecoderConfig
from vbon_jax.models.huggingface import model_folder
from vbon_jax.models.log_probs import on_host, response_log_probs
from vbon_jax.types import InputError, Params, Prompts, Responses, Sequences


def encode(
    table: sources.Table, tokenizer, ends: response_ids.Ends, *, longest: int
) -> list[tuple[Ids, Ids]]:
    """Token ids of each row's prompt and response.

    InputError for a row of more than `longest` tokens, one without these texts, a response that
    cannot be tokenised or has an EOS before its end, and an empty prompt where there is no BOS.
    """
    texts = [
        (table.text(row, "prompt"), table.text(row, "response")) for row in range(len(table.rows))
    ]
    prompts, responses = zip(*texts, strict=True)
    prompts = response_ids.given_prompts(tokenizer, prompts, table.places)
    places = [f"{place}: the response" for place in table.places]
    encoded = response_ids.encode_responses(
        tokenizer, prompts, responses, ends, places, ended=False
    )
    pairs = list(zip(prompts, encoded, strict=True))
    for (prompt, response), place in zip(pairs, table.places, strict=True):
        if len(prompt) + len(response) > longest:
            raise InputError(
                f"{place}: prompt and response have {len(prompt) + len(response)} tokens, the "
                f"model takes {longest}; shorten the row"
            )
    return pairs


def score(
    checkpoint: model_folder.Checkpoint, pairs, *, batch: int, source: str = "the model"
) -> list[list[float]]:
    """log pi(token) of each response's tokens, in the order of `pairs` of token ids; nats.

    Raises InputError, beginning with `source`, where one is not finite.
    """
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    scored: list[list[float]] = [[] for _ in pairs]
    params = sharding.on_all_devices(checkpoint.params)
    with tqdm.tqdm(total=len(pairs), unit="row", desc="score") as progress:
        for places, count in batching.filled_batches(len(order), batch):
            chosen = [order[place] for place in places]
            joined = [[*pairs[i][0], *pairs[i][1]] for i in chosen]
            whole = batching.pad_prompts(joined, longest=checkpoint.config.max_positions)
            prompt_lengths = np.asarray([len(pairs[i][0]) for i in chosen], np.int32)
            log_probs_sg, _, _ = response_log_probs(
                checkpoint.config,
                params,
                Sequences(whole.tokens_bp, prompt_lengths, whole.lengths_b),
                new_tokens=batching.bucket_length(max(len(pairs[i][1]) for i in chosen)),
                temperature=1.0,
            )
            scored_sg = on_host(log_probs_sg, source)[:count]
            for row, i in zip(scored_sg, chosen, strict=False):
                scored[i] = row[: len(pairs[i][1])].tolist()
            progress.update(count)
    return scored


def with_log_probs(
    model: DecoderConfig,
    params: Params,
    prompts: Prompts,
    responses: Responses,
    *,
    temperature: float,
) -> Responses:
    """The responses with their log pi by the forward pass that training makes, in nats; numpy.

    The sampler's own come from a cache of keys and values, a token at a time. In bfloat16 the two
    differ by tenths of a nat for a response, and a policy would be that far from itself.
    """
    shape = responses.tokens_bng.shape
    log_probs_sg, _, _ = response_log_probs(
        model,
        params,
        batching.sequences(prompts, responses),
        new_tokens=shape[-1],
        temperature=temperature,
    )
    log_probs_sg = on_host(log_probs_sg, "the reference policy")
    return responses._replace(log_probs_bng=log_probs_sg.reshape(shape))
