"""Training through DeepSpeed: learner, schedules, packing, checkpoints."""
