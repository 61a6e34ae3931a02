"""Prepares a pretraining run before it writes a file: images, network, plan, trainer."""

import copy
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.augment.multicrop import MEAN, STD
from unfreeze.data.cache.policy import PixelCachePlan
from unfreeze.data.images.intensity import format_intensity, parse_intensity
from unfreeze.data.loading.device_loader import DeviceImages, bytes_held
from unfreeze.data.loading.sample import DatasetSample
from unfreeze.errors import UsageError
from unfreeze.models.norm import batchnorm_process_group, convert_sync_batchnorm
from unfreeze.models.shape_trace import forward_flops, trace_forward
from unfreeze.runs.pretraining.autotune import plan_line
from unfreeze.runs.pretraining.data import UnlabelledDataset, list_images
from unfreeze.runs.pretraining.dry_run import show_plan
from unfreeze.runs.pretraining.initialize import PretrainStart, initial_network
from unfreeze.runs.readback import check_same_images
from unfreeze.runtime.console import Console
from unfreeze.runtime.device import image_memory_budget, pick_device, pick_precision
from unfreeze.runtime.distributed import Distributed
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.swav.auto_recipe import PretrainRecipe, plan, view_specs
from unfreeze.swav.device_context import ComputeContext, DatasetStats
from unfreeze.swav.model import SwAV
from unfreeze.swav.presets import check_method, prototypes_of, with_recipe
from unfreeze.swav.throughput import StepConfig
from unfreeze.swav.trainer import PretrainTrainer

_NOWHERE = RunFolder("", writes=False)


@dataclass(frozen=True)
class PreparedPretraining:
    """The listed images, the initial network and the plan.

    `hold`: the pixel cache. `reasons`: why a setting has its value.
    """

    found: UnlabelledDataset
    start: PretrainStart
    facts: DatasetStats
    plan: PretrainRecipe
    place: ComputeContext
    hold: PixelCachePlan
    reasons: dict[str, str]

    def checked(self, processes: Distributed, console: Console) -> UnlabelledDataset:
        """The images after decoding each once; verified to be the same in every process."""
        s, side = self.start.settings, _largest(self.plan)
        # rank 0 first: the others read its pixel cache from disk
        dataset = processes.in_turn(lambda: self.found.checked(s, side, self.hold, console))
        check_same_images(processes, dataset.index)
        return dataset

    def planned(self, dataset: UnlabelledDataset) -> PretrainRecipe:
        """The plan for the usable images."""
        size = bytes_held(dataset.images, dataset.train)
        device_bytes = math.inf if size is None else size
        return plan(
            self.start.settings, replace(self.facts, images=len(dataset.train), held=device_bytes)
        )

    def operations(self, chosen: PretrainRecipe, processes: int) -> float | None:
        """FLOPs of the backbone's forward pass over one process's part of a batch.

        None if the network cannot be traced on the meta device.
        """
        s, network = chosen.settings, self.start.network
        crops = Counter(spec.size for spec in view_specs(s))
        try:
            each = sum(count * forward_flops(network, size) for size, count in crops.items())
        except UsageError:  # a crop size that the network does not support: an error of its own
            return None
        return each * (s.batch_size or 0) / processes / s.accumulate

    def trainer(
        self,
        chosen: PretrainRecipe,
        way: StepConfig,
        *,
        dataset: UnlabelledDataset,
        processes: Distributed,
        held: DeviceImages | None,
        run: RunFolder = _NOWHERE,
    ) -> PretrainTrainer:
        """A trainer with the settings of `way`; without a run folder it writes nothing."""
        s, compute = (
            chosen.settings,
            replace(self.place, precision=way.precision, layout=way.layout),
        )
        model: Any = SwAV(
            copy.deepcopy(self.start.network),  # a recovery needs the initial weights
            self.start.width,
            hidden=s.hidden_mlp or 0,
            feat_dim=s.feat_dim,
            prototypes=prototypes_of(s),
        )
        if s.sync_bn in ("all", "groups"):
            size = s.syncbn_process_group_size if s.sync_bn == "groups" else 0
            group = batchnorm_process_group(size, processes.world, processes.rank)
            model = convert_sync_batchnorm(model.to(compute.device), group)
        if not processes.first:
            torch.manual_seed(s.seed + 7919 * processes.rank)  # other dropout masks on each rank
        loader = dataset.loader(s, processes, workers=way.workers, held=held)
        loader.pinned = compute.device.type == "cuda"
        return PretrainTrainer(model, chosen, loader, run, compute, processes)


def prepare_pretraining(
    settings: PretrainSettings,
    console: Console,
    processes: int,
    budgeted: dict[str, str] | None = None,
) -> PreparedPretraining:
    """List the images, build the network, plan the run, and show the plan.

    `budgeted`: reasons of the values that `--time-budget` selected.
    """
    device = pick_device(settings.device)
    check_method(settings)
    settings, named = with_recipe(settings)
    dataset = list_images(settings, console)
    prepared = prepared_for(settings, named, dataset, device, processes)
    prepared.reasons.update(budgeted or {})
    show_plan(prepared.plan, prepared.reasons, prepared.facts, console)
    if dataset.sample.cropped is not None and dataset.sample.cropped.warning is not None:
        console.warn(dataset.sample.cropped.warning)
    return prepared


def prepared_for(
    settings: PretrainSettings,
    named: dict[str, str],
    dataset: UnlabelledDataset,
    device: torch.device,
    processes: int,
) -> PreparedPretraining:
    """The network and the plan for listed images; `named`: reasons of the values of a recipe."""
    precision, why = pick_precision(settings.precision, device)
    torch.manual_seed(settings.seed)
    start = _with_range(initial_network(settings, dataset.side, device), dataset.sample)
    dataset.index.source.intensity = format_intensity(start.settings.range, start.settings.channels)
    room = image_memory_budget(device)
    facts = DatasetStats(
        len(dataset.train), dataset.side, device.type, start.width, processes, room=room
    )
    chosen = plan(start.settings, facts)
    for size in sorted(set(chosen.settings.size_crops or ())):
        trace_forward(
            start.network, (size, size)
        )  # an unsupported size fails here, also in a dry run
    hold = dataset.holding(settings, _largest(chosen), processes)
    reasons = {**named, **start.reasons, **chosen.reasons, "precision": f"{precision}: {why}"}
    reasons["store"] = f"{hold.place}: {hold.reason}"
    reasons |= plan_line(start.settings, processes)
    compute = ComputeContext(device, precision, MEAN, STD)
    return PreparedPretraining(dataset, start, facts, chosen, compute, hold, reasons)


def _with_range(start: PretrainStart, sample: DatasetSample) -> PretrainStart:
    """The start with range and channels as given, else of the weights, else of the data."""
    preprocess, s = start.loaded.preprocess if start.loaded else None, start.settings
    rule_given = format_intensity(
        s.range, s.channels, preprocess.intensity if preprocess else "auto"
    )
    rule_text, why = sample.intensity(rule_given)
    rule, channels = parse_intensity(rule_text)
    reasons = start.reasons | ({"range": why} if why else {})
    return replace(start, settings=replace(s, range=rule, channels=channels), reasons=reasons)


def _largest(chosen: PretrainRecipe) -> int:
    """The shorter side that images are resized to: twice the largest crop size."""
    return 2 * max(chosen.settings.size_crops or ())
