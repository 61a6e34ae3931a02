"""Text classifiers: an encoder of Hugging Face transformers, pooled, and a linear head.

`hf/NAME_OR_FOLDER` names an encoder: BERT, RoBERTa, DistilBERT, DeBERTa, ModernBERT, MiniLM and
others, and decoders such as GPT-2 or Qwen.
"""

import contextlib
import inspect
import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from unfreeze.errors import UsageError, WeightsError

LIBRARY = "hf"
INSTALL = "Install it: pip install 'unfreeze[text]'."
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
POOLINGS = ("mean", "cls", "last")
_MODE = "pooling_mode_"  # of sentence-transformers
_MODES = {f"{_MODE}cls_token": "cls", f"{_MODE}mean_tokens": "mean", f"{_MODE}lasttoken": "last"}
LONGEST = 512  # tokens; default limit of the length of a text
ROWS = 32  # texts of similar length in a forward pass without gradients
EXAMPLE = 32  # tokens of example inputs, until the texts are known


def is_text_arch(arch: str) -> bool:
    """Whether a name is `hf/NAME_OR_FOLDER`."""
    return arch.partition("/")[0] == LIBRARY and "/" in arch


def encoder_name(arch: str) -> str:
    """The name or folder in `hf/NAME_OR_FOLDER`; UsageError if it is empty."""
    name = arch.partition("/")[2]
    if not name:
        raise UsageError(
            f"'{arch}' names no encoder.",
            "Names look like hf/bert-base-uncased, or hf/FOLDER for a folder with config.json.",
        )
    return name


def is_encoder_folder(folder: Path) -> bool:
    """Whether a folder holds a text encoder of transformers: config.json and tokenizer.json."""
    return all((folder / name).is_file() for name in ("config.json", "tokenizer.json"))


class TextClassifier(nn.Module):
    """Maps tokens int32 [B, L, 2] to logits [B, classes].

    The tokens: ids (negative: padding) and, for encoders that know it, which text of a pair each
    is of. `pooling`: mean of the tokens, the first one (cls), or the last one.
    """

    def __init__(self, encoder: nn.Module, pooling: str, classes: int) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise WeightsError(f"The model's pooling {pooling!r} is unknown.")
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # type: ignore[assignment]  # unused: it would get no gradient
        self.encoder, self.pooling, self.example_tokens = encoder, pooling, EXAMPLE
        config: Any = encoder.config
        width = getattr(config, "hidden_size", None) or getattr(config, "dim", None)
        if not isinstance(width, int):
            raise UsageError(f"{type(encoder).__name__} has no hidden_size.", "Use another --arch.")
        self.pad = _pad_token(config)
        self.segments = (
            "token_type_ids" in inspect.signature(encoder.forward).parameters
            and (getattr(config, "type_vocab_size", 0) or 0) > 1
        )
        head = nn.Linear(width, classes)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
        self.head: nn.Module = head

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, classes] of tokens [B, L, 2]."""
        logits: Tensor = self.head(self.features(tokens))
        return logits

    def features(self, tokens: Tensor) -> Tensor:
        """The pooled output [B, D] of the encoder.

        Without gradients, texts of similar length go together, so that little is padding.
        """
        if torch.is_grad_enabled() or len(tokens) <= ROWS or tokens.is_meta:
            return self._pooled(tokens)
        lengths = (tokens[..., 0] >= 0).sum(1)
        order = torch.argsort(lengths, stable=True)
        parts = [
            self._pooled(tokens[rows, : int(lengths[rows].max())])
            for rows in torch.split(order, ROWS)
        ]
        return torch.cat(parts)[torch.argsort(order)]

    def _pooled(self, tokens: Tensor) -> Tensor:
        return self.encode(*text_inputs(tokens, self.pad))

    def encode(self, ids: Tensor, mask: Tensor, segments: Tensor | None = None) -> Tensor:
        """The pooled output [B, D] of ids int64 [B, L], mask [B, L] of tokens, and segments."""
        # on the meta device a mask has no values, and encoders ask whether it is needed at all
        inputs = {TEXT_INPUTS[0]: ids, TEXT_INPUTS[1]: None if mask.is_meta else mask}
        if self.segments and segments is not None:
            inputs[TEXT_INPUTS[2]] = segments
        hidden: Tensor = self.encoder(**inputs).last_hidden_state
        return pooled(hidden, mask.bool(), self.pooling)

    def example_input(self, count: int, device: torch.device) -> Tensor:
        """Random tokens [count, example_tokens, 2] on a device, the same at each call."""
        draw = torch.Generator().manual_seed(0)
        config: Any = self.encoder.config
        ids = torch.randint(0, int(config.vocab_size), (count, self.example_tokens), generator=draw)
        tokens = torch.stack([ids, torch.zeros_like(ids)], 2).int()
        return tokens.to(device)


class TextInputs(nn.Module):
    """A classifier with the inputs that other tools give text encoders, for exports."""

    def __init__(self, network: TextClassifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor | None = None) -> Tensor:
        """Logits [B, classes] of ids, mask and segments, int64 [B, L]."""
        logits: Tensor = self.network.head(self.network.encode(ids, mask, segments))
        return logits


def text_inputs(tokens: Tensor, pad: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, mask, segments), int64 [B, L], of tokens int32 [B, L, 2]."""
    mask = tokens[..., 0] >= 0
    ids = tokens[..., 0].long().masked_fill(~mask, pad)
    return ids, mask.long(), tokens[..., 1].long().masked_fill(~mask, 0)


def pooled(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector [B, D] of each text, of hidden states [B, L, D] and the mask [B, L] of tokens."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        last = mask.long().sum(1).sub(1).clamp(min=0)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    weights = mask.unsqueeze(2).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def _pad_token(config: Any) -> int:
    """The id that fills padding; it is masked, but some encoders count positions by it."""
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value >= 0:
            return value
    return 0


def is_text_network(model: nn.Module) -> bool:
    """Whether a model is a text classifier."""
    return isinstance(model, TextClassifier)


def layers_of(encoder: nn.Module) -> tuple[list[str], list[str], list[str]]:
    """Names of modules (embeddings, layers, what follows) of an encoder, in forward order."""
    lists = [
        (name, module)
        for name, module in encoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module)
    ]
    if not lists:
        raise UsageError(f"{type(encoder).__name__} has no list of layers.", "Use another --arch.")
    name, blocks = max(lists, key=lambda entry: sum(p.numel() for p in entry[1].parameters()))
    layers = [f"{name}.{number}" for number in range(len(blocks))]
    parameters = [part for part, _ in encoder.named_parameters()]
    inside = [number for number, part in enumerate(parameters) if part.startswith(f"{name}.")]
    before = parameters[: inside[0]]
    after = list(parameters[inside[-1] + 1 :])
    shared = [
        part for part in parameters[inside[0] : inside[-1]] if not part.startswith(f"{name}.")
    ]
    return before + shared, layers, after


# ------------------------------------------------------------------------- loading


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder, its tokenizer (of the package tokenizers), and what its weights were trained for.

    `share`: of its parameters that the weights have; 1 if all. `why`: reason of `pooling`.
    """

    encoder: nn.Module
    tokenizer: Any
    max_length: int
    pooling: str
    why: str
    share: float
    missing: tuple[str, ...] = ()


def transformers_library() -> Any:
    """The imported transformers, quiet; UsageError if it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise UsageError("Text classification needs the package transformers.", INSTALL) from error
    library: Any = transformers
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    return library


def load_encoder_of(name: str, *, trained: bool = True, fetch: bool = True) -> LoadedEncoder:
    """The encoder of a folder, or of the hub of Hugging Face if no folder has this name.

    `trained`: with its weights, else at random. `fetch`: False reads local files only.
    """
    if Path(name).is_file():
        raise WeightsError(
            f"{name} is a file, and a text encoder is a folder.",
            "Give a folder with config.json, tokenizer.json and model.safetensors.",
        )
    library = transformers_library()
    local = Path(name).is_dir()
    options: dict[str, Any] = {"local_files_only": local or not fetch}
    with _readable(name, local=local, fetch=fetch):
        config = library.AutoConfig.from_pretrained(name, **options)
        tokenizer = library.AutoTokenizer.from_pretrained(name, **options)
        share, missing = 1.0, list[str]()
        if trained:
            encoder, info = library.AutoModel.from_pretrained(
                name, config=config, dtype=torch.float32, output_loading_info=True, **options
            )
            unused = {n for n, _ in encoder.named_parameters() if n.startswith("pooler.")}
            missing = sorted(set(info["missing_keys"]) - unused)
            sizes = {n: p.numel() for n, p in encoder.named_parameters() if n not in unused}
            absent = sum(sizes.get(n, 0) for n in missing)
            share = 1 - absent / max(1, sum(sizes.values()))
        else:
            encoder = library.AutoModel.from_config(config, dtype=torch.float32)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise WeightsError(
            f"The tokenizer of {name} has no tokenizer.json.", "Save it with a newer transformers."
        )
    pooling, why = choose_pooling(config, Path(name) if local else None)
    most = max_length_of(config, tokenizer)
    return LoadedEncoder(encoder, backend, most, pooling, why, share, tuple(missing))


# what transformers, tokenizers and safetensors raise for files that are damaged or of another kind
_UNREADABLE = (
    *(OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError, TypeError),
    *(EOFError, pickle.UnpicklingError, SafetensorError),
)


@contextlib.contextmanager
def _readable(name: str, *, local: bool, fetch: bool) -> Iterator[None]:
    """Errors of transformers as ours."""
    try:
        yield
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        if local:
            raise WeightsError(
                f"The encoder in {name} cannot be read: {reason}.",
                "Give a folder with config.json, tokenizer.json and model.safetensors.",
            ) from error
        if not fetch:
            raise WeightsError(
                f"{name} is not on this machine yet, and a dry run downloads nothing.",
                "Check the name, or run without --dry-run.",
            ) from error
        raise WeightsError(
            f"There is no folder {name!r}, and the hub's model of that name cannot be read: "
            f"{reason}.",
            "Check the name and the connection, or give a folder.",
        ) from error


def build_text(config: Mapping[str, Any], pooling: str, classes: int) -> TextClassifier:
    """An untrained classifier of an encoder's configuration, as `config_of` returns it."""
    library = transformers_library()
    values = dict(config)
    kind = values.pop("model_type", "")
    try:
        encoder = library.AutoModel.from_config(
            library.AutoConfig.for_model(kind, **values), dtype=torch.float32
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"transformers cannot build the encoder {kind!r} of this model: {error}.",
            "Install the version of transformers that the model was trained with, or a newer one.",
        ) from error
    return TextClassifier(encoder, pooling, classes)


def config_of(model: TextClassifier) -> dict[str, Any]:
    """The configuration of a classifier's encoder, as plain values."""
    config: Any = model.encoder.config
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    for name in ("_name_or_path", "transformers_version", "architectures", "dtype", "id2label",
                 "label2id"):  # fmt: skip
        values.pop(name, None)
    return {**values, "model_type": config.model_type}


def choose_pooling(config: Any, folder: Path | None) -> tuple[str, str]:
    """(pooling, reason): what the weights were trained for, if their files say it."""
    if folder is not None and (known := _sentence_pooling(folder)) is not None:
        return known
    named = getattr(config, "classifier_pooling", None)
    if named in POOLINGS:
        return named, f"{named}: config.json names it"
    if _is_causal(config):
        return "last", "last token: a decoder sees the whole text only there"
    return "mean", "mean of the tokens: no other was trained with these weights"


def _sentence_pooling(folder: Path) -> tuple[str, str] | None:
    """(pooling, reason) of a folder of sentence-transformers; None for another.

    WeightsError if its file cannot be read.
    """
    path = folder / "1_Pooling" / "config.json"
    if path.is_file():
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            modes = [name for name, on in values.items() if name.startswith(_MODE) and on is True]
        except (OSError, ValueError, AttributeError) as error:
            raise WeightsError(
                f"{path} cannot be read: {error}.", "Download the encoder again."
            ) from error
        if len(modes) == 1 and modes[0] in _MODES:
            return _MODES[modes[0]], f"{_MODES[modes[0]]}: a sentence encoder"
        own = ", ".join(name.removeprefix(_MODE) for name in modes) or "none"
        return "mean", f"mean of the tokens: the encoder's own ({own}) is not built"
    names = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
    if any((folder / name).is_file() for name in names):
        return "mean", "mean: a sentence encoder"
    return None


def _is_causal(config: Any) -> bool:
    """Whether tokens see only those before them."""
    library = transformers_library()
    causal = library.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = library.models.auto.modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    kind = config.model_type
    return bool(getattr(config, "is_decoder", False)) or (kind in causal and kind not in masked)


def max_length_of(config: Any, tokenizer: Any) -> int:
    """The most tokens that the encoder can take, at most LONGEST."""
    positions = getattr(config, "max_position_embeddings", None) or getattr(
        config, "n_positions", None
    )
    limits = [LONGEST]
    if isinstance(positions, int) and positions > 8:
        # RoBERTa counts positions from the padding token's id on
        offset = 2 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
        limits.append(positions - offset)
    longest = getattr(tokenizer, "model_max_length", None)
    if isinstance(longest, int) and 8 < longest < 10**6:
        limits.append(longest)
    return min(limits)
