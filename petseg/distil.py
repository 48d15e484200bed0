"""Distillation: a finished run teaches another model.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531. The teacher labels every
augmented image anew, so the student sees more than the labels that there are. We differ from the paper: the classes
are those of pixels, and the teacher looks at the image before `petseg.data.camera` makes it worse, as the student does
not.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from petseg.data.oxford_pets import Task
from petseg.errors import PetsegError
from petseg.models import normalise


class Teacher:
    """Logits of a finished run, without gradient."""

    def __init__(self, model: nn.Module, autocast: torch.autocast) -> None:
        self.model = model.eval().requires_grad_(False)
        self.autocast = autocast

    def __call__(self, images: Tensor) -> Tensor:
        """Returns logits float32 [N, C, H, W] of images float32 [N, 3, H, W] in 0..1."""
        with torch.no_grad(), self.autocast:
            images = normalise(images, self.model).contiguous(memory_format=torch.channels_last)
            logits: Tensor = self.model(images)
        return logits.float()


def check_classes(run: Path, task: Task, wanted: Task) -> None:
    """Checks that a teacher knows the classes that its student is to learn.

    Raises:
        PetsegError: it does not.
    """
    if task.classes != wanted.classes:
        raise PetsegError(
            f"train.teacher {run}: its classes are {', '.join(task.classes)}, this run's {', '.join(wanted.classes)}; "
            "take a teacher of the same data.task"
        )


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns the mean over pixels of KL(teacher || student) in nats, times the squared temperature; best 0.

    The factor keeps the gradient's size whatever the temperature (section 2.1 of the paper).

    Args:
        logits: float [N, C, H, W].
        teacher: of the same shape.
        temperature: divides both.
    """
    student = F.log_softmax(logits.float() / temperature, dim=1)
    target = F.log_softmax(teacher.float() / temperature, dim=1)
    return (target.exp() * (target - student)).sum(dim=1).mean() * temperature**2
