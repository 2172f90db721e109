"""Training: one function a way of training, run by the cluster on every worker, resumable from its own checkpoints."""
