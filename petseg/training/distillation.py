"""Distillation: a student learns the class probabilities of a trained model beside the labels.

Hinton et al., 2015, arXiv 1503.02531, at temperature 1; teacher and student see the same augmented image, as Beyer et
al., 2021, arXiv 2106.05237, found best.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from petseg.data.dataset import Class
from petseg.errors import PetsegError
from petseg.training import checkpoint, runs
from petseg.training.device import Hardware
from petseg.training.inference import Network, run_network


def load_teacher(run: Path, classes: Sequence[Class], hardware: Hardware) -> Network:
    """Returns the best weights of a run, ready to teach; refuses a run of other classes."""
    config, data = runs.read_config(run), runs.read_data(run)
    known, wanted = ([entry.name for entry in some] for some in (data.classes, classes))
    if known != wanted:
        raise PetsegError(
            f"train.teacher {run}: knows {', '.join(known)}; wanted {', '.join(wanted)}: train one of these classes"
        )
    network = run_network(run, config.model, len(classes), hardware)
    checkpoint.load_weights(network.module, run / checkpoint.BEST)
    network.module.eval().requires_grad_(False)
    return network


def distillation_loss(logits: Tensor, taught: Tensor) -> Tensor:
    """Returns the mean over pixels of KL(teacher || student), in nats, of logits [N, C, H, W] of both; best 0."""
    own, wanted = (some.float().log_softmax(dim=1) for some in (logits, taught))
    return F.kl_div(own, wanted, log_target=True, reduction="none").sum(dim=1).mean()


def lesson(teacher: Network, images: Tensor) -> Tensor:
    """Returns the teacher's logits [N, C, H, W] of images float32 [N, 3, H, W] in 0..1, without gradient."""
    with torch.no_grad():
        return teacher.logits(images)
