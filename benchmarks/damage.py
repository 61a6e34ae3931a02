"""Load damaged checkpoints of six writers: how many are accepted as intact.

    python benchmarks/damage.py --files 1000 --json damage.json

Each file is written by PyTorch, safetensors, Lightning or unfreeze and then damaged with a seeded
random generator: bits are flipped, the end is removed, a range is zeroed, or two ranges (members of
an archive, if it is one) are exchanged. Outcomes:

- refused: a WeightsError that names the file.
- unharmed: loaded, and every value equals what was written: the damage hit unused bytes.
- unverified: loaded with wrong values, with the note that the format has no checksum.
- whole: loaded with wrong values without a note. This must never happen.
- crashed: any other exception. This must never happen either.

Exits with code 1 if one of the last two happens.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from unfreeze.checkpoints.model_file import ModelCard, load_model, save_model
from unfreeze.checkpoints.state import load_state, save_state
from unfreeze.errors import WeightsError
from unfreeze.models.build import build
from unfreeze.models.load_weights import load_weights

ARCH = "unfreeze/tiny"
CARD = ModelCard("backbone", ARCH, preprocess={"image_size": 16, "resize": 16})
DAMAGES = ("flip", "cut", "zero", "swap")


def network(seed):
    """A small network with values as after training: no entry is 0 or 1."""
    torch.manual_seed(seed)
    model = build(ARCH)
    for name, entry in model.state_dict().items():
        if entry.is_floating_point():
            entry.add_(torch.rand_like(entry) * 0.1 + (0.5 if name.endswith("var") else 0.0))
        else:
            entry.fill_(117)
    return model


def optimizer_of(model):
    """State dict of SGD with momentum after a step with learning rate 0."""
    optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def torch_zip(folder, model):
    """The current format of `torch.save`."""
    torch.save(model.state_dict(), folder / "w.pth")


def torch_legacy(folder, model):
    """The format of `torch.save` before version 1.6."""
    torch.save(model.state_dict(), folder / "w.pth", _use_new_zipfile_serialization=False)


def safetensors(folder, model):
    """A safetensors file."""
    save_file(model.state_dict(), folder / "w.safetensors", metadata={"format": "pt"})


def last_ckpt(folder, model):
    """A `last.ckpt` of unfreeze."""
    state = {"kind": "finetune", "step": 7, "card": CARD.as_dict(), "model": model.state_dict()}
    save_state(folder / "last.ckpt", state | {"optimizer": optimizer_of(model)})


def model_folder(folder, model):
    """A `model/` folder of unfreeze: two files."""
    save_model(folder / "model", model.state_dict(), CARD)


def lightning(folder, model):
    """A PyTorch Lightning checkpoint."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state = {"epoch": 3, "state_dict": state, "hyper_parameters": {"lr": 0.1, "arch": "tiny"}}
    torch.save(state | {"optimizer_states": [optimizer_of(model)]}, folder / "epoch=3.ckpt")


WRITERS = {
    "torch zip": torch_zip,
    "torch legacy": torch_legacy,
    "safetensors": safetensors,
    "last.ckpt": last_ckpt,
    "model/": model_folder,
    "lightning": lightning,
}


def damaged(path, how, draw):
    """Damage a file in place; `draw`: a NumPy random generator."""
    data = bytearray(path.read_bytes())
    if how == "flip":
        for _ in range(int(draw.choice([1, 1, 2, 8, 64]))):
            data[int(draw.integers(len(data)))] ^= 1 << int(draw.integers(8))
    elif how == "cut":
        del data[int(draw.integers(len(data))) :]
    elif how == "zero":
        start = int(draw.integers(len(data)))
        count = int(2 ** draw.uniform(3, 16))
        data[start : start + count] = bytes(len(data[start : start + count]))
    else:
        first, second, length = _ranges(path, len(data), draw)
        a, b = data[first : first + length], data[second : second + length]
        data[first : first + length], data[second : second + length] = b, a
    path.write_bytes(data)


def _ranges(path, size, draw):
    """(first, second, length) of two ranges of a file: members if it is an archive."""
    if zipfile.is_zipfile(path) and draw.random() < 0.7:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.file_size > 64]
            a, b = (members[int(i)] for i in draw.choice(len(members), 2, replace=False))
            offsets = []
            for member in (a, b):
                with archive.open(member) as file:
                    offsets.append(getattr(file, "_orig_compress_start"))  # noqa: B009
        return *offsets, min(a.file_size, b.file_size)
    length = int(2 ** draw.uniform(4, 14))
    starts = draw.integers(max(size - length, 1), size=2)
    return int(starts[0]), int(starts[1]), length


def outcome(folder, expected):
    """(outcome, message) of loading the checkpoint in a folder."""
    (path,) = folder.iterdir()
    try:
        if path.name == "last.ckpt":  # as `--resume` reads it
            _check_equal(load_state(path)["model"], expected)
        if path.name == "model":
            _check_equal(load_model(path)[0], expected)
        model = build(ARCH)
        loaded = load_weights(model, str(path), arch=ARCH, skip_head=False)
    except WeightsError as refusal:
        return "refused", refusal.sentence
    except WrongValues as error:
        return "whole", str(error)
    except Exception as error:  # any other exception is a bug
        return "crashed", f"{type(error).__name__}: {error}"
    try:
        _check_equal(model.state_dict(), expected)
    except WrongValues as error:
        noted = any("no checksum" in note for note in loaded.notes)
        return ("unverified" if noted else "whole"), str(error)
    return "unharmed", ""


class WrongValues(Exception):
    """Loaded values differ from what was written."""


def _check_equal(loaded, expected):
    for name, tensor in expected.items():
        if name not in loaded or not torch.equal(loaded[name], tensor):
            raise WrongValues(f"{name} has other values")


def main() -> None:
    """Count outcomes by writer and damage and print them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    args = parser.parse_args()
    began = time.monotonic()
    model = network(args.seed)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    table, bad = defaultdict(Counter), []
    with tempfile.TemporaryDirectory() as scratch:
        intact = {name: Path(scratch) / f"{i}" for i, name in enumerate(WRITERS)}
        for name, write in WRITERS.items():
            intact[name].mkdir()
            write(intact[name], network(args.seed))
            result, message = outcome(intact[name], expected)
            if result != "unharmed":
                sys.exit(f"{name} cannot be loaded even without damage: {message}")
        for n in range(args.files):
            draw = np.random.default_rng((args.seed, n))
            name = list(WRITERS)[n % len(WRITERS)]
            how = DAMAGES[n // len(WRITERS) % len(DAMAGES)]
            copy = Path(scratch) / "copy"
            shutil.copytree(intact[name], copy)
            files = sorted(path for path in copy.rglob("*") if path.is_file())
            damaged(files[int(draw.integers(len(files)))], how, draw)
            result, message = outcome(copy, expected)
            table[name][f"{how} {result}"] += 1
            table[name][result] += 1
            if result in ("whole", "crashed"):
                bad.append({"file": n, "writer": name, "damage": how, "said": message})
            shutil.rmtree(copy)
    ends = Counter()
    for counts in table.values():
        ends.update({k: v for k, v in counts.items() if " " not in k})
    report = {
        "files": args.files,
        "seed": args.seed,
        "ends": dict(ends.most_common()),
        "writers": {name: dict(sorted(counts.items())) for name, counts in table.items()},
        "taken_as_whole": ends["whole"],
        "crashes": ends["crashed"],
        "bad": bad[:50],
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(report, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
