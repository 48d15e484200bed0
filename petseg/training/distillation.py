"""Distillation: a student learns the class probabilities of a trained model beside the labels.

Hinton et al., 2015, arXiv 1503.02531, at temperature 1; teacher and student see the same augmented image, as Beyer et
al., 2021, arXiv 2106.05237, found best.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from petseg.training.inference import Network


def distillation_loss(logits: Tensor, taught: Tensor) -> Tensor:
    """Returns the mean over pixels of KL(teacher || student), in nats, of logits [N, C, H, W] of both; best 0."""
    own, wanted = (some.float().log_softmax(dim=1) for some in (logits, taught))
    return F.kl_div(own, wanted, log_target=True, reduction="none").sum(dim=1).mean()


def lesson(teacher: Network, images: Tensor) -> Tensor:
    """Returns the teacher's logits [N, C, H, W] of images float32 [N, 3, H, W] in 0..1, without gradient."""
    with torch.no_grad():
        return teacher.logits(images)
