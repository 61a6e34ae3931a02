"""Every classification network of torchvision, and the smallest of each of timm's modules.

    python benchmarks/architectures.py --json architectures.json

For each, with shapes alone (the meta device): a new head of 7 classes is put in place of the old
one; the scores are [2, 7]; every new parameter gets a gradient; no parameter of the network is left
without one but those that were so before; frozen with `all`, just the new ones train. A line each
with the seconds it took; exit code 1 if one fails.
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

from unfreeze.backbones.build import build
from unfreeze.backbones.head import replace_head
from unfreeze.transfer.freeze import select_frozen

CLASSES = 7


def on_meta(arch: str) -> nn.Module:
    """The network without numbers; moved there where its library computes while it builds."""
    try:
        with torch.device("meta"):
            return build(arch)
    except (NotImplementedError, RuntimeError):
        return build(arch).to("meta")


def side(model: nn.Module) -> int:
    """The input that the network was made for, pixels."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return int((cfg.get("input_size") or (3, 224, 224))[-1])


def without_gradient(model: nn.Module, size: int) -> set[str]:
    """Parameters that scores do not depend on."""
    model.train()
    model.zero_grad(set_to_none=True)
    scores = model(torch.zeros(2, 3, size, size, device="meta"))
    scores.sum().backward()
    return {name for name, p in model.named_parameters() if p.grad is None}


def proven(arch: str) -> dict[str, object]:
    """What was found; raises where something is not as it should be."""
    model = on_meta(arch)
    size = 299 if "inception_v3" in arch else side(model)
    before = without_gradient(model, size)
    new = replace_head(model, CLASSES)
    left = without_gradient(model, size)
    model.eval()
    scores = model(torch.zeros(2, 3, size, size, device="meta"))
    if tuple(scores.shape) != (2, CLASSES):
        raise AssertionError(f"scores {tuple(scores.shape)}")
    if left - before or left & set(new):
        raise AssertionError(f"without a gradient: {sorted((left - before) | (left & set(new)))}")
    names = {name for name, _ in model.named_parameters()}
    trained = names - set(select_frozen(model, "all", head=tuple(new)))
    if trained != set(new):
        raise AssertionError(f"frozen but for the head, these train: {sorted(trained)[:5]}")
    return {"head": sorted(new), "parameters": sum(p.numel() for p in model.parameters())}


def smallest_of_each_module() -> list[str]:
    """For each of timm's modules the network with the fewest parameters by its name's looks."""
    order = ("atto", "femto", "pico", "nano", "tiny", "mini", "small", "xxs", "_050", "_035", "18")
    found = []
    for module in timm.list_modules():
        names = timm.list_models(module=module)
        if names:
            marks = [min((order.index(w) for w in order if w in n), default=99) for n in names]
            found.append(names[marks.index(min(marks))])
    return [f"timm/{name}" for name in dict.fromkeys(found)]


def main() -> None:
    """A line for each network."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--json")
    given = ask.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for draw in ("kaiming_uniform_", "kaiming_normal_", "normal_", "uniform_", "trunc_normal_"):
        setattr(nn.init, draw, lambda tensor, *_, **__: tensor)  # no need of random numbers
    known = torchvision.models.list_models(module=torchvision.models)
    names = [f"torchvision/{name}" for name in known] + smallest_of_each_module()
    rows, began = [], time.perf_counter()
    for arch in names:
        start = time.perf_counter()
        try:
            row = {"arch": arch, "ok": True, **proven(arch)}
        except Exception as error:  # every network is reported
            where = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            row = {"arch": arch, "ok": False, "error": " ".join(told.split())[:300]}
        row["seconds"] = round(time.perf_counter() - start, 2)
        rows.append(row)
        print(f"{'ok  ' if row['ok'] else 'FAIL'} {row['seconds']:6.2f} s  {arch}", flush=True)
        if not row["ok"]:
            print(f"      {row['error']}", flush=True)
    bad = [row["arch"] for row in rows if not row["ok"]]
    seconds = time.perf_counter() - began
    print(f"{len(rows) - len(bad)} of {len(rows)} in {seconds:.0f} s; failed: {bad or 'none'}")
    if given.json:
        report = {
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
            "seconds": round(seconds, 1),
            "networks": rows,
        }
        Path(given.json).write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
