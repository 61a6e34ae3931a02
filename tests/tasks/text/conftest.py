"""A tiny BERT with a vocabulary of words, and texts that a few words decide."""

import numpy as np
import pytest
import torch

GOOD, BAD = ("good", "great", "lovely"), ("bad", "awful", "dull")
PLAIN = ("the", "film", "was", "a", "plot", "and", "its", "end", "we", "saw", "it", "in", "may")
WORDS = (*GOOD, *BAD, *PLAIN)


def sentence(draw, words, length):
    """A text of `length` words, one of them of `words`."""
    chosen = list(draw.choice(PLAIN, length))
    chosen[int(draw.integers(length))] = str(draw.choice(words))
    return " ".join(chosen)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A folder with config.json, tokenizer.json and model.safetensors, as transformers writes."""
    return make_encoder(tmp_path_factory.mktemp("encoder") / "tiny-bert")


def make_encoder(folder, **options):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary = {word: number for number, word in enumerate((*special, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    named = {f"{name[1:-1].lower()}_token": name for name in special}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=32, **named
    ).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "max_position_embeddings": 32}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(vocabulary), pad_token_id=0, **sizes, **options)
    # larger than usual, so that features of random weights tell words apart
    config.initializer_range = 0.3
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reviews(tmp_path_factory):
    """A CSV of 96 texts for train, 32 for val and 32 for test, in two classes."""
    folder, draw = tmp_path_factory.mktemp("reviews"), np.random.default_rng(0)
    lines = ["text,label,split"]
    for split, count in (("train", 48), ("val", 16), ("test", 16)):
        for _ in range(count):
            for label, words in (("negative", BAD), ("positive", GOOD)):
                text = sentence(draw, words, int(draw.integers(3, 12)))
                lines.append(f'"{text}",{label},{split}')
    (folder / "reviews.csv").write_text("\n".join(lines) + "\n")
    return folder / "reviews.csv"
