"""From texts to the input of an encoder: tokens, truncated and padded; stored with every model."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.index.index import Index
from unfreeze.data.sources.source import Source
from unfreeze.data.texts.source import TextSource, Tokens
from unfreeze.errors import UsageError, WeightsError

PADDING = -1  # token id of positions after the end of a text
TOKENIZER = "tokenizer.json"  # in the folder of a model
INSTALL = "Install it: pip install 'unfreeze[text]'."


@dataclass(frozen=True)
class TextPreprocess(Preprocess):
    """Tokens of texts, at most `image_size` of each (the other fields do not apply).

    `tokenizer`: one of the package tokenizers, without truncation and padding.
    """

    fit: str = "text"
    tokenizer: Any = None

    @property
    def max_length(self) -> int:
        """The largest number of tokens of a text, special tokens included."""
        return self.image_size

    def encode(self, text: str, pair: str | None = None) -> Tokens:
        """Tokens int32 [L, 2] of a text or pair, L <= max_length: ids, and 0 or 1 for each text."""
        encoded = self.tokenizer.encode(text, pair)
        return np.array([encoded.ids, encoded.type_ids], np.int32).T.copy()

    def pixels(self, source: Any) -> Any:
        """The tokens of a text, unchanged."""
        return source

    def collate(self, samples: Sequence[Any]) -> torch.Tensor:
        """int32 [B, L, 2] of texts, padded to the longest."""
        longest = max(len(sample) for sample in samples)
        batch = np.full((len(samples), longest, 2), PADDING, np.int32)
        for row, sample in enumerate(samples):
            batch[row, : len(sample)] = sample
        return torch.from_numpy(batch)

    def model_input(self, batch: torch.Tensor) -> torch.Tensor:
        """The batch itself: the network masks padding."""
        return batch

    def attach(self, source: Source) -> None:
        """Make a source encode its texts."""
        if not isinstance(source, TextSource):
            raise UsageError(
                "This model is for texts.", "Give a table with a column of texts, or .txt files."
            )
        source.encode = self.encode

    def as_dict(self) -> dict[str, Any]:
        """Plain values for model.json; the tokenizer is a file beside it."""
        return {"kind": "text", "max_length": self.max_length}

    def save(self, folder: Path) -> None:
        """Write tokenizer.json into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / TOKENIZER))


def text_preprocess(tokenizer: Any, max_length: int) -> TextPreprocess:
    """The preprocessing of a tokenizer, whose truncation and padding are replaced."""
    # its threads do not survive the fork of a loading worker
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer.no_padding()
    # pairs: the longer text loses its end first
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    return TextPreprocess(image_size=max_length, resize=max_length, tokenizer=tokenizer)


def load_text_preprocess(folder: Path, values: dict[str, Any]) -> TextPreprocess:
    """The preprocessing of a saved model: `as_dict()`, and tokenizer.json of its folder."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UsageError("Text classification needs the package tokenizers.", INSTALL) from error
    path = folder / TOKENIZER
    if not path.is_file():
        raise WeightsError(f"{folder} has no {TOKENIZER}.", "Copy the whole model/ folder again.")
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises plain Exception
        raise WeightsError(
            f"{path} is damaged: {error}.", "Copy the whole model/ folder again."
        ) from error
    return text_preprocess(tokenizer, int(values["max_length"]))


def truncated_share(index: Index, preprocess: Preprocess) -> float | None:
    """The share of the texts of an index that are truncated; None for images."""
    if not isinstance(preprocess, TextPreprocess) or not isinstance(index.source, TextSource):
        return None
    return token_counts(preprocess, index.source, index.rows.tolist())[1]


def token_counts(
    preprocess: TextPreprocess, source: TextSource, rows: Iterable[int]
) -> tuple[float, float]:
    """(mean number of tokens, share of truncated texts) of some rows."""
    pairs = source.pairs
    texts = [(source.texts[row], pairs[row]) if pairs else source.texts[row] for row in rows]
    encoded = preprocess.tokenizer.encode_batch(texts)
    tokens = np.array([len(one.ids) for one in encoded], np.float64)
    cut = np.array([bool(one.overflowing) for one in encoded], np.float64)
    return (float(tokens.mean()), float(cut.mean())) if texts else (0.0, 0.0)
