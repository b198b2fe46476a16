"""Several GPUs as one: what to plan them with, and the groups of ranks that share a model's layers."""
