"""From logits to glosses and segments."""
