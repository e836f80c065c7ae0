"""The families of encoders with a classifier: BERT, RoBERTa, DistilBERT, and DeBERTa v2 and v3."""

from collections.abc import Iterator
from typing import Any

from vbon_jax.models.disentangled import RelativePositions
from vbon_jax.models.encoder import EncoderConfig
from vbon_jax.models.huggingface.families import Family, Fields, Tensor, dense, family, norm

TERMS = ("c2p", "p2c")  # of DeBERTa's scores: content to position, and position to content

# ------------------------------------------------------------------------------------- DistilBERT


def _read_distilbert(fields: Fields) -> EncoderConfig:
    fields.refuse("pruned_heads", "pruning of heads")
    # sinusoidal_pos_embds needs no reading: that table is saved among the weights like any other.
    return EncoderConfig(
        **fields.sizes(),
        mlp_width=fields.size("hidden_dim"),
        activation=fields.activation("activation"),
    )


def _distilbert_tensors(config: EncoderConfig) -> Iterator[Tensor]:
    """DistilBERT keeps dense layers as [outputs, inputs]."""
    embeddings = "distilbert.embeddings"
    yield Tensor(f"{embeddings}.word_embeddings.weight", ("tokens/embedding",))
    yield Tensor(f"{embeddings}.position_embeddings.weight", ("positions/embedding",))
    yield from norm(f"{embeddings}.LayerNorm", "norm_0")
    for index in range(config.num_layers):
        theirs, ours = f"distilbert.transformer.layer.{index}", f"layer_{index}"
        yield from dense(f"{theirs}.attention.q_lin", f"{ours}/attention/query")
        yield from dense(f"{theirs}.attention.k_lin", f"{ours}/attention/key")
        yield from dense(f"{theirs}.attention.v_lin", f"{ours}/attention/value")
        yield from dense(f"{theirs}.attention.out_lin", f"{ours}/attention/output")
        yield from norm(f"{theirs}.sa_layer_norm", f"{ours}/norm_1")
        yield from dense(f"{theirs}.ffn.lin1", f"{ours}/mlp/up")
        yield from dense(f"{theirs}.ffn.lin2", f"{ours}/mlp/down")
        yield from norm(f"{theirs}.output_layer_norm", f"{ours}/norm_2")
    yield from dense("pre_classifier", "pre_classifier")
    yield from dense("classifier", "classifier")


# ------------------------------------------------------------------- BERT and those that follow it


def _read_common(fields: Fields) -> dict[str, Any]:
    """What BERT and its followers name alike."""
    fields.refuse("pruned_heads", "pruning of heads")
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


def _bert_tensors(
    config: EncoderConfig, *, prefix: str, head: tuple[str, str], projection: str = ""
) -> Iterator[Tensor]:
    """BERT's names; `projection` follows query, key and value."""
    embeddings = f"{prefix}embeddings"
    yield Tensor(f"{embeddings}.word_embeddings.weight", ("tokens/embedding",))
    if config.position_table:
        yield Tensor(f"{embeddings}.position_embeddings.weight", ("positions/embedding",))
    if config.token_types:
        yield Tensor(f"{embeddings}.token_type_embeddings.weight", ("types/embedding",))
    yield from norm(f"{embeddings}.LayerNorm", "norm_0")
    for index in range(config.num_layers):
        theirs, ours = f"{prefix}encoder.layer.{index}", f"layer_{index}"
        for part in ("query", "key", "value"):
            name = f"{theirs}.attention.self.{part}{projection}"
            yield from dense(name, f"{ours}/attention/{part}")
        yield from dense(f"{theirs}.attention.output.dense", f"{ours}/attention/output")
        yield from norm(f"{theirs}.attention.output.LayerNorm", f"{ours}/norm_1")
        yield from dense(f"{theirs}.intermediate.dense", f"{ours}/mlp/up")
        yield from dense(f"{theirs}.output.dense", f"{ours}/mlp/down")
        yield from norm(f"{theirs}.output.LayerNorm", f"{ours}/norm_2")
    for theirs, ours in zip(head, ("pre_classifier", "classifier"), strict=True):
        yield from dense(theirs, ours)


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


def _deberta_tensors(config: EncoderConfig) -> Iterator[Tensor]:
    """BERT's names, with a table of relative positions and maybe projections of its own."""
    yield from _bert_tensors(
        config, prefix="deberta.", projection="_proj", head=("pooler.dense", "classifier")
    )
    relative, table = config.relative, "deberta.encoder.rel_embeddings.weight"
    if relative is None:
        return
    yield Tensor(table, ("relative/positions/embedding",))
    if relative.normed:
        yield from norm("deberta.encoder.LayerNorm", "relative/norm")
    for index in range(0 if relative.shared else config.num_layers):
        theirs = f"deberta.encoder.layer.{index}.attention.self"
        ours = f"layer_{index}/attention/positions"
        if relative.content_to_position:
            yield from dense(f"{theirs}.pos_key_proj", f"{ours}/key")
        if relative.position_to_content:
            yield from dense(f"{theirs}.pos_query_proj", f"{ours}/query")


BUFFERS = r"embeddings\.(position|token_type)_ids"

FAMILIES: dict[str, Family] = {
    "distilbert": family(
        "DistilBert", "distilbert.", BUFFERS, _read_distilbert, _distilbert_tensors
    ),
    "bert": family(
        "Bert",
        "bert.",
        BUFFERS,
        _read_bert,
        lambda config: _bert_tensors(
            config, prefix="bert.", head=("bert.pooler.dense", "classifier")
        ),
    ),
    "roberta": family(
        "Roberta",
        "roberta.",
        # The language model's pooler; the classifier has its own.
        BUFFERS + r"|pooler\.dense\.(weight|bias)",
        _read_roberta,
        lambda config: _bert_tensors(
            config, prefix="roberta.", head=("classifier.dense", "classifier.out_proj")
        ),
    ),
    "deberta-v2": family(
        "DebertaV2",
        "deberta.",
        # The language model's heads, and positions that only they read.
        BUFFERS + r"|embeddings\.position_embeddings\.weight|(lm|mask)_predictions\..+",
        _read_deberta,
        _deberta_tensors,
    ),
}
