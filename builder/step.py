"""The fused step: forward, backward and update of K models of one architecture at once, on rows [K, P].

Every layer of every model is a view of its row. On a GPU a step takes a whole cohort: convolutions become grouped ones, dense layers
batched products, batch-norm one of K x C channels. On a CPU `train` calls it with one model at a time (K = 1): that keeps a model's step
in cache, and makes a row independent of its neighbours to the last bit.

Axes: K models, B images, C channels, H W pixels, U units, P weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from builder.update import update
from nws_dataset.layout import NORM_SUFFIX, OUTPUT, layout_of
from nws_dataset.network import ACTIVATIONS, BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM
from nws_dataset.recipe import Architecture, Recipe

EVALUATION_BATCH = 500  # images in a forward pass; fixed, so that an evaluation can be repeated to the last bit

Tensors = Mapping[str, torch.Tensor]


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's CPU kernels on one thread: sums do not depend on the machine's cores, and models run side by side in processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def scale(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 images -> floating point in 0 .. 1."""
    return images.to(dtype).div_(255)


class FusedStep:
    """Trains and evaluates models that share an architecture.

    Args:
        architecture: of all the models.
        recipes: of the K models, in the order of their rows; what else they differ in.
        device: where the rows are.
        dtype: of the rows.
    """

    def __init__(self, architecture: Architecture, recipes: Sequence[Recipe], device: torch.device, dtype: torch.dtype) -> None:
        self.architecture, self.recipes, self.layout = architecture, recipes, layout_of(architecture)
        kernels = torch.zeros(self.layout.num_weights, dtype=dtype)
        for spec in self.layout.tensors:
            kernels[spec.offset : spec.stop] = float(spec.kind == "weight")
        l2 = torch.tensor([recipe.l2 for recipe in recipes], dtype=dtype)
        self._decay = (2 * l2[:, None] * kernels).to(device) if l2.any() else None  # [K, P]
        self._activations = {
            name: torch.tensor([recipe.activation == name for recipe in recipes], device=device)
            for name in dict.fromkeys(recipe.activation for recipe in recipes)
        }
        self._optimizers = {
            name: torch.tensor([k for k, recipe in enumerate(recipes) if recipe.optimizer == name], device=device)
            for name in dict.fromkeys(recipe.optimizer for recipe in recipes)
        }

    def train(
        self,
        rows: torch.Tensor,
        moments: tuple[torch.Tensor, torch.Tensor],
        images: torch.Tensor,
        labels: torch.Tensor,
        masks: Tensors,
        rates: torch.Tensor,
    ) -> torch.Tensor:
        """One step of every model, in place.

        Args:
            rows: [K, P].
            moments: first and second, [K, P] each.
            images: [K, B, C, H, W] floating point in 0 .. 1.
            labels: [K, B] int64.
            masks: layer -> [K, B, units...], factors of dropout.
            rates: [K, 1], from `update.step_size`.

        Returns:
            [K], the mean cross-entropy before the step, without L2.
        """
        losses, gradients = self.gradients(rows, images, labels, masks)
        for optimizer, index in self._optimizers.items():
            if len(index) == len(rows):
                update(optimizer, rows, gradients, *moments, rates)
            else:
                state = [x[index] for x in (rows, *moments)]
                update(optimizer, state[0], gradients[index], state[1], state[2], rates[index])
                for x, new in zip((rows, *moments), state, strict=True):
                    x[index] = new
        return losses

    def gradients(
        self, rows: torch.Tensor, images: torch.Tensor, labels: torch.Tensor, masks: Tensors
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean cross-entropies [K] and gradients [K, P] of the loss with L2; batch-norm's running statistics in `rows` move on."""
        views = self.layout.views(rows)
        copies = self.layout.views(rows.clone())  # autograd refuses leaves whose memory changes, as the running statistics do
        leaves = {s.name: copies[s.name].requires_grad_() for s in self.layout.tensors if s.trained}
        logits = self._forward({**views, **leaves}, images, masks, training=True)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(1)
        found = dict(zip(leaves, torch.autograd.grad(losses.sum(), list(leaves.values())), strict=True))
        parts = [found[s.name] if s.trained else torch.zeros_like(views[s.name]) for s in self.layout.tensors]
        gradients = torch.cat([part.reshape(len(rows), -1) for part in parts], 1)
        if self._decay is not None:
            gradients.addcmul_(rows, self._decay)
        return losses.detach(), gradients

    @torch.no_grad()
    def evaluate(self, rows: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each model on images of its own, batch-norm with running statistics, no dropout, every image counted.

        Args:
            rows: [K, P].
            images: [K, B, C, H, W] uint8.
            labels: [K, B] int64.

        Returns:
            Whether each image is classified correctly, [K, B] bool, and its cross-entropy, [K, B].
        """
        views = self.layout.views(rows.clone())  # the same alignment wherever a row comes from: a kernel's last bit may depend on it
        correct, losses = [], []
        for start in range(0, labels.shape[1], EVALUATION_BATCH):
            block = slice(start, start + EVALUATION_BATCH)
            logits = self._forward(views, scale(images[:, block], rows.dtype), {}, training=False)
            target = labels[:, block]
            correct.append(logits.argmax(-1) == target)
            losses.append(F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape))
        return torch.cat(correct, 1), torch.cat(losses, 1)

    def _forward(self, weights: Tensors, images: torch.Tensor, masks: Tensors, *, training: bool) -> torch.Tensor:
        """Logits [K, B, 10]; convolutional feature maps are [B, K * C, H, W], dense ones [K, B, U]."""
        architecture, models = self.architecture, len(images)
        low = architecture.pixel_min
        x = (images * (1 - low) + low if low else images).transpose(0, 1).flatten(1, 2)
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        for i, pool in enumerate(architecture.pooled, 1):
            weight, bias = weights[f"conv{i}.weight"].flatten(0, 1), weights[f"conv{i}.bias"].flatten()
            x = F.conv2d(x, weight, bias, architecture.stride, architecture.pad, groups=models)
            x = self._norm(x, weights, f"conv{i}", training) if architecture.batch_norm else x
            x = self._activate(x.unflatten(1, (models, -1)), 1).flatten(1, 2)
            x = F.max_pool2d(x, 2) if pool else x
            if f"conv{i}" in masks:
                x = x * masks[f"conv{i}"].transpose(0, 1).flatten(1, 2)
        x = x.unflatten(1, (models, -1)).transpose(0, 1)
        x = x.mean((3, 4)) if architecture.head == "average" else x.flatten(2)
        for i in range(1, architecture.depth_fc + 1):
            x = self._activate(self._dense(x, weights, f"dense{i}"), 0)
            if architecture.batch_norm:
                flat = self._norm(x.transpose(0, 1).flatten(1, 2), weights, f"dense{i}", training)
                x = flat.unflatten(1, (models, -1)).transpose(0, 1)
            x = x * masks[f"dense{i}"] if f"dense{i}" in masks else x
        return self._dense(x, weights, OUTPUT)

    @staticmethod
    def _dense(x: torch.Tensor, weights: Tensors, layer: str) -> torch.Tensor:
        return torch.baddbmm(weights[f"{layer}.bias"][:, None], x, weights[f"{layer}.weight"].transpose(1, 2))

    @staticmethod
    def _norm(x: torch.Tensor, weights: Tensors, layer: str, training: bool) -> torch.Tensor:
        """Batch-norm of K models is one of K * C channels; the running statistics in the rows are updated in training."""
        name = layer + NORM_SUFFIX
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        flat_mean, flat_variance = mean.flatten().clone(), variance.flatten().clone()  # what autograd keeps must not change later
        scale_, shift = weights[f"{name}.weight"].flatten(), weights[f"{name}.bias"].flatten()
        x = F.batch_norm(x, flat_mean, flat_variance, scale_, shift, training, BATCH_NORM_MOMENTUM, BATCH_NORM_EPSILON)
        if training:
            mean.copy_(flat_mean.view_as(mean))
            variance.copy_(flat_variance.view_as(variance))
        return x

    def _activate(self, x: torch.Tensor, model_axis: int) -> torch.Tensor:
        """Each model's own activation."""
        kinds = iter(self._activations.items())
        name, _ = next(kinds)
        y = ACTIVATIONS[name](x)
        for name, chosen in kinds:
            shape = [-1 if axis == model_axis else 1 for axis in range(x.dim())]
            y = torch.where(chosen.view(shape), ACTIVATIONS[name](x), y)
        return y
