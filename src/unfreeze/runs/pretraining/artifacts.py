"""Files of a pretraining run beside its checkpoints: config.toml, views.npz, model/."""

import time
from functools import partial
from typing import Any

import numpy as np
import torch

from unfreeze import __version__
from unfreeze.checkpoints.model_file import ModelCard, model_folder, read_card, save_model
from unfreeze.checkpoints.state import BEST_CHECKPOINT, load_state
from unfreeze.config.layering import as_dict, to_toml
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.augment.multicrop import MultiCropTransform
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.models.load_weights import LoadedWeights
from unfreeze.runs.after_run import warn_on_failure
from unfreeze.runs.model_cards import write_model_card
from unfreeze.runs.pretraining.data import UnlabelledDataset
from unfreeze.runs.pretraining.teacher import Teacher, terms_of
from unfreeze.runs.readback import check_names_read_back
from unfreeze.runtime.atomic import replacing, write_text
from unfreeze.runtime.console import Console
from unfreeze.runtime.run_folder import RESULT, RunFolder
from unfreeze.runtime.threads import processors
from unfreeze.swav.auto_recipe import PretrainRecipe, view_specs
from unfreeze.swav.dataset_stats import evaluation_preprocess
from unfreeze.swav.model import SwAV
from unfreeze.swav.prototype_images import make_gallery, save_gallery
from unfreeze.training.feature_evaluation import FeatureEvaluator
from unfreeze.training.trainer import PretrainTrainer

GALLERY_IMAGES = 4_000


def facts_of(
    trainer: PretrainTrainer, plan: PretrainRecipe, dataset: UnlabelledDataset
) -> dict[str, Any]:
    """The table `facts` of config.toml: versions, device, sizes."""
    compute = trainer.compute
    return {
        "unfreeze": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "workers": trainer.loader.workers,
        "processors": processors(),
        "processes": trainer.processes.world,
        "device": str(compute.device),
        "precision": compute.precision,
        "store": dataset.images.held,
        "views": plan.settings.views_on,
        "images": len(dataset.train),
        "side": dataset.side,
        "fingerprint": dataset.fingerprint,
        "steps": plan.steps,
        "steps_per_epoch": plan.steps_per_epoch,
    }


def write_initial_config(run: RunFolder, settings: PretrainSettings) -> None:
    """Write config.toml with the given settings, so that a run stopped before step 0 can resume."""
    config = run.file("config.toml")
    if not config.exists():
        write_text(config, to_toml(as_dict(settings), {}))


def write_start(
    trainer: PretrainTrainer,
    plan: PretrainRecipe,
    dataset: UnlabelledDataset,
    reasons: dict[str, str],
    extra: dict[str, dict[str, Any]],
) -> None:
    """Write config.toml (with the `extra` tables), problems.csv, split.csv and views.npz."""
    run = trainer.run
    run.file(RESULT).unlink(missing_ok=True)  # a resumed run is not finished
    tables: dict[str, dict[str, Any]] = {
        "reasons": reasons,
        "facts": facts_of(trainer, plan, dataset),
        **extra,
    }
    write_text(run.file("config.toml"), to_toml(as_dict(plan.settings), tables))
    dataset.write(run)
    check_names_read_back(run, as_dict(plan.settings), dataset.rows(), dataset.problems)
    positions = dataset.train[:8]
    cut = MultiCropTransform(plan.settings.seed, view_specs(plan.settings))
    views = cut([dataset.images[int(i)] for i in positions], positions, 0)
    large = [v.numpy() for v in views if v.shape == views[0].shape]
    with replacing(run.file("views.npz")) as path, path.open("wb") as stream:
        np.savez_compressed(stream, views=np.stack(large, 1))


def write_model(
    trainer: PretrainTrainer,
    s: PretrainSettings,
    dataset: UnlabelledDataset,
    loaded: LoadedWeights | None,
    console: Console,
    began: float,
    teacher: Teacher | None = None,
) -> None:
    """Write model/ (last epoch or best checkpoint) and the images nearest to each prototype.

    `began`: time.monotonic() of this session's start.
    """
    run, model, compute = trainer.run, trainer.state.model, trainer.compute
    preprocess = evaluation_preprocess(s)
    evaluator = trainer.callback(FeatureEvaluator)
    best = evaluator.best if evaluator and s.keep == "best" else None
    if best:
        model.load_state_dict(load_state(run.file(f"checkpoints/{BEST_CHECKPOINT}"))["model"])
    card = ModelCard(
        kind="backbone",
        arch=s.arch or "",
        stem=s.stem,
        preprocess=preprocess.as_dict(),
        provenance={
            "verb": "pretrain",
            "method": s.method,
            "epochs": best.epoch if best else trainer.state.epoch,
            "steps": best.step if best else trainer.step,
            "images": len(dataset.train),
            "fingerprint": dataset.fingerprint,
            "init": loaded.source if loaded else "none",
            **terms_of(loaded, teacher),
            "seed": s.seed,
            "seconds": round(trainer.state.seconds + time.monotonic() - began, 1),
            **_seconds_before(s.init),
        },
    )
    save_model(run.file("model"), trainer.task.backbone.state_dict(), card)
    write_model_card(run, console)
    steps = best.step if best else trainer.step
    if not steps or not isinstance(model, SwAV):
        return
    positions = dataset.train[:GALLERY_IMAGES]
    cut = partial(_views_of, dataset, preprocess, positions)
    how: dict[str, Any] = {"device": compute.device, "mean": compute.mean, "std": compute.std}
    with warn_on_failure("The images nearest to each prototype could not be written", run, console):
        gathered = make_gallery(model, cut, len(positions), **how)
        save_gallery(run.file("prototypes.npz"), gathered, cut)


def _seconds_before(init: str) -> dict[str, float]:
    """Seconds of the pretraining that a run of `--init` took, its own start included."""
    if init == "none" or model_folder(init) is None:
        return {}
    earlier = read_card(init).provenance
    seconds = earlier.get("seconds", 0.0) + earlier.get("seconds_before", 0.0)
    return {"seconds_before": seconds} if seconds else {}


def _views_of(
    dataset: UnlabelledDataset, preprocess: Preprocess, positions: Any, indices: Any
) -> Any:
    return np.stack([preprocess.pixels(dataset.images[int(positions[i])]) for i in indices])
