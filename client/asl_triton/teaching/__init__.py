"""Recognizes new signs from a few examples each, without training, by the embeddings that every model returns."""
