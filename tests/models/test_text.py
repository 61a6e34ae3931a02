"""Text encoders of many families: pooling, padding, decoders without a padding token."""

import pytest
import torch

from unfreeze.errors import WeightsError
from unfreeze.models.text import TextClassifier, choose_pooling, layers_of, pooled
from unfreeze.transfer.freezing.freeze import select_frozen

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
SMALL |= {"intermediate_size": 32, "max_position_embeddings": 40}
FAMILIES = {
    "bert": SMALL,
    "roberta": {**SMALL, "pad_token_id": 1},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50},
    "deberta-v2": {**SMALL, "relative_attention": True, "position_buckets": 8},
    "modernbert": {**SMALL, "pad_token_id": 0, "local_attention": 8},
    "electra": {**SMALL, "embedding_size": 16},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 40,
             "bos_token_id": 3, "eos_token_id": 3},
    "qwen2": {**SMALL, "num_key_value_heads": 2},
}  # fmt: skip


def network(family, classes=3):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family])
    encoder = transformers.AutoModel.from_config(config)
    return TextClassifier(encoder, choose_pooling(config, None)[0], classes).eval()


def tokens(lengths, longest):
    draw = torch.Generator().manual_seed(1)
    batch = torch.full((len(lengths), longest, 2), -1, dtype=torch.int32)
    for row, length in enumerate(lengths):
        batch[row, :length, 0] = torch.randint(4, 50, (length,), generator=draw).int()
        batch[row, :length, 1] = 0
    return batch


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_no_output(family):
    """Each text alone, all in one batch, and all padded further give the same."""
    model, lengths = network(family), (3, 9, 5, 12)
    batch = tokens(lengths, 12)
    wider = torch.cat([batch, torch.full((4, 6, 2), -1, dtype=torch.int32)], 1)
    with torch.inference_mode():
        together, padded = model(batch), model(wider)
        alone = torch.cat([model(batch[row : row + 1, :n]) for row, n in enumerate(lengths)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together, padded, atol=1e-5)
    assert together.std(0).min() > 1e-6  # the texts do differ


def test_many_texts_are_sorted_by_length_and_come_back_in_order():
    model, lengths = network("bert"), [3 + (7 * n) % 20 for n in range(100)]
    batch = tokens(lengths, 22)
    with torch.inference_mode():
        sorted_ones = model(batch)
        alone = torch.cat([model(batch[n : n + 1, : lengths[n]]) for n in range(100)])
    assert torch.allclose(sorted_ones, alone, atol=1e-5)


@pytest.mark.parametrize("family, pooling", [("bert", "mean"), ("gpt2", "last"), ("qwen2", "last")])
def test_decoders_are_pooled_where_they_have_seen_the_whole_text(family, pooling):
    assert network(family).pooling == pooling


def test_the_three_poolings():
    hidden = torch.arange(12.0).reshape(1, 4, 3)
    mask = torch.tensor([[True, True, True, False]])
    assert pooled(hidden, mask, "cls").tolist() == [[0, 1, 2]]
    assert pooled(hidden, mask, "last").tolist() == [[6, 7, 8]]
    assert pooled(hidden, mask, "mean").tolist() == [[3, 4, 5]]


@pytest.mark.parametrize("family", FAMILIES)
def test_stage_n_freezes_embeddings_and_the_first_n_layers(family):
    model = network(family)
    before, layers, after = layers_of(model.encoder)
    assert before and len(layers) == 2
    names = {name for name, _ in model.named_parameters()}
    frozen = select_frozen(model, "stage:1", head=("head",))
    last = {name for name in names if name.startswith(f"encoder.{layers[1]}.")}
    first = {name for name in names if name.startswith(f"encoder.{layers[0]}.")}
    assert first <= set(frozen) and not last & set(frozen)
    assert {f"encoder.{name}" for name in before} <= set(frozen)
    assert not {f"encoder.{name}" for name in after} & set(frozen)


@pytest.mark.parametrize(
    "text, pooling, why",
    [
        ('{"pooling_mode_cls_token": true}', "cls", "sentence encoder"),
        ('{"pooling_mode_mean_tokens": true, "word_embedding_dimension": 8}', "mean", "sentence"),
        ('{"pooling_mode_max_tokens": true}', "mean", "(max_tokens) is not built"),
    ],
)
def test_pooling_is_read_from_the_files_of_a_sentence_encoder(tmp_path, text, pooling, why):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(text)
    config = transformers.AutoConfig.for_model("bert")
    chosen, reason = choose_pooling(config, tmp_path)
    assert chosen == pooling and why in reason


def test_a_damaged_file_of_pooling_is_no_reason_to_guess(tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls')
    with pytest.raises(WeightsError, match="1_Pooling"):
        choose_pooling(transformers.AutoConfig.for_model("bert"), tmp_path)


def test_the_unused_pooler_is_no_parameter():
    """It would get no gradient, and several processes would wait for one."""
    assert not [name for name, _ in network("bert").named_parameters() if "pooler" in name]
