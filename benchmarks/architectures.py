"""Check head replacement on all torchvision classifiers and one network per timm module.

    python benchmarks/architectures.py --json architectures.json

Runs on the meta device (shapes only). For each network: the head is replaced by one with 7 classes;
the output has shape [2, 7]; every new parameter gets a gradient; every other parameter gets one if
it did before; with `--freeze all` only the new parameters are trainable. Prints one line per
network with its time in seconds; exits with code 1 if any fails.
"""

import argparse
import json
import logging
import sys
import time
import traceback
import warnings
from pathlib import Path

import timm
import torch
import torchvision
from torch import nn

from unfreeze.models.build import build
from unfreeze.models.head import replace_head
from unfreeze.transfer.freezing.freeze import select_frozen

CLASSES = 7


def on_meta(arch: str) -> nn.Module:
    """The network on the meta device; built on the CPU first if its constructor needs values."""
    try:
        with torch.device("meta"):
            return build(arch)
    except (NotImplementedError, RuntimeError):
        return build(arch).to("meta")


def side(model: nn.Module) -> int:
    """The input size of the network, in pixels."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return int((cfg.get("input_size") or (3, 224, 224))[-1])


def without_gradient(model: nn.Module, size: int) -> set[str]:
    """Names of the parameters that get no gradient from the output."""
    model.train()
    model.zero_grad(set_to_none=True)
    scores = model(torch.zeros(2, 3, size, size, device="meta"))
    scores.sum().backward()
    return {name for name, p in model.named_parameters() if p.grad is None}


def check_network(arch: str) -> dict[str, object]:
    """Head and parameter count of a network; AssertionError if a check fails."""
    model = on_meta(arch)
    size = 299 if "inception_v3" in arch else side(model)
    before = without_gradient(model, size)
    new = replace_head(model, CLASSES)
    after = without_gradient(model, size)
    model.eval()
    scores = model(torch.zeros(2, 3, size, size, device="meta"))
    if tuple(scores.shape) != (2, CLASSES):
        raise AssertionError(f"output shape {tuple(scores.shape)}")
    if after - before or after & set(new):
        raise AssertionError(f"no gradient: {sorted((after - before) | (after & set(new)))}")
    names = {name for name, _ in model.named_parameters()}
    trainable = names - set(select_frozen(model, "all", head=tuple(new)))
    if trainable != set(new):
        raise AssertionError(f"trainable with --freeze all: {sorted(trainable)[:5]}")
    return {"head": sorted(new), "parameters": sum(p.numel() for p in model.parameters())}


def smallest_of_each_module() -> list[str]:
    """For each timm module the network whose name suggests the fewest parameters."""
    order = ("atto", "femto", "pico", "nano", "tiny", "mini", "small", "xxs", "_050", "_035", "18")
    smallest = []
    for module in timm.list_modules():
        names = timm.list_models(module=module)
        if names:
            marks = [min((order.index(w) for w in order if w in n), default=99) for n in names]
            smallest.append(names[marks.index(min(marks))])
    return [f"timm/{name}" for name in dict.fromkeys(smallest)]


def main() -> None:
    """Check all networks and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for draw in ("kaiming_uniform_", "kaiming_normal_", "normal_", "uniform_", "trunc_normal_"):
        setattr(nn.init, draw, lambda tensor, *_, **__: tensor)  # random values are not needed
    known = torchvision.models.list_models(module=torchvision.models)
    names = [f"torchvision/{name}" for name in known] + smallest_of_each_module()
    rows, began = [], time.perf_counter()
    for arch in names:
        start = time.perf_counter()
        try:
            row = {"arch": arch, "ok": True, **check_network(arch)}
        except Exception as error:  # every network is reported
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            message = f"{type(error).__name__}: {error} ({where})"
            row = {"arch": arch, "ok": False, "error": " ".join(message.split())[:300]}
        row["seconds"] = round(time.perf_counter() - start, 2)
        rows.append(row)
        print(f"{'ok  ' if row['ok'] else 'FAIL'} {row['seconds']:6.2f} s  {arch}", flush=True)
        if not row["ok"]:
            print(f"      {row['error']}", flush=True)
    bad = [row["arch"] for row in rows if not row["ok"]]
    seconds = time.perf_counter() - began
    print(f"{len(rows) - len(bad)} of {len(rows)} in {seconds:.0f} s; failed: {bad or 'none'}")
    if args.json:
        report = {
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
            "seconds": round(seconds, 1),
            "networks": rows,
        }
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
