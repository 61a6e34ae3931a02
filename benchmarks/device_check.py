"""Check a device against float64 on the CPU, and that a training step never synchronises.

    python benchmarks/device_check.py --device cuda --json check.json

Checks the codes (by the paper's formula), the loss and its gradient, optimizer updates, the
normalisation of views, and the losses of complete training steps in float32 (without TF32) and in
the precision that `auto` selects. `waits`: whether making crops on the device or a step
synchronises with it, by `torch.cuda.set_sync_debug_mode`. Prints one line per check with the
largest difference and its bound; exits with code 1 if a bound is exceeded.
"""

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import step
import unfreeze
from unfreeze.data.augment.config import preset
from unfreeze.data.augment.multicrop import MEAN, STD, normalize
from unfreeze.data.index.index import build_index
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.loading.device_loader import DeviceImages
from unfreeze.data.sources.builtin import ArraySource
from unfreeze.optim.optimizer import optimizer_for_network
from unfreeze.runtime.device import pick_device, pick_precision
from unfreeze.swav import sinkhorn, swapped_prediction_loss

TINY: dict[str, Any] = {
    "arch": "unfreeze/tiny",
    "batch_size": 16,
    "size_crops": (32, 16),
    "nmb_crops": (2, 2),
    "min_scale_crops": (0.2, 0.05),
    "max_scale_crops": (1.0, 0.2),
}
# large enough that the updates exceed the rounding of the weights
RATES = {"larc": 10.0, "adamw": 0.1, "sgd": 0.1}
Check = tuple[str, float, float]  # name, largest difference, bound


def cosines(rows: int, K: int) -> torch.Tensor:
    """Random cosine similarities, float64 `[rows, K]`."""
    draw = torch.Generator().manual_seed(K)
    Z, C = (torch.randn(n, 16, generator=draw, dtype=torch.float64) for n in (rows, K))
    return F.normalize(Z, dim=1) @ F.normalize(C, dim=1).T


def paper(C: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Codes by the paper's formula, three Sinkhorn iterations."""
    Q = torch.exp(C / epsilon).T
    Q = Q / Q.sum()
    for _ in range(3):
        Q = Q / Q.sum(dim=1, keepdim=True) / Q.shape[0]
        Q = Q / Q.sum(dim=0, keepdim=True) / Q.shape[1]
    return (Q * Q.shape[1]).T


def codes(device: torch.device) -> Iterator[Check]:
    """Codes of `sinkhorn` on the device."""
    for rows, K in ((64, 7), (64, 300), (64, 3_000), (4_096, 3_000)):
        for epsilon in (0.005, 0.05):
            C = cosines(rows, K)
            Q = sinkhorn(C.float().to(device), epsilon=epsilon).cpu()
            worst = float((Q - paper(C, epsilon)).abs().max())
            yield f"codes, {rows} x {K}, epsilon {epsilon}", worst, 2e-5


def losses(device: torch.device) -> Iterator[Check]:
    """The loss and its gradient."""
    for K in (7, 300, 3_000):
        raw = [cosines(32, K).roll(shift, 0) for shift in range(4)]
        targets = [sinkhorn(raw[view]) for view in (0, 1)]
        exact = [scores.clone().requires_grad_() for scores in raw]
        single = [scores.float().to(device).requires_grad_() for scores in raw]
        expected = swapped_prediction_loss(exact, targets, (0, 1))
        loss = swapped_prediction_loss(single, [Q.float().to(device) for Q in targets], (0, 1))
        expected.backward()
        loss.backward()
        yield f"loss, K {K}", abs(float(loss.detach().cpu()) / float(expected.detach()) - 1), 1e-5
        gaps = [
            float((a.grad.cpu() - b.grad).abs().max() / b.grad.abs().max())
            for a, b in zip(single, exact, strict=True)
        ]
        yield f"gradient, K {K}", max(gaps), 1e-5


def updates(device: torch.device) -> Iterator[Check]:
    """Three steps of each optimizer with the same gradients."""
    for name in RATES:
        torch.manual_seed(0)
        exact = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Linear(32, 8)).double()
        single = copy.deepcopy(exact).float().to(device)
        start = [p.detach().clone() for p in exact.parameters()]
        for model in (exact, single):
            optimizer = optimizer_for_network(name, model, lr=RATES[name], weight_decay=1e-4)
            draw = torch.Generator().manual_seed(1)
            for _ in range(3):
                for p in model.parameters():
                    p.grad = torch.randn(p.shape, generator=draw, dtype=torch.float64).to(p)
                optimizer.step()
        moved = [
            float((b.detach().double().cpu() - a.detach()).norm() / (a.detach() - s).norm())
            for a, b, s in zip(exact.parameters(), single.parameters(), start, strict=True)
        ]
        yield f"update of {name}", max(moved), 1e-4


def views(device: torch.device) -> Iterator[Check]:
    """Normalisation of uint8 views."""
    view = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    expected = (view.permute(0, 3, 1, 2).double() / 255 - torch.tensor(MEAN)[:, None, None]) / (
        torch.tensor(STD)[:, None, None]
    )
    normalised = normalize(view.to(device), MEAN, STD).cpu().double()
    yield "normalising", float((normalised - expected).abs().max()), 1e-5


def steps(device: torch.device) -> Iterator[Check]:
    """Losses of four steps against a plain float64 implementation on the CPU."""
    torch.backends.cudnn.allow_tf32 = False
    automatic, _ = pick_precision("auto", device)
    draw = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (16, size, size, 3), generator=draw, dtype=torch.uint8)
        for size in (32, 32, 16, 16)
    ]
    settings, cpu = step.settings(TINY), torch.device("cpu")
    for precision, bound in {
        "fp32": 1e-4,
        automatic: 1e-4 if automatic == "fp32" else 2e-2,
    }.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer = step.ours(TINY, device, folder, precision)
            plain = step.Plain(step.network(TINY, settings).double(), cpu, scale=1.0)
            gaps = []
            for k in range(4):
                plain.rate = trainer.plan.learning_rate(k)
                loss = trainer.train_step(step.batch_of(images))
                trainer.state.step += 1
                gaps.append(abs(float(loss) / float(plain(images)) - 1))
        worst = max(gaps)
        yield f"losses of 4 steps, {precision}", worst, bound


def synchronises(what: str, work: Callable[[], object]) -> bool:
    """Whether `work` synchronises with the GPU when it is done again."""
    for mode in ("default", "error"):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode(mode)
        try:
            for _ in range(3):
                work()
        except RuntimeError as error:
            print(f"{what} synchronises with the device: {error}", flush=True)
            return True
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return False


def crops(device: torch.device) -> Callable[[], object]:
    """Makes a batch of crops on the device, as a loader of images cached there does."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    names = [str(number) for number in range(len(pixels))]
    source = ArraySource("noise", pixels, names, ["train"] * len(pixels))
    everything = np.arange(len(pixels))
    images = ImageDataset(build_index(source))
    held = DeviceImages(images, everything, device, most=2**30)
    specs = [preset(kind, 32, (0.2, 1.0)) for kind in ("photo", "small") for _ in range(2)]
    return lambda: held.views(everything[:16], 0, 0, specs)


def waits(device: torch.device) -> bool | None:
    """Whether crops or a step synchronise with the device; None on a CPU."""
    make_crops = crops(device)
    if device.type != "cuda":
        make_crops()
        return None
    images = [torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8).pin_memory()] * 2
    with tempfile.TemporaryDirectory() as folder:
        trainer = step.ours(TINY | {"size_crops": (32,), "nmb_crops": (2,)}, device, folder)

        def one_step() -> None:
            loss = trainer.train_step(step.batch_of(images))
            trainer.guard.done(trainer.step, loss)
            trainer.state.step += 1

        waiting = [synchronises("A step", one_step), synchronises("Making crops", make_crops)]
    return any(waiting)


def main() -> None:
    """Run all checks and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json")
    args = parser.parse_args()
    device = pick_device(args.device)
    rows = []
    for kind in (codes, losses, updates, views, steps):
        for name, worst, bound in kind(device):
            ok = worst <= bound
            rows.append({"what": name, "difference": worst, "bound": bound, "ok": ok})
            print(f"{'ok  ' if ok else 'FAIL'} {worst:9.2e} <= {bound:.0e}  {name}", flush=True)
    waiting = waits(device)
    print(f"Crops or a step synchronise with the device: {waiting}", flush=True)
    report = {
        "device": str(device),
        "torch": torch.__version__,
        "unfreeze": unfreeze.__version__,
        "waits": waiting,
        "ok": all(row["ok"] for row in rows) and not waiting,
        "checks": rows,
    }
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(not report["ok"])


if __name__ == "__main__":
    main()
