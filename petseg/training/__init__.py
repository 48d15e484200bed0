"""Training: device, loop, optimiser, checkpoints, losses, run folders."""
