"""A folder's tokenizer is its tokenizer.json, whatever class transformers would rebuild it by."""

import json

import pytest
import tokenizers
import transformers

from tests.cases import tokenizer_files
from tests.cases.tokenizer_files import END
from tests.tiny_config import check_refusal
from vbon_jax.data import tokenizers as fresh
from vbon_jax.models.huggingface import exact_tokenizer, model_folder

CLASSES = (None, "PreTrainedTokenizerFast", "GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizerFast")


def check_exact(folder, raw):
    """The folder's tokenizer has the ids of `raw`, special tokens too, and decodes as it does."""
    tokenizer = model_folder.load_tokenizer(folder)
    for text in exact_tokenizer.PROBES:
        ids = raw.encode(text).ids
        assert tokenizer(text)["input_ids"] == ids
        assert tokenizer(text, truncation=True, max_length=3)["input_ids"] == ids[:3]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == raw.decode(
            ids, skip_special_tokens=False
        )
    assert tokenizer.get_vocab() == raw.get_vocab()
    return tokenizer


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("name", tokenizer_files.RAW)
def test_the_ids_are_those_of_the_file(tmp_path, model_type, name):
    """Whatever class is named; and so are those of the folder that is saved."""
    raw = tokenizer_files.RAW[name]()
    for named in CLASSES:
        folder = tmp_path / str(named)
        tokenizer_files.write(
            folder, raw, model_type, **({"tokenizer_class": named} if named else {})
        )
        tokenizer = check_exact(folder, raw)
        tokenizer.save_pretrained(folder / "saved")
        (folder / "config.json").rename(folder / "saved" / "config.json")
        check_exact(folder / "saved", raw)


def test_what_the_folder_says_beside_the_file_is_kept(tmp_path):
    """Its chat template, its special tokens, and one that the file lacks, behind its own."""
    raw = tokenizer_files.single_digits()
    size = raw.get_vocab_size()
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer_files.write(tmp_path, raw, "qwen2", chat_template=template, pad_token="<pad>")
    check_refusal(
        lambda: model_folder.load_tokenizer(tmp_path), "'<pad>'", f"id {size}", f"= {size};"
    )
    tokenizer_files.write_config(tmp_path, "qwen2", size + 1)
    tokenizer = model_folder.load_tokenizer(tmp_path)
    assert tokenizer.chat_template == template
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, size)
    assert tokenizer("a<pad>b")["input_ids"].count(size) == 1


def test_a_class_gives_no_token_that_the_file_lacks(tmp_path):
    """GPT-NeoX's class has a padding token by default; it had the first id beyond the file's."""
    tokenizer_files.write(tmp_path, tokenizer_files.single_digits(), "gpt_neox")
    tokenizer = model_folder.load_tokenizer(tmp_path)
    assert tokenizer.pad_token is None
    assert (tokenizer.bos_token, tokenizer.eos_token) == (END, END)


def test_a_class_that_cannot_hold_the_file(tmp_path):
    """Gemma's wants <unk>, and BERT's wants [UNK]; the file needs neither."""
    for model_type in ("gemma2", "bert"):
        raw = tokenizer_files.single_digits()
        tokenizer_files.write(tmp_path / model_type, raw, model_type)
        check_exact(tmp_path / model_type, raw)


def test_the_flags_of_special_tokens_are_the_files(tmp_path):
    """Here an end that takes the space before it along; transformers would write its own flags."""
    raw = tokenizer_files.byte_level()
    raw.add_special_tokens([tokenizers.AddedToken(END, lstrip=True, normalized=True)])
    tokenizer_files.write(tmp_path, raw, "gpt2", tokenizer_class="GPT2Tokenizer", eos_token=END)
    tokenizer = check_exact(tmp_path, raw)
    assert tokenizer(f"a {END}")["input_ids"] == raw.encode(f"a {END}").ids
    assert len(raw.encode(f"a {END}").ids) == 2


def test_random_ids_are_refused(tmp_path):
    tokenizer_files.write(tmp_path, tokenizer_files.byte_level(), "gpt2")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["dropout"] = 0.1
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    check_refusal(lambda: model_folder.load_tokenizer(tmp_path), "tokenizer.json", "dropout = 0.1")


def test_a_hole_in_the_ids_does_not_hide_the_last(tmp_path):
    """Fewer tokens than the embedding has rows, and one of them beyond its end."""
    vocabulary = {END: 0, "a": 1, "film": 9}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, END))
    tokenizer_files.write(tmp_path, raw, "gpt2")
    for size, words in ((5, ["'film' with id 9", "vocab_size = 5"]), (10, [])):
        tokenizer_files.write_config(tmp_path, "gpt2", size)
        if words:
            check_refusal(lambda: model_folder.load_tokenizer(tmp_path), *words)
    assert model_folder.load_tokenizer(tmp_path).get_vocab() == vocabulary


# -------------------------------------------------------------------------------- SentencePiece


LIKE_DEBERTA = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "pad_piece": "[PAD]"}
LIKE_DEBERTA |= {"bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
LIKE_LLAMA = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}


@pytest.mark.parametrize(
    ("model_type", "kind", "options", "settings", "around"),
    [
        ("deberta-v2", "unigram", LIKE_DEBERTA, {}, ([1], [2])),
        (
            "llama",
            "bpe",
            LIKE_LLAMA,
            {"tokenizer_class": "LlamaTokenizer", "legacy": False},
            ([1], []),
        ),
        ("mistral", "bpe", LIKE_LLAMA, {}, ([1], [])),
        ("llama", "bpe", LIKE_LLAMA, {"add_bos_token": False}, ([], [])),
    ],
)
def test_a_sentencepiece_model_alone(tmp_path, model_type, kind, options, settings, around):
    """The ids of its own library, between the special tokens of the family; and saved again."""
    import sentencepiece

    model = tokenizer_files.sentencepiece_model(kind, **options)
    exact = sentencepiece.SentencePieceProcessor(model_proto=model)
    (tmp_path / f"{'spm' if kind == 'unigram' else 'tokenizer'}.model").write_bytes(model)
    tokenizer_files.write_config(tmp_path, model_type, exact.get_piece_size() + 1)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    before, after = around
    for folder in (tmp_path, tmp_path / "saved"):
        tokenizer = model_folder.load_tokenizer(folder)
        for text in (*exact_tokenizer.PROBES, " a", "a\n", "\ta  b"):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert ids == exact.encode(text)
            assert tokenizer(text)["input_ids"] == before + ids + after
        text = "it cost 1234"
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
        tokenizer_files.write_config(tmp_path / "saved", model_type, exact.get_piece_size() + 1)
        tokenizer.save_pretrained(tmp_path / "saved")


# ------------------------------------------------------------------------------ fresh tokenizers


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "llama", "qwen2", "qwen3", "gemma2"])
def test_a_fresh_tokenizer_is_read_back_as_it_was_trained(tmp_path, model_type):
    """By this package and by transformers."""
    trained = fresh.train_tokenizer(tokenizer_files.TEXTS, vocab_size=300, family=model_type)
    trained.save_pretrained(tmp_path)
    tokenizer_files.write_config(tmp_path, model_type, len(trained))
    for read in (model_folder.load_tokenizer, transformers.AutoTokenizer.from_pretrained):
        tokenizer = read(tmp_path)
        for text in exact_tokenizer.PROBES:
            assert tokenizer(text)["input_ids"] == trained(text)["input_ids"]
        assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0
