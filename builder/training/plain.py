"""The plain loop: one model at a time, the network of `nws_dataset.networks.network`, torch's autograd.

The fast steps are tested against it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from builder.plan import Model
from builder.training import batches, update
from builder.training.bank import Images
from builder.training.initial import initial_row
from nws_dataset.networks.layout import layout_of
from nws_dataset.networks.network import Network


class PlainLoop:
    """Trains one model step by step.

    Args:
        model: the model to train.
        images: its image set, in the architecture's channels and size; its device is used.
        dtype: the weights' type.
    """

    def __init__(self, model: Model, images: Images, dtype: torch.dtype = torch.float64) -> None:
        images = batches.with_label_noise(model, images)
        self.model, self.images, self.dtype = model, images, dtype
        recipe = model.recipe
        self.layout = layout_of(recipe.architecture)
        self.parts = batches.split_images(model, images.train_labels)
        self.device = images.train_labels.device
        self.network = Network(recipe.architecture, recipe.activation, recipe.dropout).to(self.device, dtype)
        self.row = torch.from_numpy(initial_row(model)).to(self.device, dtype)
        self.first = torch.zeros_like(self.row)
        self.second = torch.full_like(self.row, update.SECOND_START[recipe.optimizer])
        self.steps = 0
        self.decay = 0.0  # the part of each weight that goes before the next step
        # [1, P], 0 at the running statistics
        trained = [torch.full((spec.size,), spec.trained) for spec in self.layout.tensors]
        self.trained = torch.cat(trained)[None].to(self.row)

    def step(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        masks: dict[str, torch.Tensor],
        rate: float,
    ) -> float:
        """Step on images [B, C, H, W] in 0 .. 1 with dropout factors; return the cross-entropy before it."""
        recipe, network = self.model.recipe, self.network.load_row(self.row).train()
        network.zero_grad()
        loss = F.cross_entropy(network(images, masks), labels, label_smoothing=recipe.label_smoothing)
        edges = (spec.name for spec in self.layout.tensors if len(spec.units) > 1)
        kernels = [network.get_parameter(name) for name in edges]
        (loss + recipe.l2 * torch.stack([kernel.square().sum() for kernel in kernels]).sum()).backward()
        gradients = [
            network.get_parameter(s.name).grad
            if s.trained
            else torch.zeros(s.shape, dtype=self.dtype, device=self.device)
            for s in self.layout.tensors
        ]
        gradient = torch.cat([g.reshape(-1) for g in gradients if g is not None])
        self.row = network.row()  # the running statistics have moved
        update.update(
            recipe.optimizer,
            self.row[None],
            gradient[None],
            self.first[None],
            self.second[None],
            torch.tensor([[rate]], dtype=self.dtype, device=self.device),
            self.decay * self.trained,
        )
        return loss.item()

    def epoch(
        self, epoch: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor], float]]:
        """The steps of an epoch, as arguments of `step`: images, labels, masks, rate."""
        recipe = self.model.recipe
        order = batches.epoch_order(self.model, self.parts, self.images.train_labels, epoch)
        batch = min(recipe.batch_size, len(order))
        per_epoch = len(order) // batch
        for index in order[: len(order) // batch * batch].split(batch):
            rate = update.rate_of(recipe, self.steps, per_epoch)
            self.decay = rate * recipe.weight_decay
            self.steps += 1
            images = batches.training_images(self.model, self.images, index, epoch, self.dtype)
            masks = batches.dropout_masks(self.model, index, epoch, self.dtype)
            yield (
                images,
                self.images.train_labels[index],
                masks,
                update.step_size(recipe.optimizer, rate, self.steps),
            )
