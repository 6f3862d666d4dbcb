"""Fine-tuning of a checkpoint on labeled clips."""
