"""Which sign is in a video? Asks Triton's `recognize_sign` over gRPC.

    pip install 'tritonclient[grpc]'
    python recognize_sign.py localhost:8001 clip.mp4

Prints `rank gloss confidence`, best first.
"""

import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc
from tritonclient.utils import InferenceServerException


def main(server: str, path: str) -> None:
    # One BYTES element: the file as it is, whatever its container. The server decodes it.
    video = tritonclient.grpc.InferInput("VIDEO", [1], "BYTES")
    video.set_data_from_numpy(np.array([Path(path).read_bytes()], dtype=np.object_))
    # Further inputs, where wanted: TOP_K (INT32 [1]), MIN_CONFIDENCE (FP32 [1]), SIGNER_BOX (FP32 [4]). Where the
    # server has several models, say which: infer(..., parameters={"model": "name"}).
    with tritonclient.grpc.InferenceServerClient(server) as client:
        answer = client.infer("recognize_sign", [video], client_timeout=60)
    ranked = zip(answer.as_numpy("GLOSS"), answer.as_numpy("CONFIDENCE"))  # noqa: B905 (Python 3.9 has no `strict`)
    for rank, (gloss, confidence) in enumerate(ranked, start=1):
        print(rank, gloss.decode(), f"{confidence:.4f}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python recognize_sign.py SERVER VIDEO")
    try:
        main(*sys.argv[1:])
    except OSError as exc:
        sys.exit(f"cannot read {sys.argv[2]}: {exc.strerror}")
    except InferenceServerException as exc:
        sys.exit(exc.message())
