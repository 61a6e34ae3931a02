"""Prepares a pretraining run before it writes a file: images, network, plan, trainer."""

import copy
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch

from unfreeze.api.alike import refuse_others
from unfreeze.api.forecast import show
from unfreeze.api.gathering import Gathering, gathering
from unfreeze.api.starting import Start, begin
from unfreeze.api.tuning import announced
from unfreeze.backbones.norm import groups_of, synchronised
from unfreeze.backbones.trace import operations, trace
from unfreeze.data.device import Held, bytes_held
from unfreeze.data.holding import Holding
from unfreeze.data.intensity import parsed, reading
from unfreeze.data.sample import Sampled
from unfreeze.data.views.multicrop import MEAN, STD
from unfreeze.errors import UsageError
from unfreeze.runtime.console import Console
from unfreeze.runtime.devices import free_for_images, pick_device, pick_precision
from unfreeze.runtime.processes import Processes
from unfreeze.runtime.runfolder import RunFolder
from unfreeze.settings.pretrain import PretrainSettings
from unfreeze.swav.facts import Facts
from unfreeze.swav.methods import check_method, prototypes_of
from unfreeze.swav.model import SwAV
from unfreeze.swav.place import Place
from unfreeze.swav.recipe import Plan, plan, view_specs
from unfreeze.swav.recipes import with_recipe
from unfreeze.swav.trainer import Trainer
from unfreeze.swav.ways import Way

_NOWHERE = RunFolder("", writes=False)


@dataclass(frozen=True)
class Prepared:
    """The listed images, the initial network and the plan.

    `hold`: the pixel cache. `reasons`: why a setting has its value.
    """

    found: Gathering
    start: Start
    facts: Facts
    plan: Plan
    place: Place
    hold: Holding
    reasons: dict[str, str]

    def checked(self, processes: Processes, console: Console) -> Gathering:
        """The images after decoding each once; verified to be the same in every process."""
        s, side = self.start.settings, _largest(self.plan)
        # rank 0 first: the others read its pixel cache from disk
        dataset = processes.in_turn(lambda: self.found.checked(s, side, self.hold, console))
        refuse_others(processes, dataset.index)
        return dataset

    def planned(self, dataset: Gathering) -> Plan:
        """The plan for the usable images."""
        size = bytes_held(dataset.images, dataset.train)
        device_bytes = math.inf if size is None else size
        return plan(
            self.start.settings, replace(self.facts, images=len(dataset.train), held=device_bytes)
        )

    def operations(self, chosen: Plan, processes: int) -> float | None:
        """FLOPs of the backbone's forward pass over one process's part of a batch.

        None if the network cannot be traced on the meta device.
        """
        s, network = chosen.settings, self.start.network
        crops = Counter(spec.size for spec in view_specs(s))
        try:
            each = sum(count * operations(network, size) for size, count in crops.items())
        except UsageError:  # a crop size that the network does not support: an error of its own
            return None
        return each * (s.batch_size or 0) / processes / s.accumulate

    def trainer(
        self,
        chosen: Plan,
        way: Way,
        *,
        dataset: Gathering,
        processes: Processes,
        held: Held | None,
        run: RunFolder = _NOWHERE,
    ) -> Trainer:
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
            group = groups_of(size, processes.world, processes.rank)
            model = synchronised(model.to(compute.device), group)
        if not processes.first:
            torch.manual_seed(s.seed + 7919 * processes.rank)  # other dropout masks on each rank
        loader = dataset.loader(s, processes, workers=way.workers, held=held)
        loader.pinned = compute.device.type == "cuda"
        return Trainer(model, chosen, loader, run, compute, processes)


def prepare(
    settings: PretrainSettings,
    console: Console,
    processes: int,
    budgeted: dict[str, str] | None = None,
) -> Prepared:
    """List the images, build the network, plan the run, and show the plan.

    `budgeted`: reasons of the values that `--time-budget` selected.
    """
    device = pick_device(settings.device)
    check_method(settings)
    settings, named = with_recipe(settings)
    dataset = gathering(settings, console)
    prepared = prepared_for(settings, named, dataset, device, processes)
    prepared.reasons.update(budgeted or {})
    show(prepared.plan, prepared.reasons, prepared.facts, console)
    if dataset.sample.cropped is not None and dataset.sample.cropped.warning is not None:
        console.warn(dataset.sample.cropped.warning)
    return prepared


def prepared_for(
    settings: PretrainSettings,
    named: dict[str, str],
    dataset: Gathering,
    device: torch.device,
    processes: int,
) -> Prepared:
    """The network and the plan for listed images; `named`: reasons of the values of a recipe."""
    precision, why = pick_precision(settings.precision, device)
    torch.manual_seed(settings.seed)
    start = _with_range(begin(settings, dataset.side, device), dataset.sample)
    dataset.index.source.intensity = reading(start.settings.range, start.settings.channels)
    room = free_for_images(device)
    facts = Facts(len(dataset.train), dataset.side, device.type, start.width, processes, room=room)
    chosen = plan(start.settings, facts)
    for size in sorted(set(chosen.settings.size_crops or ())):
        trace(start.network, (size, size))  # an unsupported size fails here, also in a dry run
    hold = dataset.holding(settings, _largest(chosen), processes)
    reasons = {**named, **start.reasons, **chosen.reasons, "precision": f"{precision}: {why}"}
    reasons["store"] = f"{hold.place}: {hold.reason}"
    reasons |= announced(start.settings, processes)
    compute = Place(device, precision, MEAN, STD)
    return Prepared(dataset, start, facts, chosen, compute, hold, reasons)


def _with_range(start: Start, sample: Sampled) -> Start:
    """The start with range and channels as given, else of the weights, else of the data."""
    preprocess, s = start.loaded.preprocess if start.loaded else None, start.settings
    rule_given = reading(s.range, s.channels, preprocess.intensity if preprocess else "auto")
    rule_text, why = sample.intensity(rule_given)
    rule, channels = parsed(rule_text)
    reasons = start.reasons | ({"range": why} if why else {})
    return replace(start, settings=replace(s, range=rule, channels=channels), reasons=reasons)


def _largest(chosen: Plan) -> int:
    """The shorter side that images are resized to: twice the largest crop size."""
    return 2 * max(chosen.settings.size_crops or ())
