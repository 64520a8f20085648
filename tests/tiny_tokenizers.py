"""Tiny tokenizers of all kinds, as models come with them."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPACE = "\u2581"
PIECES = [SPACE, SPACE + "a", "a", "b", SPACE + "the", "re", "é", "你", SPACE + SPACE, ".", "<tool>"]


def byte_fallback() -> PreTrainedTokenizerFast:
    """As SentencePiece models come: what is not in the vocabulary is spelt in byte tokens."""
    specials = ["<unk>", "<s>", "</s>"]
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")


def word_pieces() -> PreTrainedTokenizerFast:
    """As BERT's: a space belongs to the token after it, and `##` glues."""
    tokens = ["[UNK]", "[SEP]", "a", "the", "##re", "##b", ".", "é", "你"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens([AddedToken("[SEP]", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", eos_token="[SEP]")


def metaspace(prepend_scheme: str) -> PreTrainedTokenizerFast:
    """As Unigram models of SentencePiece come: a space begins a piece, and a text's first one is dropped."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), *((piece, -1.0) for piece in PIECES)]
    made = Tokenizer(models.Unigram(pieces, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    made.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    made.add_special_tokens([AddedToken("<unk>", special=True), AddedToken("<s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>")


def byte_level(*, add_prefix_space: bool) -> PreTrainedTokenizerFast:
    """As GPT-2 and GPT-NeoX come: every byte has a character, and a space is one of them."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    made = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")


KINDS = {
    "byte fallback": byte_fallback(),
    "word pieces": word_pieces(),
    "unigram, first": metaspace("first"),
    "unigram, always": metaspace("always"),
    "byte level": byte_level(add_prefix_space=False),
    "byte level, prefix space": byte_level(add_prefix_space=True),
}
