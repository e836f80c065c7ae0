"""The families of encoders with a classifier: BERT, RoBERTa, DistilBERT, and DeBERTa v2 and v3."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from vbon_jax.models.disentangled import RelativePositions
from vbon_jax.models.encoder import EncoderConfig
from vbon_jax.models.huggingface.families import Family, Fields, Tensor, dense, family, norm

TERMS = ("c2p", "p2c")  # of DeBERTa's scores: content to position, and position to content
# A layer's parts by our names, and by each family's in the same order.
PARTS = ("attention/query", "attention/key", "attention/value", "attention/output", "norm_1")
PARTS += ("mlp/up", "mlp/down", "norm_2")
BERT = ("attention.self.query", "attention.self.key", "attention.self.value")
OUTPUTS = ("attention.output.dense", "attention.output.LayerNorm")
OUTPUTS += ("intermediate.dense", "output.dense", "output.LayerNorm")
DISTILBERT = ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin")
DISTILBERT += ("sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm")


# ------------------------------------------------------------------------------------- DistilBERT


def _read_distilbert(fields: Fields) -> EncoderConfig:
    # sinusoidal_pos_embds needs no reading: that table is saved among the weights like any other.
    return EncoderConfig(
        **fields.sizes(),
        mlp_width=fields.size("hidden_dim"),
        activation=fields.activation("activation"),
    )


# ------------------------------------------------------------------- BERT and those that follow it


def _read_common(fields: Fields) -> dict[str, Any]:
    """The tensors that BERT and its followers name alike."""
    fields.refuse("is_decoder", "attention to earlier tokens alone")
    fields.refuse("add_cross_attention", "cross-attention")
    fields.choice("position_embedding_type", ("absolute",), "absolute")
    return fields.sizes() | {
        "mlp_width": fields.size("intermediate_size"),
        "activation": fields.activation("hidden_act"),
        "norm_epsilon": fields.positive("layer_norm_eps"),
    }


def _read_bert(fields: Fields) -> EncoderConfig:
    types = fields.size("type_vocab_size")
    return EncoderConfig(**_read_common(fields), token_types=types, head_activation="tanh")


def _read_roberta(fields: Fields) -> EncoderConfig:
    padding, rows = fields.config.pad_token_id, fields.size("max_position_embeddings")
    if padding is None or padding < 0:
        raise fields.error("pad_token_id", "give a token id; RoBERTa's positions begin behind it")
    if rows <= padding + 1:
        raise fields.error(
            "max_position_embeddings", f"give more than {padding + 1}, where positions begin"
        )
    positions = {"max_positions": rows - padding - 1, "first_position": padding + 1}
    types = fields.size("type_vocab_size")
    common = _read_common(fields) | positions
    return EncoderConfig(**common, token_types=types, head_activation="tanh")


# ---------------------------------------------------------------------------------------- DeBERTa


def _read_deberta(fields: Fields) -> EncoderConfig:
    common = _read_common(fields)
    width = common["width"]
    fields.refuse("conv_kernel_size", "a convolution")
    for name, value, what in (
        ("embedding_size", width, "the width"),
        ("pooler_hidden_size", width, "the width"),
        ("attention_head_size", width // common["num_heads"], "the width over the heads"),
    ):
        if name in fields.settings and fields.size(name) != value:
            raise fields.error(name, f"only {what} {value} is supported; use a model with it")
    return EncoderConfig(
        **common,
        position_table=fields.config.position_biased_input,
        token_types=fields.size("type_vocab_size", least=0),
        relative=_read_relative(fields, common["max_positions"]),
        head_activation=fields.activation("pooler_hidden_act"),
    )


def _read_relative(fields: Fields, positions: int) -> RelativePositions | None:
    terms = fields.config.pos_att_type or []
    if any(term not in TERMS for term in terms):
        raise fields.error("pos_att_type", f"give some of {' and '.join(TERMS)}, or none")
    normed = fields.choice("norm_rel_ebd", ("none", "layer_norm"), "none") == "layer_norm"
    if not fields.config.relative_attention:
        for name, given in (("pos_att_type", terms), ("norm_rel_ebd", normed)):
            if given:
                raise fields.error(name, "has no meaning where relative_attention is not true")
        return None
    reach = max(fields.config.max_relative_positions, 0) or positions
    buckets = fields.settings.get("position_buckets", -1)
    if not isinstance(buckets, int) or isinstance(buckets, bool):
        raise fields.error("position_buckets", "give a whole number; -1 means none")
    buckets = max(buckets, 0)
    # Beyond the middle, buckets are numbered by log(offset / middle) / log((reach - 1) / middle).
    if buckets == 1 or (buckets and reach <= buckets // 2 + 1 < positions):
        raise fields.error(
            "position_buckets", f"give -1 or from 2 to {max(2, 2 * reach - 3)} for {reach} offsets"
        )
    shared = fields.settings.get("share_att_key", False)
    if not isinstance(shared, bool):
        raise fields.error("share_att_key", "give true or false")
    return RelativePositions(
        reach=reach,
        buckets=buckets,
        content_to_position="c2p" in terms,
        position_to_content="p2c" in terms,
        shared=shared,
        normed=normed,
    )


# ---------------------------------------------------------------------------------------- tensors


def _tensors(
    config: EncoderConfig, *, layers: str, names: tuple[str, ...], head: tuple[str, str]
) -> Iterator[Tensor]:
    """Embeddings, the layers whose names begin with `layers`, and the two layers of a head."""
    embeddings = f"{layers.partition('.')[0]}.embeddings"
    yield Tensor(f"{embeddings}.word_embeddings.weight", ("tokens/embedding",))
    if config.position_table:
        yield Tensor(f"{embeddings}.position_embeddings.weight", ("positions/embedding",))
    if config.token_types:
        yield Tensor(f"{embeddings}.token_type_embeddings.weight", ("types/embedding",))
    yield from norm(f"{embeddings}.LayerNorm", "norm_0")
    for index in range(config.num_layers):
        for theirs, ours in zip(names, PARTS, strict=True):
            part = norm if ours.startswith("norm") else dense
            yield from part(f"{layers}.{index}.{theirs}", f"layer_{index}/{ours}")
    for theirs, ours in zip(head, ("pre_classifier", "classifier"), strict=True):
        yield from dense(theirs, ours)
    if config.relative is not None:
        yield from _relative_tensors(config, config.relative, layers)


def _relative_tensors(
    config: EncoderConfig, relative: RelativePositions, layers: str
) -> Iterator[Tensor]:
    """DeBERTa's table of relative positions, and its projections where they are not shared."""
    encoder = layers.removesuffix(".layer")
    yield Tensor(f"{encoder}.rel_embeddings.weight", ("relative/positions/embedding",))
    if relative.normed:
        yield from norm(f"{encoder}.LayerNorm", "relative/norm")
    for index in range(0 if relative.shared else config.num_layers):
        theirs, ours = f"{layers}.{index}.attention.self", f"layer_{index}/attention/positions"
        if relative.content_to_position:
            yield from dense(f"{theirs}.pos_key_proj", f"{ours}/key")
        if relative.position_to_content:
            yield from dense(f"{theirs}.pos_query_proj", f"{ours}/query")


def _encoder(
    stem: str,
    read_config: Callable[[Fields], EncoderConfig],
    layers: str,
    names: tuple[str, ...],
    head: tuple[str, str],
    *,
    ignored: str = "",
) -> Family:
    """A family of encoders; `ignored` is what its folders may hold that no classifier reads."""
    ignored = r"embeddings\.(position|token_type)_ids" + ignored
    tensors = functools.partial(_tensors, layers=layers, names=names, head=head)
    return family(stem, f"{layers.partition('.')[0]}.", ignored, read_config, tensors)


FAMILIES: dict[str, Family] = {
    "distilbert": _encoder(
        "DistilBert",
        _read_distilbert,
        "distilbert.transformer.layer",
        DISTILBERT,
        ("pre_classifier", "classifier"),
    ),
    "bert": _encoder(
        "Bert",
        _read_bert,
        "bert.encoder.layer",
        BERT + OUTPUTS,
        ("bert.pooler.dense", "classifier"),
    ),
    "roberta": _encoder(
        "Roberta",
        _read_roberta,
        "roberta.encoder.layer",
        BERT + OUTPUTS,
        ("classifier.dense", "classifier.out_proj"),
        # The language model's pooler; the classifier has its own.
        ignored=r"|pooler\.dense\.(weight|bias)",
    ),
    "deberta-v2": _encoder(
        "DebertaV2",
        _read_deberta,
        "deberta.encoder.layer",
        tuple(f"{name}_proj" for name in BERT) + OUTPUTS,
        ("pooler.dense", "classifier"),
        # The language model's heads, and positions that only they read.
        ignored=r"|embeddings\.position_embeddings\.weight|(lm|mask)_predictions\..+",
    ),
}
