"""Made-up outputs of a network for clips of signs."""

import numpy as np

from asl_triton.presets import PRESETS
from asl_triton.teaching.dictionary import SignDictionary, TaughtModel
from asl_triton.teaching.embedding import Embedding, embed_clip

NUM_FEATURES, NUM_CLASSES, NUM_STEPS = 64, 6, 7
MODEL = TaughtModel("a" * 64, "fp32", PRESETS["wlasl"].to_json())


def show(sign: int, take: int, spread: float = 0.3) -> Embedding:
    """Return the embedding of a clip of a sign. The smaller the spread, the more alike are a sign's takes."""
    return embed_clip(*answer(sign, take, spread))


def answer(sign: int, take: int, spread: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Return the features (F,) and step logits (S, C) of such a clip."""
    typical, noise = np.random.default_rng(sign), np.random.default_rng((sign, take))
    features = typical.random(NUM_FEATURES) + spread * noise.random(NUM_FEATURES)
    steps = typical.normal(size=(NUM_STEPS, NUM_CLASSES)) + spread * noise.normal(size=(NUM_STEPS, NUM_CLASSES))
    return features.astype(np.float32), steps.astype(np.float32)


def teach(signs: int, takes: int, spread: float = 0.3) -> SignDictionary:
    """Build a dictionary of `sign0`, `sign1`, ... with the given number of examples each."""
    dictionary = SignDictionary(MODEL)
    for sign in range(signs):
        for take in range(takes):
            dictionary.add(f"sign{sign}", show(sign, take, spread), source=f"sign{sign}/{take}.mp4")
    return dictionary
