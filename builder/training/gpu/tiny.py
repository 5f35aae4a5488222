"""Compares all that a tiny cohort's steps compute with plain loops in float64, and names what differs.

Axes: M slots, B images, P weights.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from builder.plan import Model
from builder.training import batches, update
from builder.training.backend import Segment, State, aligned
from builder.training.bank import Images
from builder.training.gpu.backend import GpuBackend, Run
from builder.training.plain import PlainLoop
from nws_dataset.format.recipe import Recipe
from nws_dataset.networks.base import NUM_CLASSES
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import layout_of
from nws_dataset.networks.network import Network

# For float32, relative in norm; the median over models. Rounding alone gives 5e-7 to 3e-5, most if many
# layers have batch-norm.
GRADIENT_TOLERANCE = 1e-4
# of each model: another choice at a max-pool tie, or at a unit near a kink, moves a whole gradient
TIE_TOLERANCE = 2e-3
# the same two when products cut their factors: with five layers with ReLU a gradient was off by 0.6
TF32_TOLERANCES = 0.3, 3.0
UPDATE_TOLERANCE = 1e-5  # of each number, given the gradient, relative to the largest number in its sum

# steps compared; a model's best gradient counts, since ties fall differently in each step
MIN_COMPARED_STEPS, MAX_COMPARED_STEPS = 2, 8
GRADIENT = "the gradient"
EMPTY = 1  # the slot without a model
EVALUATED_IMAGES = 256


def differs(
    errors: Sequence[float], tolerances: tuple[float, float] = (GRADIENT_TOLERANCE, TIE_TOLERANCE)
) -> bool:
    """Whether errors of some models exceed rounding: their median does, or one is too large for a tie."""
    median, each = tolerances
    # also true for NaN
    return not (all(error < each for error in errors) and statistics.median(errors) < median)


class TinyCohort:
    """Models of all activations and optimizers in slots, and plain loops in float64 beside them.

    Args:
        architecture: the models' architecture.
        batch: images per step.
        device: where both train.
        tf32: whether products cut their factors.
    """

    def __init__(
        self, architecture: Architecture, batch: int, device: torch.device, *, tf32: bool = False
    ) -> None:
        self.architecture, self.layout, self.batch = architecture, layout_of(architecture), batch
        self.tolerances = TF32_TOLERANCES if tf32 else (GRADIENT_TOLERANCE, TIE_TOLERANCE)
        self.models = tiny_models(architecture, batch)
        self.slots = [m for m in range(len(self.models) + 1) if m != EMPTY]
        self.images = noise_images(architecture, MAX_COMPARED_STEPS * batch, device)
        self.loops = [RecordingLoop(model, self.images) for model in self.models]
        labels = self.images.train_labels
        self.orders = [
            batches.epoch_order(model, loop.parts, labels, 0)
            for model, loop in zip(self.models, self.loops, strict=True)
        ]
        self.steps = [loop.epoch(0) for loop in self.loops]
        self.trained = torch.cat([torch.full((spec.size,), spec.trained) for spec in self.layout.tensors]).to(
            device
        )
        self.start = start_of(self.models, [loop.row for loop in self.loops], device)
        self.backend = GpuBackend(architecture, device, tf32=tf32)
        self.state = copy_of(self.start)
        self.run = Run(architecture, self.backend.products, self.state, batch)
        # of each model so far, in the order of the step: the worst error, but of gradients the best
        self.errors: dict[str, list[float]] = {}
        self.clues: dict[str, list[float]] = {}  # the best errors that help to locate a wrong gradient

    def difference(self) -> str | None:
        """What differs after some steps, or in the evaluation; None if nothing does."""
        found: str | None = None
        for step in range(MAX_COMPARED_STEPS):
            self.compare_step(step)
            found = self._worst()
            if step + 1 >= MIN_COMPARED_STEPS and found is None:
                break
        return found or self._evaluation()

    def compare_step(self, number: int) -> None:
        """Take a step from the start and record how far it is from the plain loops' step."""
        for x, start in zip(self.state, self.start, strict=True):
            x.copy_(start)
        members = zip(self.slots, self.models, self.orders, strict=True)
        losses = self.run.train(
            {
                m: Segment(model, self.images, order, self.batch, 0, number, number, 1)
                for m, model, order in members
            }
        )
        for k, (m, loop) in enumerate(zip(self.slots, self.loops, strict=True)):
            loop.restart()
            loss = loop.step(*next(self.steps[k]))
            for name, error in self._errors(m, loop, float(losses[k]), loss):
                self._keep(self.errors, name, k, error, worst=name != GRADIENT)
            for name, error in self._clues(m, loop):
                self._keep(self.clues, name, k, error, worst=False)

    def _keep(self, errors: dict[str, list[float]], name: str, k: int, error: float, *, worst: bool) -> None:
        error = error if error == error else float("inf")
        kept = errors.setdefault(name, [0.0 if worst else float("inf")] * len(self.models))
        kept[k] = max(kept[k], error) if worst else min(kept[k], error)

    def _errors(
        self, m: int, loop: RecordingLoop, found_loss: float, loss: float
    ) -> Iterator[tuple[str, float]]:
        """A model's errors, in the order in which a step computes the numbers."""
        run, before = self.run, "the batch, by augment.load,"
        for layer, entering in zip(run.layers.layers, run.layers.inputs(run.images), strict=True):
            name = layer.product.layer
            yield f"{before} that enters {name}", _error(entering[m], loop.entering[name])
            yield f"the product of {name}, by products.forward,", _error(layer.y[m], loop.leaving[name])
            before = (
                f"{name}'s end (batch-norm, activation, pooling, dropout), by "
                f"{'epilogues.conv_epilogue_forward' if layer.is_conv else 'dense.dense_epilogue_forward'},"
            )
        yield "the loss, by update_kernels.cross_entropy,", abs(found_loss - loss) / abs(loss)
        for spec in self.layout.tensors:
            if not spec.trained:
                yield (
                    spec.name,
                    _error(*(row[spec.offset : spec.stop] for row in (self.state[0][m], loop.row))),
                )
        yield GRADIENT, _error(self._gradient(m), loop.gradient)
        yield "the update, by update_kernels.update,", self._update_error(m, loop)
        touched = any(
            (x[EMPTY] != start[EMPTY]).any() for x, start in zip(self.state, self.start, strict=True)
        )
        yield "a slot without a model", float(touched)

    def _clues(self, m: int, loop: RecordingLoop) -> Iterator[tuple[str, float]]:
        """Errors of gradients, from the last layer to the first."""
        whole, gradient = float(loop.gradient.norm()), self._gradient(m)
        for layer in reversed(self.run.layers.layers):
            name = layer.product.layer
            assert layer.gradient is not None
            error = _error(layer.gradient.dy[m], loop.towards[name])
            by = "products.input_gradient or epilogues.conv_epilogue_backward"
            yield f"the gradient in the product of {name}, by {by},", error
            for spec in self.layout.tensors:
                if spec.trained and spec.layer == name:
                    found, exact = (row[spec.offset : spec.stop] for row in (gradient, loop.gradient))
                    # a bias before batch-norm has a gradient of rounding errors only
                    scale = max(float(exact.norm()), 1e-3 * whole)
                    yield f"the gradient of {spec.name}", float((found - exact).norm()) / scale

    def _gradient(self, m: int) -> torch.Tensor:
        """[P] float64, with L2."""
        return self.run.gradients[m].double() + self._l2(m)

    def _l2(self, m: int) -> torch.Tensor:
        """[P] float64, L2's part of the gradient."""
        model = self.models[self.slots.index(m)]
        return 2 * model.recipe.l2 * self.run.kernels.double() * self.start[0][m].double()

    def _update_error(self, m: int, loop: RecordingLoop) -> float:
        """The largest error of row and moments against `builder.training.update.rule`, given the gradient."""
        recipe = loop.model.recipe
        rate = update.step_size(recipe.optimizer, recipe.learning_rate, loop.steps)
        row, first, second = (x[m].double() for x in self.start)
        gradient, l2, coefficients = (
            self.run.gradients[m].double(),
            self._l2(m),
            update.COEFFICIENTS[recipe.optimizer],
        )
        exact = update.rule(row, gradient + l2, first, second, rate, coefficients)
        # The same sums with absolute values, so that nothing cancels.
        scales = update.rule(-row.abs(), gradient.abs() + l2.abs(), first.abs(), second, rate, coefficients)
        errors = [
            (x[m] - new).abs() / scale.abs().clamp(min=1e-30)
            for x, new, scale in zip(self.state, exact, scales, strict=True)
        ]
        return float(torch.stack(errors)[:, self.trained].nan_to_num(nan=float("inf")).max())

    def _worst(self) -> str | None:
        """The first difference, in words."""
        for name, errors in self.errors.items():
            exact = (UPDATE_TOLERANCE, UPDATE_TOLERANCE) if name.startswith("the update") else self.tolerances
            if differs(errors, exact):
                if name == GRADIENT:
                    name, errors = next(
                        ((n, e) for n, e in self.clues.items() if differs(e, exact)), (name, errors)
                    )
                return self._describe(name, errors)
        return None

    def _evaluation(self) -> str | None:
        """Evaluate the rows after the last step, and compare."""
        pixels, labels = (
            self.images.test_images[:EVALUATED_IMAGES],
            self.images.test_labels[:EVALUATED_IMAGES],
        )
        errors = []
        for m, model in zip(self.slots, self.models, strict=True):
            correct, losses = self.backend.evaluate(
                self.state[0][m : m + 1], model.recipe.activation, pixels, labels
            )
            plain_network = Network(self.architecture, model.recipe.activation).to(
                pixels.device, torch.float64
            )
            with torch.no_grad():
                logits = plain_network.load_row(self.state[0][m].double()).eval()(pixels)
            first, second = logits.topk(2).values.unbind(1)
            clear = first - second > self.tolerances[1] * logits.abs().amax(1)
            wrong = clear & (correct[0] != (logits.argmax(1) == labels))
            exact = F.cross_entropy(logits, labels, reduction="none")
            error = _error(losses[0], exact)
            errors.append(float("inf") if wrong.any() or error != error else error)
        return (
            self._describe("the evaluation, by GpuBackend.evaluate,", errors)
            if differs(errors, self.tolerances)
            else None
        )

    def _describe(self, name: str, errors: list[float]) -> str:
        worst = max(range(len(errors)), key=errors.__getitem__)
        r = self.models[worst].recipe
        recipe = (
            f"{r.optimizer}, {r.activation}, dropout {r.dropout}, L2 {r.l2}, "
            f"{'with' if r.augmentation else 'without'} augmentation"
        )
        return (
            f"{name} off by {errors[worst]:.1e} with {self.architecture.id}, batch size {self.batch}, "
            f"{recipe}"
        )


class RecordingLoop(PlainLoop):
    """A plain loop in float64 that starts anew at each step, and records what went through the network."""

    def __init__(self, model: Model, images: Images) -> None:
        super().__init__(model, images)
        self.start = self.row
        # layer -> its product's tensors
        self.entering, self.leaving, self.towards = (dict[str, torch.Tensor]() for _ in range(3))
        for layer in self.layout.layers:
            self.network.get_submodule(layer).register_forward_hook(
                lambda _, given, out, layer=layer: self._note(layer, given[0], out)
            )

    def _note(self, layer: str, given: torch.Tensor, out: torch.Tensor) -> None:
        self.entering[layer], self.leaving[layer] = given.detach(), out.detach()
        out.register_hook(lambda gradient: self.towards.__setitem__(layer, gradient))

    def restart(self) -> None:
        self.row = self.start
        self.first.zero_()

    @property
    def gradient(self) -> torch.Tensor:
        """[P] of the step since then, with L2."""
        return self.first / update.COEFFICIENTS[self.model.recipe.optimizer].first_gain


def tiny_models(architecture: Architecture, batch: int) -> list[Model]:
    """A model of each activation and optimizer; half have augmentation, dropout, L2, in different pairs."""
    combinations = zip(
        ("relu", "elu", "sigmoid", "tanh"),
        ("adam", "rmsprop", "momentum", "sgd"),
        (0.5, 0.3, 0.0, 0.3),
        strict=True,
    )
    return [
        Model(
            "demo",
            number,
            seed=0,
            recipe=Recipe(
                architecture, "digits", 0.002, batch, optimizer, activation, "glorot_uniform",
                augmentation=number % 2 == 1,
                dropout=dropout, l2=1e-3 * (number > 1), validation_fraction=0.0, balanced=False,
            ),
            block=0,
        )
        for number, (activation, optimizer, dropout) in enumerate(combinations)
    ]  # fmt: skip


def noise_images(architecture: Architecture, count: int, device: torch.device) -> Images:
    """Random pixels: hardly two windows are equal, as they are where images are black."""
    shape = count, architecture.image_channels, architecture.image_size, architecture.image_size
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8)).to(device)
    labels = torch.arange(count, device=device) % NUM_CLASSES
    return Images(pixels, labels, pixels, labels, gray=False)


def start_of(models: Sequence[Model], initial: Sequence[torch.Tensor], device: torch.device) -> State:
    """Initial rows and random moments, [M, P] each; no model at EMPTY; constant second moments are 1."""
    layout, rows = layout_of(models[0].recipe.architecture), list(initial)
    rows.insert(EMPTY, torch.full_like(rows[0], 0.5))
    generator = torch.Generator().manual_seed(0)
    size = len(rows), layout.num_weights
    first, second = (
        1e-2 * torch.randn(size, generator=generator),
        1e-6 * (0.5 + torch.rand(size, generator=generator)),
    )
    second[
        [
            k + (k >= EMPTY)
            for k, model in enumerate(models)
            if not update.COEFFICIENTS[model.recipe.optimizer].second_gain
        ]
    ] = 1
    first *= torch.cat([torch.full((spec.size,), float(spec.trained)) for spec in layout.tensors])
    buffers = torch.zeros(3, len(rows), aligned(layout.num_weights), device=device)[
        :, :, : layout.num_weights
    ]
    for buffer, x in zip(buffers, (torch.stack(rows), first, second), strict=True):
        buffer.copy_(x)
    return buffers[0], buffers[1], buffers[2]


def copy_of(state: State) -> State:
    """A copy with the same strides."""
    rows, first, second = (
        torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x) for x in state
    )
    return rows, first, second


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The relative error, in norm."""
    return float((found.double().reshape(exact.shape) - exact).norm() / exact.norm())
