"""The training state and step, checkpoints, losses and logs."""
