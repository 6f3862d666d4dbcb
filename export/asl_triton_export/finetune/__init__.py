"""Fine-tuning of a checkpoint on labelled clips."""
