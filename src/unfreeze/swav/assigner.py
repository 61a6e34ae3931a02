"""Codes for a step: Sinkhorn over the batch of all processes and the bank, once that serves."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from unfreeze.data.loader import Batch
from unfreeze.settings.pretrain import PretrainSettings
from unfreeze.swav.bank import Bank
from unfreeze.swav.gate import Gate, Mean
from unfreeze.swav.loss import swapped_prediction_loss
from unfreeze.swav.methods import epsilon_of
from unfreeze.swav.sinkhorn import sinkhorn
from unfreeze.swav.targets import Scores, Targets

if TYPE_CHECKING:
    from unfreeze.swav.trainer import Trainer

Say = Callable[[str], None]


class Assigner(Targets):
    """Codes of the views `assigned`; owns the bank of `length` features for each of them.

    `length` is global; this process keeps its share of it, the rows of its own share of the last
    batches, so that the rows of all processes together are those of one.
    """

    def __init__(
        self,
        assigned: Sequence[int],
        *,
        epsilon: float,
        iterations: int,
        length: int = 0,
        opens: int = 0,
        world: int = 1,
        temperature: float = 0.1,
        gate: Gate | None = None,
    ) -> None:
        self.assigned, self.epsilon, self.iterations = tuple(assigned), epsilon, iterations
        self.temperature = temperature
        self.length, self.opens = length // world, 0 if gate else opens
        self.gate = gate  # without one the bank serves from its epoch on, as published

    @classmethod
    def of(cls, s: PretrainSettings, world: int, mean: Mean, say: Say) -> "Assigner":
        """The one that a plan's settings ask for; `mean` is over processes, `say` tells people."""
        gate, opens = None, s.epoch_queue_starts or 0
        if s.queue_start == "auto" and s.queue_length:
            chance = math.log(s.nmb_prototypes or 1)
            early = s.warmup_epochs or 0  # until then little moves because the rate is small
            gate = Gate(earliest=early, latest=opens, chance=chance, mean=mean, say=say)
        return cls(
            s.crops_for_assign,
            epsilon=epsilon_of(s),
            iterations=s.sinkhorn_iterations,
            length=s.queue_length or 0,
            opens=opens,
            world=world,
            temperature=s.temperature,
            gate=gate,
        )

    @torch.no_grad()
    def codes(
        self,
        features: Sequence[torch.Tensor],
        scores: Sequence[torch.Tensor],
        rescored: Scores,
        batch: Batch,
    ) -> list[torch.Tensor]:
        """`[B, K]` for each assigned view, from `[B, d]` and `[B, K]` for every view."""
        bank = self.opened(batch.epoch, features[0])
        gate = self.gate is None or self.gate.serves(batch.epoch)
        serves = bank is not None and gate and bank.full
        codes = []
        for place, view in enumerate(self.assigned):
            C = scores[view].detach()
            B = len(C)
            if bank is not None and serves:
                C = torch.cat([C, rescored(bank.features[place])])
            codes.append(self.balanced(C)[:B])
        if bank is not None:
            self.watched(bank, scores, rescored, None if serves else codes)
            bank.push([features[view] for view in self.assigned])
        return codes

    def loss(self, scores: Sequence[torch.Tensor], codes: Sequence[torch.Tensor]) -> torch.Tensor:
        """The swapped prediction loss."""
        return swapped_prediction_loss(scores, codes, self.assigned, temperature=self.temperature)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the bank: what the gate saw."""
        return {"gate": self.gate and self.gate.state()}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """The reverse of `state`; a gate brings its sums to the device itself."""
        if self.gate and state["gate"]:
            self.gate.restore(state["gate"])

    def balanced(self, C: torch.Tensor) -> torch.Tensor:
        """Sinkhorn's codes `[B, K]` of scores `[B, K]`."""
        return sinkhorn(C, epsilon=self.epsilon, iterations=self.iterations)

    def watched(
        self,
        bank: Bank,
        scores: Sequence[torch.Tensor],
        rescored: Scores,
        own: list[torch.Tensor] | None,
    ) -> None:
        """Tell the gate what it judges by; `own` are the codes of the batch alone, if there yet."""
        gate, T = self.gate, self.temperature
        if gate is None or not gate.judging:
            return
        plain = [s.detach() for s in scores]
        if bank.full and gate.opened is None:
            B, held = len(plain[0]), bank.features[0]
            ends = (plain[self.assigned[0]], rescored(held[:B]), rescored(held[-B:]))
            gate.moved(*((C / T).softmax(dim=1).mean(dim=0) for C in ends))
        own = own or [self.balanced(plain[view]) for view in self.assigned]
        gate.lost(swapped_prediction_loss(plain, own, self.assigned, temperature=T))

    def opened(self, epoch: int, like: torch.Tensor) -> Bank | None:
        """The bank once its epoch has come; None before, or where there is none."""
        if self.gate is not None and self.gate.dropped:
            self.bank = None
            return None
        if self.bank is None and self.length and epoch >= self.opens:
            self.bank = Bank(len(self.assigned), self.length, like.shape[1]).to(like)
        return self.bank


def without_memory(trainer: "Trainer") -> "Trainer":
    """The trainer with codes that need neither a queue nor a memory of all images.

    For steps that are only timed: these need a run behind them and cost next to nothing.
    """
    s = trainer.s
    codes = Assigner(s.crops_for_assign, epsilon=epsilon_of(s), iterations=s.sinkhorn_iterations)
    trainer.assigner = trainer.finite.assigner = codes
    return trainer
