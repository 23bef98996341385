"""The one training loop. It knows tasks, not methods: see `engine/tasks.py`."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

from passl_mae import distributed
from passl_mae.data.loader import Batch, EvalLoader, TrainLoader
from passl_mae.engine.checkpoint import Checkpoints, Place, RunFolder, load_checkpoint
from passl_mae.engine.divergence import (
    advice,
    advice_when_late,
    put_aside,
    refuse_broken_metrics,
    refuse_broken_parameters,
    refuse_broken_weights,
)
from passl_mae.engine.precision import Precision
from passl_mae.engine.progress import Progress, listed
from passl_mae.engine.signals import StopSignals
from passl_mae.engine.step import Pieces, StepValues, TrainStep
from passl_mae.engine.tasks import Task
from passl_mae.evaluation import WeightedMean
from passl_mae.logger import MetricsFile, VisualDLWriter, get_logger
from passl_mae.models.weights import load_into, save_file
from passl_mae.optim.ema import ModelEMA
from passl_mae.optim.sharded import ShardedOptimizer
from passl_mae.optim.state import (
    float32_weights,
    load_optimizer_state,
    optimizer_state,
    parameters_that_stay,
)
from passl_mae.visualize import curves_figure, figure_pixels, save_figure

# Seconds in which the launcher's repetitions of a SIGTERM come, on a busy machine too.
LAUNCHER_REPEATS = 3.0


class Trainer:
    """Trains a model for a task, and leaves a run's files in a folder.

    A step is one update of the weights with one global batch, whatever the number of ranks and of
    accumulated pieces. Every random number is drawn from (seed, step), so the whole state of a run
    is the weights, the optimizer and a few numbers: `state_dict()`.

    Args:
        keep_last, keep_every: which checkpoints stay, see `Checkpoints`.
        eval_loader: held-out images, to watch and to choose by; None where nothing is held out.
        test_loader: images that are evaluated once, with the finished weights; None for no test.
        schedule_by: "step" or "epoch": when the learning-rate schedule is stepped.
        accum_iter: pieces a rank's batch is computed in.
        check_loss: "step": before every update; "line": with a line of the log or a checkpoint.
        sharding: each rank keeps a part of the optimizer's state, see `ShardedOptimizer`.
        ema_decay: if given, the averaged weights are evaluated, drawn and kept in the end.
        print_batch_step, eval_interval, save_interval: in steps, epochs, epochs.
        save_steps: steps between checkpoints in the middle of an epoch; None for none.
        max_skipped_steps: updates that are left out in a run where the loss is not finite, before
            it stops.
        finish_with: "last" or "best": which weights are the finished ones.
    """

    def __init__(
        self,
        *,
        task: Task,
        model: nn.Layer,
        optimizer: paddle.optimizer.Optimizer,
        schedule: paddle.optimizer.lr.LRScheduler,
        precision: Precision,
        train_loader: TrainLoader,
        eval_loader: EvalLoader | None,
        test_loader: EvalLoader | None,
        run: RunFolder,
        vdl: VisualDLWriter,
        seed: int,
        epochs: int,
        schedule_by: str = "step",
        accum_iter: int = 1,
        check_loss: str = "step",
        sharding: bool = False,
        ema_decay: float | None = None,
        print_batch_step: int = 10,
        eval_interval: int = 1,
        save_interval: int = 1,
        save_steps: int | None = None,
        keep_last: int = 3,
        keep_every: int | None = None,
        max_skipped_steps: int = 0,
        finish_with: str = "last",
    ):
        self.task = task
        # AMP level O2 rounds all parameters, and keeps masters only of those that learn.
        self.exact = parameters_that_stay(model) if precision.level == "O2" else {}
        self.model, self.optimizer = precision.decorate(model, optimizer)
        if sharding and distributed.world_size() > 1:
            self.optimizer = ShardedOptimizer(self.optimizer)
        ranked_model = distributed.wrap(self.model)
        self.pass_of = TrainStep(task, ranked_model, self.optimizer, precision, accum_iter, seed)
        self.ema = None if ema_decay is None else ModelEMA(self.model, ema_decay)
        self.schedule = schedule
        self.schedule_by = schedule_by
        self.precision = precision
        self.train_loader = train_loader
        self.eval_loader = eval_loader
        self.test_loader = test_loader
        self.run = run
        self.vdl = vdl
        self.metrics = MetricsFile(run.metrics)
        self.checkpoints = Checkpoints(run.checkpoints, keep_last, keep_every)
        self.epochs = epochs
        self.check_loss = check_loss
        self.eval_interval = eval_interval
        self.save_interval = save_interval
        self.save_steps = save_steps
        self.max_skipped_steps = max_skipped_steps
        self.finish_with = finish_with
        self.progress = Progress(
            epochs, train_loader.steps_per_epoch, train_loader.batch_size, print_batch_step
        )
        self.epoch = 0  # epochs done
        self.step = 0  # steps done
        self.skipped_steps = 0  # of them, without an update
        self.best: dict[str, float] = {}  # of task.best_metric, and its epoch
        self.values = StepValues(task.train_metrics)
        self.last_lr = 0.0  # at the last line of the log
        self._saved: Place | None = None
        self._signals = StopSignals()

    def train(self) -> None:
        """Trains what is left of the epochs, then tests and writes the finished weights.

        Raises:
            SystemExit: a SIGTERM or SIGINT came; the state is saved, the code is 143 or 130.
            ValueError: the loss is not finite.
            OSError: a file could not be written, or another rank is gone; the last checkpoint is
                untouched.
        """
        signals = StopSignals(LAUNCHER_REPEATS if distributed.launched() else 0.0)
        try:
            with signals as self._signals, distributed.explaining_lost_ranks():
                while self.epoch < self.epochs:
                    row = self.train_epoch()
                    self.finish_epoch(row)
                    self._exit_if_asked(Place(self.epoch), agree=True)
                self.finish()
        finally:
            self.vdl.close()
            self.run.unlock()

    def finish(self) -> None:
        """The finished weights (float32): tested once, and written with what they are worth."""
        epoch, applied = self.epoch, self._evaluated_weights()
        if self.ema is not None:
            weights = self.ema.state_dict()
        else:
            weights = float32_weights(self.optimizer.state_dict(), self.model, self.exact)
        if self.finish_with == "best":
            epoch, applied = int(self.best["epoch"]), contextlib.nullcontext()
            weights = self.checkpoints.weights_at(Place(epoch))
            load_into(self.model, weights)
        with applied:
            result = self.evaluate(self.test_loader, "Test") if self.test_loader else {}
        if distributed.is_main():
            save_file(weights, final := self.run.root / f"{self.task.weights_name}.pdparams")
            facts = {"weights": self.finish_with, "averaged": bool(self.ema), "epoch": epoch}
            images = len(self.test_loader.dataset) if self.test_loader else 0
            self.run.write_result(facts, result, images)
            self.progress.sum_up(self.step, final, self.metrics.read(), result)

    def _evaluated_weights(self) -> contextlib.AbstractContextManager:
        return self.ema.applied() if self.ema is not None else contextlib.nullcontext()

    @property
    def steps_of_epoch(self) -> int:
        """Steps done of the epoch that is not finished."""
        return self.step - self.epoch * self.train_loader.steps_per_epoch

    def train_epoch(self) -> dict[str, float]:
        """What is left of an epoch; the epoch's row for `metrics.jsonl`."""
        self.model.train()
        epoch, first = self.epoch + 1, self.steps_of_epoch
        if first == 0:
            self.values = StepValues(self.task.train_metrics)
        self.progress.start_epoch(epoch, first)
        every_loss = self.check_loss == "step"  # then signals are asked for as often
        for batch, inputs in self.pass_of.inputs(self.train_loader.epoch(epoch, first)):
            self.progress.data_ready()
            lr = self.optimizer.get_lr()
            self.train_step(inputs, batch)
            line_due = self.progress.step_done()
            if line_due:
                self._report(lr)
            if self.save_steps and self.step % self.save_steps == 0:
                self.save(Place(self.epoch, self.steps_of_epoch))
            self._exit_if_asked(Place(self.epoch, self.steps_of_epoch), line_due or every_loss)
        means = self.values.epoch_means.compute()
        seconds, ips = self.progress.end_epoch(means)
        row = {"epoch": epoch, "step": self.step, "lr": self.last_lr}
        row |= {f"train_{name}": value for name, value in means.items()}
        return {**row, "seconds": seconds, "ips": ips}

    def _report(self, lr: float) -> None:
        """The line and the scalars of the steps since the last one."""
        self._read_losses()
        if self.values.window.empty:
            return
        self.precision.refuse_floor()
        shown = self.values.window.compute()
        ips = self.progress.line(lr, shown)
        scalars = {f"Train/{name}": value for name, value in shown.items()}
        self.vdl.scalars({**scalars, "Train/lr": lr, "Train/ips": ips}, self.step)
        self.values.window, self.last_lr = WeightedMean(self.task.train_metrics), lr

    def finish_epoch(self, row: dict[str, float]) -> None:
        """After the last step of an epoch: evaluate, draw, write its row and its checkpoint."""
        if self.schedule_by == "epoch":
            self.schedule.step()
        self.epoch += 1
        last = self.epoch == self.epochs
        evaluating = self.epoch % self.eval_interval == 0 or last
        improved = False
        if evaluating:
            with self._evaluated_weights():
                self._picture()
                if self.eval_loader is not None:
                    result = self.evaluate(self.eval_loader, "Eval")
                    row.update({f"eval_{name}": value for name, value in result.items()})
                    improved = self._note_best(result)
        if distributed.is_main():
            # The row comes before the checkpoint: a resumed run drops rows it makes anew.
            self.metrics.append(row)
            if evaluating:
                save_figure(curves_figure(self.metrics.read()), self.run.curves)
        if self.epoch % self.save_interval == 0 or last or improved:
            self.save(Place(self.epoch), improved)
        distributed.barrier()

    def save(self, place: Place, best: bool = False) -> None:
        """A checkpoint of this moment; every rank takes part, rank 0 writes."""
        self._read_losses()
        state = self.state_dict()
        refuse_broken_weights(state["model"], self.step)
        if distributed.is_main():
            self.vdl.flush()  # what lies behind the checkpoint is not drawn again
            self.checkpoints.save(place, state, best)
        self._saved = place

    def _exit_if_asked(self, place: Place, agree: bool) -> None:
        """Saves and leaves if a signal came to any rank.

        Several ranks have to leave at the same step, and find out which only where `agree` is set:
        asking at every step would make GPUs wait.
        """
        number = self._signals.received
        if distributed.world_size() > 1:
            number = int(distributed.gather_over_ranks(np.array([number])).max()) if agree else 0
        if number == 0:
            return
        if self._saved != place:
            self.save(place)
        distributed.barrier()  # the launcher kills what is left when the first rank has gone
        get_logger().warning(
            f"stopped after step {self.step} as asked; go on with Global.checkpoints=latest"
        )
        raise SystemExit(128 + number)

    def train_step(self, inputs: Pieces, batch: Batch) -> None:
        """One update with this rank's part of a batch, and its values into the means.

        Where the loss is read at every step and is not finite on some rank, nothing is updated.
        """
        self.values.add(self.pass_of.gradients(inputs, self.step), len(batch.images))
        loss = self.values.read() if self.check_loss == "step" else 0.0
        if math.isfinite(loss):
            self.pass_of.update()
            self._advance()
            if self.ema is not None:
                self.ema.update(self.step)
        self.optimizer.clear_grad(set_to_zero=False)  # freed: nothing to fill, or add to
        if not math.isfinite(loss):
            self._skip_or_stop(loss, self.optimizer.get_lr(), batch.indices)

    def _read_losses(self) -> None:
        """What was not read step by step; ValueError if it should have been."""
        steps = self.values.unread
        if not math.isfinite(loss := self.values.read()):
            raise ValueError(advice_when_late(loss, self.step - steps + 1, self.step))

    def _advance(self) -> None:
        if self.schedule_by == "step":
            self.schedule.step()
        self.step += 1

    def evaluate(self, loader: EvalLoader, split: str) -> dict[str, float]:
        """The task's metrics on other images, logged under "Eval" or "Test"; all ranks."""
        self.model.eval()
        with paddle.no_grad(), self.precision.autocast():
            result = self.task.evaluate(self.model, loader)
        refuse_broken_metrics(result, self.step)
        get_logger().info(f"[{split}][Epoch {self.epoch}/{self.epochs}] {listed(result)}")
        self.vdl.scalars({f"{split}/{name}": value for name, value in result.items()}, self.step)
        return result

    def _note_best(self, result: dict[str, float]) -> bool:
        metric = self.task.best_metric
        if metric is None or result[metric] <= self.best.get(metric, -math.inf):
            return False
        self.best = {metric: result[metric], "epoch": self.epoch}
        return True

    def _picture(self) -> None:
        if not distributed.is_main():
            return
        with paddle.no_grad(), self.precision.autocast():
            figure = self.task.draw(self.model)
        if figure is not None:
            save_figure(figure, self.run.reconstructions / f"epoch_{self.epoch:04d}.png")
            self.vdl.image("Eval/reconstructions", figure_pixels(figure), self.step)

    def _skip_or_stop(self, loss: float, lr: float, indices: np.ndarray) -> None:
        """Counts a step without an update, or saves the state before it and stops; all ranks."""
        refuse_broken_parameters(self.model, self.step)
        number, left = self.step + 1, self.max_skipped_steps - self.skipped_steps
        where = f"step {number} (epoch {self.epoch + 1}, learning rate {lr:.3e})"
        what = f"the loss is {loss} at {where}"
        if left > 0:
            get_logger().warning(f"{what}: no update; {left - 1} more may be skipped")
            self.skipped_steps += 1
            self._advance()
            return
        batch = {"step": number, "loss": str(loss), "learning_rate": lr}
        aside = put_aside(self.checkpoints, self.state_dict(), batch, indices)
        raise ValueError(f"{what}: {advice(aside)}")

    def state_dict(self) -> dict[str, dict]:
        """All that the run needs to go on, by part; every rank has to call it."""
        own = self.optimizer.state_dict()  # once: where it is sharded, all of it travels
        return {
            **({} if self.ema is None else {"ema": self.ema.state_dict()}),
            "model": float32_weights(own, self.model, self.exact),
            "optimizer": optimizer_state(own, self.model),
            "trainer": {
                "epoch": self.epoch,
                "step": self.step,
                "skipped_steps": self.skipped_steps,
                "steps_per_epoch": self.train_loader.steps_per_epoch,
                "best": self.best,
                "schedule": {"last_epoch": self.schedule.last_epoch},
                "scaler": self.precision.state_dict(),
                **self.values.state_dict(),
                "last_lr": self.last_lr,
            },
        }

    def load_state_dict(self, state: dict[str, dict]) -> None:
        """Puts back what `state_dict` gave.

        Raises:
            ValueError: the state is of another model, or of epochs with another number of steps.
        """
        trainer = state["trainer"]
        if trainer["steps_per_epoch"] != self.train_loader.steps_per_epoch:
            raise ValueError(
                f"the checkpoint was made with {trainer['steps_per_epoch']} steps an epoch and "
                f"this run has {self.train_loader.steps_per_epoch}: keep the data and "
                "Data.batch_size, or start a new run from its weights (Global.pretrained_model)"
            )
        if ("ema" in state) != (self.ema is not None):
            raise ValueError(
                f"the checkpoint {'has' if 'ema' in state else 'lacks'} averaged weights: keep "
                "Optimizer.ema_decay as the run began"
            )
        load_into(self.model, state["model"])
        self.exact = {name: state["model"][name] for name in self.exact}
        load_optimizer_state(self.optimizer, self.model, state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.epoch, self.step, self.best = trainer["epoch"], trainer["step"], trainer["best"]
        self.skipped_steps = trainer.get("skipped_steps", 0)  # before it was counted: none were
        self.schedule.step(trainer["schedule"]["last_epoch"])
        self.precision.load_state_dict(trainer["scaler"])
        self.values.load_state_dict(trainer)
        self.last_lr = trainer["last_lr"]

    def resume(self, checkpoint: Path) -> None:
        """Goes on from a checkpoint folder; what the log holds of later steps is dropped."""
        self.load_state_dict(load_checkpoint(checkpoint))
        if distributed.is_main():
            self.checkpoints.best_is(self.best and Place(int(self.best["epoch"])))
            self.metrics.keep_until(self.epoch)
            self.vdl.open()
            self.vdl.keep_until(self.step)
        get_logger().info(f"resumed from {checkpoint}: epoch {self.epoch}, step {self.step}")
