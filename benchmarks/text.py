"""Text classification: TF-IDF, a frozen encoder, its last layers, everything; by number of labels.

    python benchmarks/text.py --data sst2.csv --encoder minilm-l6 --json text.json

Accuracy is that on the test split, over --seeds (which draw the labels); seconds are those of a run
with its splits, validation and report (frozen and TF-IDF: with the evaluation).
`--epochs-only` measures frozen epochs instead: `finetune --freeze all --head-solver sgd`, whose
epochs after the first read cached features, and in turn a plain loop that people write: a
DataLoader, transformers' tokenizer, padding to the longest text of a batch, the encoder without
gradients, a linear head with SGD; both in float32.
"""

import argparse
import csv
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils.data import DataLoader

import unfreeze
from records import spent
from unfreeze.data.texts.source import open_texts
from unfreeze.reports.intervals import accuracy_over_seeds

WAYS = {"frozen": "all", "last": "stage:{}", "full": "none"}


def table(s: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Test accuracies of TF-IDF and of each way, by number of labels."""
    layers = transformers.AutoConfig.from_pretrained(s.encoder).num_hidden_layers
    results: dict[str, Any] = {}
    for labels in s.labels:
        rows = results[str(labels)] = {}
        compared = unfreeze.compare(
            s.data, ["tfidf", s.encoder], out=str(scratch / f"frozen-{labels}"), freeze="all",
            labels_per_class=labels // 2, seeds=s.seeds, progress=False,
        )  # fmt: skip
        for start in compared.starts:
            name = "tfidf" if start.weights == "tfidf" else "frozen"
            seconds = [run.seconds for run in compared.runs if run.weights == start.weights]
            rows[name] = {"accuracy": start.accuracy, "interval": start.interval,
                          "accuracies": start.accuracies, "seconds": seconds}  # fmt: skip
        print(labels, compared.verdict, flush=True)
        for way in s.ways:
            if way != "frozen":
                rows[way] = trained(s, WAYS[way].format(layers - 2), labels, scratch / way)
                print(labels, way, rows[way], flush=True)
    return results


def trained(s: argparse.Namespace, freeze: str, labels: int, out: Path) -> dict[str, Any]:
    """Test accuracy over seeds of an encoder whose layers are trained."""
    right, seconds = [], []
    for seed in range(s.seeds):
        run = out.with_name(f"{out.name}-{labels}-{seed}")
        began = time.perf_counter()
        unfreeze.finetune(
            s.data, weights=s.encoder, out=str(run), freeze=freeze, seed=seed,
            labels_per_class=labels // 2, progress=False,
        )  # fmt: skip
        seconds.append(time.perf_counter() - began)
        unfreeze.evaluate(str(run), s.data, split="test", progress=False)
        with (run / "predictions.csv").open(newline="", encoding="utf-8") as stream:
            right.append(
                np.array([row["label"] == row["predicted"] for row in csv.DictReader(stream)])
            )
    estimate = accuracy_over_seeds(right, len(right[0]))
    return {"accuracy": estimate.mean, "interval": (estimate.low, estimate.high),
            "accuracies": [float(one.mean()) for one in right], "seconds": seconds}  # fmt: skip


def plain_epoch(s: argparse.Namespace, texts: list[str], labels: list[int]) -> float:
    """Seconds of one epoch of a plain loop with a frozen encoder."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(s.encoder)
    encoder = transformers.AutoModel.from_pretrained(s.encoder, dtype=torch.float32).eval()
    head = torch.nn.Linear(encoder.config.hidden_size, 2)
    optimizer = torch.optim.SGD(head.parameters(), 0.1, momentum=0.9)

    def collate(rows: list[tuple[str, int]]) -> tuple[Any, torch.Tensor]:
        encoded = tokenizer([text for text, _ in rows], padding=True, truncation=True,
                            return_tensors="pt")  # fmt: skip
        return encoded, torch.tensor([label for _, label in rows])

    loader = DataLoader(list(zip(texts, labels, strict=True)), s.batch_size, shuffle=True,
                        collate_fn=collate)  # fmt: skip
    began = time.perf_counter()
    for encoded, target in loader:
        with torch.no_grad():
            hidden = encoder(**encoded).last_hidden_state
        mask = encoded["attention_mask"].unsqueeze(2)
        features = (hidden * mask).sum(1) / mask.sum(1)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(features), target).backward()
        optimizer.step()
    return time.perf_counter() - began


def epochs(s: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Seconds of epochs, ours and plain, in turn."""
    source = open_texts(s.data)
    rows = [row for row, split in enumerate(source.splits) if split == "train"][: s.texts]
    texts, words = [source.texts[row] for row in rows], [source.labels[row] for row in rows]
    names = sorted(set(words))
    lines = ["text,label", *(f"{json.dumps(t)},{w}" for t, w in zip(texts, words, strict=True))]
    (scratch / "train.csv").write_text("\n".join(lines) + "\n")
    plain, first, later, total = [], [], [], []
    for round_ in range(s.rounds):
        plain.append(plain_epoch(s, texts, [names.index(word) for word in words]))
        out = scratch / f"run-{round_}"
        began = time.perf_counter()
        unfreeze.finetune(
            str(scratch / "train.csv"), out=str(out), arch=f"hf/{s.encoder}", freeze="all",
            head_solver="sgd", epochs=s.epochs, batch_size=s.batch_size, precision="fp32",
            lr=0.1, val=0.0, select="last", progress=False,
        )  # fmt: skip
        total.append(time.perf_counter() - began)
        steps = len(texts) // s.batch_size
        after = spent(out, steps)
        later.append((after.data + after.step) / max(1, after.steps) * steps)
        first.append(total[-1] - later[-1] * (s.epochs - 1))
        print(plain[-1], first[-1], later[-1], flush=True)
    return {
        "texts": len(texts),
        "plain_epoch": plain,
        "whole_run": total,
        "cached_epoch": later,
        "ratio_of_an_epoch": statistics.median(plain) / statistics.median(later),
        "ratio_of_the_run": statistics.median(plain) * s.epochs / statistics.median(total),
    }


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs-only", action="store_true")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--json")
    s = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        measured = epochs(s, Path(scratch)) if s.epochs_only else table(s, Path(scratch))
    machine = {"machine": platform.processor() or platform.machine(),
               "threads": torch.get_num_threads(), "torch": torch.__version__,
               "transformers": transformers.__version__}  # fmt: skip
    document = {**machine, "encoder": Path(s.encoder).name, "results": measured}
    print(json.dumps(document, indent=1))
    if s.json:
        Path(s.json).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
