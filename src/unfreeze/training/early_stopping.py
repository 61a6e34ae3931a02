"""Early stopping of a pretraining run that stays below the weights it began with."""

from dataclasses import dataclass

from unfreeze.runtime.run_folder import RunFolder
from unfreeze.training.callbacks import Action, Callback, EndTraining, Logs
from unfreeze.training.feature_evaluation import FeatureEvaluator
from unfreeze.training.state import TrainState


@dataclass(frozen=True)
class StopBelowStart(Callback):
    """Ends training after `patience` feature evaluations in a row below the start."""

    evaluator: FeatureEvaluator
    patience: int
    run: RunFolder

    def on_start(self, state: TrainState) -> Action | None:
        """A run that ended early stays ended."""
        return EndTraining() if 0 < self.patience <= self.evaluator.below else None

    def after_step(self, state: TrainState, logs: Logs) -> Action | None:
        """End if the last evaluations were all below the start."""
        action = self.on_start(state) if state.ends_epoch else None
        if action and state.step < state.steps:
            self.run.log(
                f"early stopping after epoch {state.epoch}: {self.evaluator.below} feature "
                "evaluations in a row were below the start"
            )
        return action
