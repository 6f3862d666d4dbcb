"""Turns logits into glosses and segments."""
