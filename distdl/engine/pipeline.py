"""Pipeline parallelism: a rank holds a stage of consecutive layers, and micro-batches flow through the stages.

DeepSpeed's pipeline engine runs the schedule, one forward and one backward in turn (PipeDream-flush, Narayanan et al.
2021). So the loop gets one batch a step here: `forward` takes all of its micro-batches through the stages and back, and
`minimize` takes the optimizer's step, as everywhere.

What DeepSpeed 0.19 makes necessary here:
- It ties whole layers; ours share parameters, such as an embedding that the first and the last layer use.
- It sends the shape of an activation once, and held-out batches have another: the shape is then sent anew.
- It looks for the gradients of what stages share where they are not, once sums are kept in fp32.
- Its schedule ends with the optimizer's step, before anyone has looked at the loss: there the step does nothing.
- It sums the norm over the stages for one parameter group after the other, and hangs where a stage has fewer groups.
- A layer is recomputed while a later micro-batch is under way: each keeps the positions that its noise depends on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distdl.engine import nonfinite, stages
from distdl.engine.base import EVALUATION
from distdl.engine.deepspeed import DeepSpeedEngine
from distdl.engine.optimizers import add_penalties
from distdl.engine.precision import autocast
from distdl.engine.zero import loss_scale, step_left_out
from distdl.errors import TrainingFailed
from distdl.layout import noise
from distdl.layout.owned import Owned, Same
from distdl.learner import Batch, Layer, Learner
from distdl.learner.kinds import decays
from distdl.metrics import Mean, Metrics, add
from distdl.nn.watch import as_written
from distdl.parallel.birth import bear_all
from distdl.plan.plan import Plan


class PipelineEngine(DeepSpeedEngine):
    """ZeRO-1 over a pipeline, whose stages the tensor axis may cut as well.

    `sample` gives the micro-batch with which the layers are timed, where `parallel.balance` is `time`.
    """

    def __init__(self, learner: Learner, plan: Plan, rank: int, sample: Callable[[], Batch]) -> None:
        self.bounds = list(plan.stages)
        """Stage s holds the layers bounds[s] to bounds[s + 1]."""
        if plan.settings.parallel.balance == "time":  # before the tensor axis cuts the layers: only rank 0 runs them
            self.bounds = stages.balanced_by_time(learner, plan, sample if rank == 0 else None)
        self._micro_batches: list[Batch] = []
        self._coming: Iterator[Batch] = iter(())
        self._seed_and_positions: tuple[int, Tensor | None] = (0, None)
        self._evaluating = False
        self._metrics: Metrics = {}
        self._names: dict[bool, list[str]] = {}
        self._shapes: dict[str, torch.Size] = {}
        super().__init__(learner, plan, rank)

    def _to_device(self) -> None:
        """Moves this rank's stage; the other stages' tensors are freed before, for the whole model may not fit there."""
        self._layers, here = list(self.learner.layers()), self.groups.pipeline.index
        self._holders = stages.holders(self.learner, self._layers, self.bounds)
        stages.free(self.learner, {name for name, held_by in self._holders.items() if here not in held_by})
        self._elsewhere = {name for name, held_by in self._holders.items() if here != held_by[0]}
        """Tensors that another stage writes into a checkpoint."""
        bear_all(self.learner, self.device)
        for tensor in (*self.learner.parameters(), *self.learner.buffers()):
            if not tensor.is_meta:
                tensor.data = tensor.data.to(self.device)

    def _wrap(self, net: nn.Module) -> Any:
        """This rank's stage of the learner in DeepSpeed's pipeline engine."""
        import deepspeed
        from deepspeed.runtime.pipe.schedule import OptimizerStep, ReduceTiedGrads

        deepspeed.init_distributed(verbose=False)  # adopts the process group that is there
        ties = stages.ties(self.learner, self.plan.mesh, self.rank, self._holders)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its layers
            self.stage = self._stage_module(self._layers, ties)
        for name, parameter in self.learner.named_parameters():
            parameter.ds_pipe_replicated = name in self._elsewhere  # type: ignore[attr-defined] # not in the norm again
        once = [p for _, name, p in self.named() if name not in self._elsewhere]
        engine = self._initialize(self.stage, None)
        add_penalties(self.config, nn.ParameterList(once), self.plan.accumulate, lambda: loss_scale(engine))
        others = {ReduceTiedGrads: _sum_tied, OptimizerStep: lambda engine: None}
        engine._INSTRUCTION_MAP = {**engine._INSTRUCTION_MAP, **others}
        engine._config.steps_per_print = None  # before the first step its count is 0, which any number divides
        return engine

    def _stage_module(self, layers: Sequence[Layer], ties: list[tuple[nn.Parameter, Any]]) -> nn.Module:
        """The layers as DeepSpeed's module, which keeps those of this stage."""
        from deepspeed.pipe import PipelineModule
        from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

        bounds, begin_forward, lowered = self.bounds, self._begin_forward, self._autocast

        class Stage(PipelineModule):
            def _partition_layers(self, method: str) -> None:
                self.parts = bounds
                self._set_bounds(*bounds[self.stage_id : self.stage_id + 2])

            def get_tied_weights_and_groups(self) -> list[tuple[nn.Parameter, Any]]:
                return ties  # whose gradients are summed over the stages

            def forward(self, x: Tensor) -> Any:
                begin_forward()
                with lowered():
                    return super().forward(x)

        mesh = self.plan.mesh
        stage = Stage(
            [_Layer(layer.modules, self._runner(index, layer)) for index, layer in enumerate(layers)],
            topology=PipeModelDataParallelTopology(num_pp=mesh.pipeline, num_mp=mesh.tensor, num_dp=mesh.data),
            loss_fn=self._criterion,
        )
        have = {decays(p) for p in stage.parameters() if p.requires_grad}
        for decayed in {True, False} - have:  # both of the optimizer's groups on every stage
            nothing = nn.Parameter(torch.zeros((1, 1), device=self.device))
            nothing.distdl_decays = decayed  # type: ignore[attr-defined]
            stage.register_parameter(f"no_{'matrix' if decayed else 'vector'}", nothing)
        return stage

    def _runner(self, index: int, layer: Layer) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            seed, positions = self._seed_and_positions

            def with_its_noise(x: Tensor) -> Tensor:
                noise.begin(seed, positions)
                noise.layer(index)
                return layer.run(x)

            return self.learner.run_layer(index, dataclasses.replace(layer, run=with_its_noise), x)

        return run

    def _autocast(self) -> torch.autocast:
        return autocast(self.config.train.precision, self.plan.device)

    # -- a step ----------------------------------------------------------------------------------------------------------

    def feed(self, source: Iterator[Mapping[str, Tensor]], step: int) -> Iterator[Batch]:
        """All micro-batches of an optimizer step as one batch."""
        self._micro_batches = list(super().feed(source, step))
        self.batch = {name: torch.cat([b[name] for b in self._micro_batches]) for name in self._micro_batches[0]}
        self.pulse.at("forward")
        self.patience.in_step(self.pulse)
        yield self.batch
        self.patience.beside_steps()
        self.pulse.at("after the step")

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """All micro-batches forward and backward: the mean loss over all ranks, detached, and this data rank's metrics, on
        every stage."""
        loss = self.engines["learner"].train_batch(self._inputs(self._micro_batches)).detach()
        noise.begin(0, None)
        return loss, self._from_last_stage()

    def _minimize(self, loss: Tensor, player: str) -> None:
        engine = self.engines[player]
        with step_left_out(engine, self.zero) if self.left_out else contextlib.nullcontext():
            engine._exec_optimizer_step()
        self.grad_norm = None if self.left_out else engine.get_global_grad_norm()

    def step_loss(self) -> float:
        return float(self._loss_sum)  # of one loss, the mean already

    def own_loss(self) -> float:
        return 0.0

    def _trained(self, player: str) -> nn.Module:
        return self.stage

    def _evaluate(self, batch: Batch) -> Metrics:
        """What the learner's own `evaluate` says on the last stage of what came through the pipeline."""
        self._evaluating = True
        try:
            self.engines["learner"].eval_batch(
                self._inputs([batch]), reduce_output=None, bcast_loss=False, num_micro_batches=1
            )
        finally:
            self._evaluating = False
        return self._from_last_stage(evaluation=True)

    def _inputs(self, batches: list[Batch]) -> Iterator[tuple[Tensor | None, Batch]]:
        """What DeepSpeed asks for on the first and the last stage; every stage gets ready for these micro-batches."""
        shapes = {name: tensor.shape for name, tensor in batches[0].items()}
        if shapes != self._shapes:
            self._shapes = shapes
            self.engines["learner"].reset_activation_shape()
        self._coming, self._metrics = iter(batches), {}
        return map(self._load, batches)

    def _load(self, batch: Batch) -> tuple[Tensor | None, Batch]:
        """What goes into the first stage, and what the criterion compares with on the last."""
        if self.groups.pipeline.index:
            return None, batch
        noise.begin(self._seed(), batch["position"])  # what the family draws to vary its inputs
        with self._autocast():
            return self.learner.inputs(batch), batch

    def _begin_forward(self) -> None:
        """A stage sees the micro-batches in their order, whatever backward passes come between."""
        self._seed_and_positions = self._seed(), next(self._coming)["position"]

    def _seed(self) -> int:
        return self.config.seed ^ EVALUATION if self._evaluating else self.config.seed

    def _criterion(self, output: Tensor, batch: Batch) -> Tensor:
        """On the last stage: the loss of one micro-batch; its metrics are kept."""
        with self._autocast():
            if self._evaluating:
                self.learner.through = lambda batch: output  # type: ignore[method-assign]
                try:
                    add(self._metrics, self.learner.evaluate(batch))
                finally:
                    del self.learner.through
                return output.new_zeros(())
            loss, metrics = self.learner.criterion(output, batch)
        add(self._metrics, metrics)
        return loss

    def _from_last_stage(self, evaluation: bool = False) -> Metrics:
        """The metrics that the last stage has gathered, on every stage."""
        axis = self.groups.pipeline
        source = axis.rank(axis.size - 1)
        if evaluation not in self._names:  # once: they never change
            told = [sorted(self._metrics)]
            dist.broadcast_object_list(told, source, axis.group, device=self.device)
            self._names[evaluation] = told[0]
        names = self._names[evaluation]
        pairs = torch.zeros(len(names), 2, dtype=torch.float64, device=self.device)  # (total, count)
        for pair, name in zip(pairs, names):
            if name in self._metrics:
                pair[0], pair[1] = self._metrics[name]
        if names:
            dist.broadcast(pairs, source, axis.group)
        return {name: Mean(total, count.item()) for name, (total, count) in zip(names, pairs)}

    @property
    def _reads_late(self) -> bool:
        return False  # the mean loss is there before the step is taken, and to find its cause takes all stages

    # -- what is not finite ----------------------------------------------------------------------------------------------

    def _stop(self, loss: float) -> NoReturn:
        """Collective. Raises TrainingFailed with the first tensor of any rank that is not finite, the same everywhere."""
        found: list[Any] = [None] * self.plan.world
        dist.all_gather_object(found, (self._first_bad(), nonfinite.row_numbers(self.batch)))
        of_loss = ("the loss itself, with every module's output finite", nonfinite.row_numbers(self.batch))
        first, samples = next((there for there in found if there[0]), of_loss)
        raise TrainingFailed(
            f"the loss of step {self._step + 1} is {loss}: the first tensor that is not finite is {first}.\n"
            f"    samples of its micro-batches (row numbers): {samples}\n"
            f"    nothing was learned from it; the last checkpoint is sound\n    fix: {nonfinite.ADVICE}"
        )

    def _first_bad(self) -> str:
        """Runs the micro-batches forward again with the noise that they had, and watches this stage's modules."""
        bad = [f"the column {name!r} of the batch" for name, column in self.batch.items() if nonfinite.is_bad(column)]
        bad += [f"the weight {name}" for _, name, parameter in self.named() if nonfinite.is_bad(parameter)]
        modules = [(name, module) for name, module in self.learner.named_modules() if name]
        handles = [module.register_forward_hook(nonfinite.watch(name, bad)) for name, module in modules]
        engine = self.engines["learner"]
        engine.set_dataiterator(self._inputs(self._micro_batches))
        try:
            with torch.no_grad(), as_written():
                engine._exec_schedule(engine._inference_schedule(self.plan.accumulate))
        finally:
            for handle in handles:
                handle.remove()
        return bad[0] if bad else ""

    def shared(self) -> dict[str, list[int]]:
        return {name: stages for name, stages in self._holders.items() if len(stages) > 1}

    # -- checkpoint ------------------------------------------------------------------------------------------------------

    def owned(self) -> Iterator[Owned]:
        return (owned for owned in super().owned() if self._is_here(owned.name))

    def _same(self) -> Iterator[Same]:
        return (same for same in super()._same() if self._is_here(same.name))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor) for name, tensor in super().tensors() if self._is_here(name))

    def _is_here(self, name: str) -> bool:
        """Whether it is this stage that writes a tensor into a checkpoint; `name`: its name there."""
        return name.rpartition("/")[2] not in self._elsewhere

    def named(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        return ((player, name, p) for player, name, p in super().named() if not p.is_meta)

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, buffer) for name, buffer in super().named_buffers() if not buffer.is_meta)


class _Layer(nn.ModuleList):
    """A layer as a module with its parameters, which DeepSpeed sends an activation (B, ...) through."""

    def __init__(self, modules: Sequence[nn.Module], run: Callable[[Tensor], Tensor]) -> None:
        super().__init__(modules)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def _sum_tied(engine: Any) -> None:
    """Takes the place of DeepSpeed's sum of what stages share, which finds no gradient where the sums are kept in fp32."""
    for weight, group in engine.module.get_tied_weights_and_groups():
        zero = engine.zero_optimization()  # stage 0 keeps none of its own, and is run only to show why it is refused
        gradient = engine.optimizer.get_gradient_for_reduction(weight) if zero else weight.grad
        if gradient is not None:
            dist.all_reduce(gradient, group=group)
