"""A transport that answers with taught signs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from asl_triton.errors import DictionaryError
from asl_triton.models.card import ModelCard
from asl_triton.models.served import FEATURES, LOGITS, PRESET_PARAMETER, STEP_LOGITS, ServedModel, read_model
from asl_triton.teaching.dictionary import SignDictionary
from asl_triton.teaching.embedding import Embedding, embed_clip
from asl_triton.transport.base import Array, ModelDescription, TensorSpec, Transport, TransportDecorator

CHECKPOINT_PARAMETER = "asl_triton.checkpoint_sha256"
CONTEXT_STEPS = 3  # on each side of a step, used to recognize what is signed there
# A quantile of the examples' energies. A clip with a higher energy looks more like one of the model's own signs. A
# higher quantile favors the taught signs over the model's own (`python -m tests.benchmarks.teaching --together`).
USUAL = 0.5
KNOWN_FROM = 0.5  # confidence; below it for all signs, "none of them" is more likely
MAX_LOG_CONFIDENCE = -1e-7


class DictionaryTransport(TransportDecorator):
    """Makes a served model answer with a dictionary's signs, computed from the model's features and step logits.

    Its callers see a model with those glosses, so recognition, timelines and live spotting work as with any model. The
    sigmoid of a logit is the confidence of `SignClassifier`. If all are below one half, the clip shows none of the
    signs and the answer is unsure. With `with_vocabulary`, such a clip gets one of the model's own glosses instead.
    """

    def __init__(self, transport: Transport, dictionary: SignDictionary, *, with_vocabulary: bool = False) -> None:
        super().__init__(transport)
        self._dictionary, self._with_vocabulary = dictionary, with_vocabulary
        self._own_labels: dict[str, tuple[str, ...]] = {}  # by model, if they compete

    async def describe(self, model: str) -> ModelDescription:
        """Describe the model as if it had the dictionary's glosses.

        Raises:
            DictionaryError: the signs were taught with another model.
        """
        description = await self.transport.describe(model)
        if PRESET_PARAMETER not in description.parameters:
            return description
        served = ServedModel.from_description(description, self.address)
        self._dictionary.check_model(served, self.address)
        num_classes = len(await self._labels(model))
        outputs = dict(description.outputs)
        outputs[LOGITS] = TensorSpec("FP32", (-1, num_classes))
        outputs[STEP_LOGITS] = TensorSpec("FP32", (-1, -1, num_classes))
        parameters = {
            **description.parameters,
            PRESET_PARAMETER: replace(served.preset, score="sigmoid").to_json(),
            # A changed dictionary counts as another model, so that journaled clips are recognized again.
            CHECKPOINT_PARAMETER: f"{served.checkpoint_sha256}+{self._dictionary.hash()}",
            **ModelCard(
                purpose=f"{len(self._dictionary):,} taught signs", caveat=served.card.caveat, min_confidence=KNOWN_FROM
            ).to_parameters(),
        }
        return replace(description, outputs=outputs, parameters=parameters, labeled=frozenset({LOGITS}))

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        asked = list(dict.fromkeys((FEATURES, STEP_LOGITS, *outputs)))
        answers = await self.transport.infer(model, inputs, asked, priority, parameters)
        result = {}
        for output in outputs:
            if output == LOGITS:
                pairs = zip(answers[FEATURES], answers[STEP_LOGITS], strict=True)
                embeddings = [embed_clip(features, steps) for features, steps in pairs]
                result[output] = await self._classify(model, embeddings, answers[LOGITS])
            elif output == STEP_LOGITS:
                clips = zip(answers[FEATURES], answers[STEP_LOGITS], strict=True)
                steps = [await self._classify(model, embed_steps(*clip), clip[1]) for clip in clips]
                result[output] = np.stack(steps)
            else:
                result[output] = answers[output]
        return result

    async def classify(self, model: str, inputs: Mapping[str, Array], output: str, count: int) -> list[tuple[int, str]]:
        logits = (await self.infer(model, inputs, [output]))[output][0]
        labels = await self._labels(model)
        return [(int(index), labels[index]) for index in np.argsort(-logits, kind="stable")[:count]]

    async def _classify(self, model: str, embeddings: Sequence[Embedding], own_logits: Array) -> Array:
        """Return the logits (N, K) of embeddings. `own_logits` (N, C) are the model's, used if its glosses compete."""
        if self._with_vocabulary:
            return combine_logits(self._dictionary, embeddings, own_logits, await self._read_own_labels(model))
        return compute_logits(self._dictionary, embeddings).astype(np.float32)

    async def _labels(self, model: str) -> tuple[str, ...]:
        """Return the taught glosses, followed by the model's other glosses if they compete."""
        own = await self._read_own_labels(model) if self._with_vocabulary else ()
        return combine_glosses(self._dictionary, own)

    async def _read_own_labels(self, model: str) -> tuple[str, ...]:
        if model not in self._own_labels:
            self._own_labels[model] = (await read_model(self.transport, model)).labels
        return self._own_labels[model]


def embed_steps(features: Array, step_logits: Array) -> list[Embedding]:
    """Compute the embeddings of the S steps of one window from its features (F,) and step logits (S, C).

    Each step is embedded with up to `CONTEXT_STEPS` steps before and after it, as if they were a clip. With fewer, more
    signs of a film are missed, and more are reported that are not there.
    """
    places = range(len(step_logits))
    return [
        embed_clip(features, step_logits[max(place - CONTEXT_STEPS, 0) : place + CONTEXT_STEPS + 1]) for place in places
    ]


def combine_glosses(dictionary: SignDictionary, own_labels: Sequence[str]) -> tuple[str, ...]:
    """Return the taught glosses, followed by the model's other glosses."""
    return tuple(dict.fromkeys((*dictionary.glosses, *own_labels)))


def compute_logits(dictionary: SignDictionary, embeddings: Sequence[Embedding]) -> npt.NDArray[np.float64]:
    """Compute the logits (N, K) of the taught signs.

    Raises:
        DictionaryError: the dictionary has no signs, or its embeddings have another length, as in a modified file.
    """
    classifier, vectors = dictionary.classifier(), np.stack([embedding.vector for embedding in embeddings])
    if vectors.shape[1] != dictionary.vectors().shape[1]:
        raise DictionaryError(
            f"the dictionary's embeddings have {dictionary.vectors().shape[1]:,} values, but this model's have "
            f"{vectors.shape[1]:,}: the file was modified, so teach its clips again"
        )
    return classifier.logits(vectors)


def combine_logits(
    dictionary: SignDictionary, embeddings: Sequence[Embedding], own_logits: Array, own_labels: Sequence[str]
) -> Array:
    """Compute the logits (N, K) of the glosses of `combine_glosses` from the model's own logits (N, C).

    A clip with a higher energy than usual for the examples is less likely to show a taught sign. The probability that
    it shows none of them is shared among the model's own glosses by their softmax.
    """
    place = {gloss: number for number, gloss in enumerate(combine_glosses(dictionary, own_labels))}
    usual = np.quantile(dictionary.energies(), USUAL)
    energies = np.array([embedding.energy for embedding in embeddings])
    logits = compute_logits(dictionary, embeddings) - (energies - usual)[:, None]
    none_taught = -np.logaddexp(0, logits.max(axis=1, keepdims=True))
    shares = own_logits - np.logaddexp.reduce(own_logits.astype(np.float64), axis=1, keepdims=True)
    log_own = np.minimum(none_taught + shares, MAX_LOG_CONFIDENCE)
    combined = np.full((len(logits), len(place)), -np.inf)
    combined[:, : logits.shape[1]] = logits
    columns = [place[gloss] for gloss in own_labels]
    combined[:, columns] = np.maximum(combined[:, columns], log_own - np.log(-np.expm1(log_own)))
    return combined.astype(np.float32)
