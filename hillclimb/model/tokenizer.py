"""Byte-level BPE with split digits, and the tokens that give text its roles."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
START, SEPARATOR, END = "<|im_start|>", "<|im_sep|>", "<|im_end|>"
THINK, END_THINK = "<think>", "</think>"
ANSWER, END_ANSWER = "<answer>", "</answer>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
RESULT, END_RESULT = "<tool_response>", "</tool_response>"
SPECIAL = (
    END_OF_TEXT, START, SEPARATOR, END, THINK, END_THINK, ANSWER, END_ANSWER, CALL, END_CALL,
    RESULT, END_RESULT,
)  # fmt: skip
_SPLIT = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn merges from `texts`; the same texts in the same order give the same tokenizer.

    The special tokens are never produced from raw text by `encode_text`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


class TextTokenizer:
    """Encodes text and marked-up conversations; keeps raw text free of role tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        known = {token: tokenizer.token_to_id(token) for token in SPECIAL}
        missing = [token for token, number in known.items() if number is None]
        if missing:
            raise ValueError(f"the tokenizer lacks the tokens {', '.join(missing)}")
        self.ids = {token: int(number) for token, number in known.items() if number is not None}
        self.end_of_text = self.ids[END_OF_TEXT]

    @classmethod
    def load(cls, path: Path) -> TextTokenizer:
        """Read `tokenizer.json` (or a folder that holds it)."""
        return cls(Tokenizer.from_file(str(path / "tokenizer.json" if path.is_dir() else path)))

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return int(self.tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Tokens of text whose special tokens count as such (prompts and worksheets)."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_text(self, text: str) -> list[int]:
        """Tokens of foreign text: whatever looks like a special token is broken up."""
        for token in SPECIAL:
            if token in text:
                text = text.replace(token, token[0] + " " + token[1:])
        return self.encode(text)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` for many texts at once."""
        return [e.ids for e in self.tokenizer.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        """Text of tokens, special ones included."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` for Hugging Face loaders."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        config = (
            '{"tokenizer_class": "PreTrainedTokenizerFast", '
            f'"eos_token": "{END}", "pad_token": "{END_OF_TEXT}"}}\n'
        )
        (folder / "tokenizer_config.json").write_text(config)
