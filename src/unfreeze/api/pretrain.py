"""`pretrain`: SwAV on unlabelled pictures, from a folder or archive to a model that travels."""

import math
import os
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from unfreeze import __version__
from unfreeze.api.gathering import Gathering, gathering
from unfreeze.api.report import report
from unfreeze.api.watching import preprocess_of, sample_of, summary
from unfreeze.backbones.build import build as build_network
from unfreeze.backbones.build import canonical
from unfreeze.backbones.head import headless
from unfreeze.backbones.norm import groups_of, synchronised
from unfreeze.backbones.weights import Loaded, load_weights
from unfreeze.checkpoints.modelfile import ModelCard, save_model
from unfreeze.checkpoints.state import has_last, load_last, load_state
from unfreeze.data.loader import Loader
from unfreeze.data.preprocess import Preprocess
from unfreeze.data.views.multicrop import MEAN, STD, Cut
from unfreeze.errors import UsageError
from unfreeze.runtime.atomic import replacing, write_text
from unfreeze.runtime.console import Console, Logged, Quiet
from unfreeze.runtime.devices import pick_device, pick_precision
from unfreeze.runtime.launcher import launched
from unfreeze.runtime.processes import Processes, join
from unfreeze.runtime.runfolder import RunFolder, allowed
from unfreeze.settings.build import as_dict, layered, to_toml
from unfreeze.settings.pretrain import PretrainSettings
from unfreeze.swav.gallery import gather, save_gallery
from unfreeze.swav.model import SwAV
from unfreeze.swav.recipe import Facts, Plan, choose_arch, plan, view_specs
from unfreeze.swav.recipes import with_recipe
from unfreeze.swav.trainer import OnEpoch, Place, Trainer
from unfreeze.swav.watching import Watch

GALLERY_PICTURES = 4_000


@dataclass(frozen=True)
class PretrainResult:
    """What a pretraining run did; `loss` is the mean of the last record, None for 0 epochs.

    `figures`: the last look, without labels. `knn`: accuracy, correct, total, split of the last
    look, and accuracy at the untrained start; None without labels. `best`: epoch (counted from 1),
    figure, value and checkpoint of the best look. `kept`: whose weights `model` has.
    """

    run: str
    arch: str
    epochs: int
    steps: int
    images: int
    processes: int
    loss: float | None
    images_per_second: float | None
    seconds: float
    model: str
    kept: str
    figures: dict[str, float]
    knn: dict[str, Any] | None
    best: dict[str, Any] | None


@dataclass(frozen=True)
class PretrainPlan:
    """What `--dry-run` shows: every setting, the reason of each derived one, and the length."""

    settings: dict[str, Any]
    reasons: dict[str, str]
    images: int
    steps: int
    steps_per_epoch: int


def pretrain(data: str, **settings: Any) -> PretrainResult | PretrainPlan:
    """SwAV on the pictures of `data`; keywords are those of `PretrainSettings`.

    Returns a `PretrainPlan` with `dry_run=True`. Raises the errors of `unfreeze.errors`.
    """
    return run_pretrain(layered(PretrainSettings, None, {"data": data, **settings}), Quiet())


def run_pretrain(
    settings: PretrainSettings, console: Console, *, on_epoch: OnEpoch | None = None
) -> PretrainResult | PretrainPlan:
    """The same from a settings object; `on_epoch` is called after each epoch."""
    if settings.dry_run:
        return plan_pretrain(settings, console)
    if not settings.out:
        raise UsageError("pretrain needs a folder for the run.", "Add --out RUN, or --dry-run.")
    started, out = time.monotonic(), settings.out
    processes = join(settings.device)
    console = Logged(console if processes.first else Quiet())
    place: dict[str, Any] = {"resume": settings.resume, "overwrite": settings.overwrite}
    processes.leads(lambda: allowed(out, **place))
    # in turn: what the first process fetched or decoded stands on the disk for the others
    prepared = processes.in_turn(lambda: _prepare(settings, console, processes.world))
    side = 2 * max(prepared.plan.settings.size_crops or ())
    found = processes.in_turn(lambda: prepared.found.checked(settings, side, console))
    # the last moment: --overwrite deletes
    processes.leads(lambda: RunFolder.create(out, **place))
    run = RunFolder(out, writes=processes.first)
    console.into(run)
    chosen = plan(prepared.start.settings, replace(prepared.facts, images=len(found.train)))
    watch = processes.together(lambda: _watch(prepared, chosen, found, processes, console))
    trainer = processes.together(lambda: _trainer(prepared, chosen, found, run, processes, watch))
    processes.together(lambda: _resume(trainer, run, found.fingerprint, console))
    processes.leads(lambda: _write_start(run, chosen, prepared, found, processes))
    trainer.fit(console, on_epoch)
    processes.leads(lambda: _finish(run, chosen, trainer, found, prepared.start.loaded))
    return _result(run, chosen, trainer, len(found.train), time.monotonic() - started)


def _finish(
    run: RunFolder, chosen: Plan, trainer: Trainer, found: Gathering, loaded: Loaded | None
) -> None:
    best = run.file("checkpoints/best.ckpt")
    if chosen.settings.keep == "best" and trainer.watch.best:
        trainer.model.load_state_dict(load_state(best)["model"])
    _write_model(run, chosen, trainer, found, loaded)
    report(str(run.path))


def plan_pretrain(settings: PretrainSettings, console: Console) -> PretrainPlan:
    """What a run would do; touches no file."""
    prepared = _prepare(settings, console, launched().world)
    chosen = prepared.plan
    return PretrainPlan(
        settings=as_dict(chosen.settings),
        reasons=prepared.reasons,
        images=prepared.facts.images,
        steps=chosen.steps,
        steps_per_epoch=chosen.steps_per_epoch,
    )


@dataclass(frozen=True)
class _Prepared:
    """Everything that is known before a file is written."""

    found: Gathering
    start: "_Start"
    facts: Facts
    plan: Plan
    place: Place
    reasons: dict[str, str]


def _prepare(settings: PretrainSettings, console: Console, processes: int) -> _Prepared:
    device = pick_device(settings.device)
    precision, why = pick_precision(settings.precision, device)
    settings, named = with_recipe(settings)
    found = gathering(settings, console)
    torch.manual_seed(settings.seed)
    start = _start(settings, found.side, device)
    facts = Facts(len(found.train), found.side, device.type, start.width, processes)
    chosen = plan(start.settings, facts)
    reasons = {**named, **start.reasons, **chosen.reasons, "precision": f"{precision}: {why}"}
    _show(chosen, reasons, facts, console)
    return _Prepared(found, start, facts, chosen, Place(device, precision, MEAN, STD), reasons)


@dataclass(frozen=True)
class _Start:
    """The network before training, and what was decided to get it."""

    network: nn.Module
    width: int
    settings: PretrainSettings
    reasons: dict[str, str]
    loaded: Loaded | None


def _start(settings: PretrainSettings, side: int, device: torch.device) -> _Start:
    arch, why = choose_arch(settings, side, device.type)
    reasons = {} if settings.arch else {"arch": why}
    arch, stem = canonical(arch), settings.stem
    if stem == "auto":
        small = (settings.image_size or side) <= 64 and settings.init == "none"
        stem = "small" if small and not arch.startswith("unfreeze/") else "imagenet"
        reasons["stem"] = (
            "keeps the resolution of small pictures"
            if stem == "small"
            else "loaded layers are never changed"
            if settings.init != "none"
            else "the network's own"
        )
    network = build_network(arch, stem=stem)
    loaded = None
    if settings.init != "none" and settings.dry_run and not Path(settings.init).exists():
        reasons["init"] = "not fetched in a dry run"
    elif settings.init != "none":
        loaded = load_weights(network, settings.init, arch=arch)
        reasons["init"] = f"{loaded.share:.1%} of the backbone found in {loaded.source}"
    width = headless(network)
    changed = PretrainSettings(**{**vars(settings), "arch": arch, "stem": stem})
    return _Start(network, width, changed, reasons, loaded)


def _watch(
    prepared: _Prepared, chosen: Plan, found: Gathering, processes: Processes, console: Console
) -> Watch:
    s, every = chosen.settings, chosen.settings.watch_every or 0
    looks = every and s.epochs and processes.first
    return Watch(sample_of(s, found, prepared.found.index, console) if looks else None, every)


def _trainer(
    prepared: _Prepared,
    chosen: Plan,
    found: Gathering,
    run: RunFolder,
    processes: Processes,
    watch: Watch,
) -> Trainer:
    s, place = chosen.settings, prepared.place
    model: Any = SwAV(
        prepared.start.network,
        prepared.start.width,
        hidden=s.hidden_mlp or 0,
        feat_dim=s.feat_dim,
        prototypes=s.nmb_prototypes or 0,
    )
    if s.sync_bn in ("all", "groups"):
        size = s.syncbn_process_group_size if s.sync_bn == "groups" else 0
        group = groups_of(size, processes.world, processes.rank)
        model = synchronised(model.to(place.device), group)
    if not processes.first:
        torch.manual_seed(s.seed + 7919 * processes.rank)  # each draws its own dropout
    loader = Loader(
        found.pictures,
        Cut(s.seed, view_specs(s)),
        batch_size=s.batch_size or 0,
        seed=s.seed,
        drop_last=True,
        workers=_workers(s, place.device, processes.launch.local_world),
        positions=found.train,
        rank=processes.rank,
        world=processes.world,
    )
    return Trainer(model, chosen, loader, run, place, processes, watch)


def _workers(s: PretrainSettings, device: torch.device, neighbours: int) -> int:
    if s.workers is not None:
        return s.workers
    # on the CPU the network uses every core already; launchers set one thread a process
    cores = (os.cpu_count() or 1) // neighbours
    return min(16, max(1, cores)) if device.type == "cuda" else 0


def _resume(trainer: Trainer, run: RunFolder, fingerprint: str, console: Console) -> None:
    trainer.fingerprint = fingerprint
    folder = run.file("checkpoints")
    if not trainer.s.resume:
        return
    if not has_last(folder):
        console.say(f"No checkpoint in {run.path} yet: starting from the beginning.")
        run.rewind_metrics(-1)
        return
    state, note = load_last(folder)
    for said in (note, *trainer.restore(state)):
        if said:
            console.say(said)
    run.rewind_metrics(trainer.step)
    console.say(f"Going on from step {trainer.step:,} of {trainer.plan.steps:,}.")


def _write_start(
    run: RunFolder, chosen: Plan, prepared: _Prepared, found: Gathering, processes: Processes
) -> None:
    place = prepared.place
    facts = {
        "unfreeze": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": processes.world,
        "device": str(place.device),
        "precision": place.precision,
        "images": len(found.train),
        "side": found.side,
        "fingerprint": found.fingerprint,
        "steps": chosen.steps,
        "steps_per_epoch": chosen.steps_per_epoch,
    }
    tables: dict[str, dict[str, Any]] = {
        "reasons": {**prepared.reasons, **chosen.reasons},
        "facts": facts,
    }
    write_text(run.file("config.toml"), to_toml(as_dict(chosen.settings), tables))
    found.write(run)
    some = found.train[:8]
    cut = Cut(chosen.settings.seed, view_specs(chosen.settings))
    views = cut([found.pictures[int(i)] for i in some], some, 0)
    same = [v.numpy() for v in views if v.shape == views[0].shape]
    with replacing(run.file("views.npz")) as path, path.open("wb") as stream:
        np.savez_compressed(stream, views=np.stack(same, 1))


def _write_model(
    run: RunFolder, chosen: Plan, trainer: Trainer, found: Gathering, loaded: Loaded | None
) -> None:
    s, model, place = chosen.settings, trainer.model, trainer.place
    preprocess = preprocess_of(s)
    kept = trainer.watch.best if s.keep == "best" else None
    card = ModelCard(
        kind="backbone",
        arch=s.arch or "",
        stem=s.stem,
        preprocess=preprocess.as_dict(),
        provenance={
            "verb": "pretrain",
            "method": "swav",
            "epochs": kept.epoch if kept else s.epochs,
            "steps": kept.step if kept else trainer.step,
            "images": len(found.train),
            "fingerprint": found.fingerprint,
            "init": loaded.source if loaded else "none",
            "seed": s.seed,
        },
    )
    save_model(run.file("model"), model.backbone.state_dict(), card)
    if not trainer.step:
        return
    some = found.train[:GALLERY_PICTURES]
    cut = partial(_cut, found, preprocess, some)
    gathered = gather(model, cut, len(some), device=place.device, mean=place.mean, std=place.std)
    save_gallery(run.file("prototypes.npz"), gathered, cut)


def _cut(found: Gathering, how: Preprocess, some: Any, places: Any) -> Any:
    return np.stack([how.pixels(found.pictures[int(some[i])]) for i in places])


def _show(chosen: Plan, reasons: dict[str, str], facts: Facts, console: Console) -> None:
    settings = asdict(chosen.settings)
    console.say(f"{facts.images:,} pictures, {facts.side} pixels on the shorter side (median).")
    for name, reason in reasons.items():
        value = settings.get(name)
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        console.say(f"  {name.replace('_', '-'):26} {shown!s:>22}  {reason}")
    console.say(
        f"{chosen.settings.epochs} epochs of {chosen.steps_per_epoch:,} steps: "
        f"{chosen.steps:,} steps; the loss starts near "
        f"ln K = {math.log(chosen.settings.nmb_prototypes or 1):.3f}."
    )


def _result(
    run: RunFolder, chosen: Plan, trainer: Trainer, images: int, seconds: float
) -> PretrainResult:
    rates = [r["images_per_second"] for r in run.metrics() if r.get("split") == "train"]
    return PretrainResult(
        run=str(run.path),
        arch=chosen.settings.arch or "",
        epochs=chosen.settings.epochs or 0,
        steps=trainer.step,
        images=images,
        processes=trainer.processes.world,
        loss=trainer.loss if math.isfinite(trainer.loss) else None,
        images_per_second=float(np.median(rates)) if rates else None,
        seconds=round(seconds, 3),
        model=str(run.file("model")),
        kept=chosen.settings.keep,
        **summary(trainer.watch, run),
    )
