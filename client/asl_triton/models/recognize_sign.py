"""The contract of `recognize_sign`, the served model that takes a whole video file: names for client and server."""

import json
from typing import Any

from asl_triton.results import Recognition, SignerBox, to_json_values

RECOGNIZE_SIGN = "recognize_sign"
SIGN_MODELS = (RECOGNIZE_SIGN, "recognize_sign_stream")
VIDEO, TOP_K, MIN_CONFIDENCE, SIGNER_BOX = "VIDEO", "TOP_K", "MIN_CONFIDENCE", "SIGNER_BOX"
GLOSS, CONFIDENCE, CLASS_ID, LOGIT, DETAILS = "GLOSS", "CONFIDENCE", "CLASS_ID", "LOGIT", "DETAILS"
START_S, END_S = "START_S", "END_S"  # of the stream's windows
# Set by the program that starts Triton: the folders of its model repositories, joined by `os.pathsep`.
REPOSITORIES_VARIABLE = "ASL_TRITON_MODEL_REPOSITORIES"
# The fields of a recognition that the output DETAILS carries.
DETAIL_FIELDS = ("model", "num_frames", "duration_s", "num_windows", "decode_s", "wait_s", "warnings", "lost_frames")


def format_details(recognition: Recognition) -> str:
    """Format the JSON of the output DETAILS, which says how a recognition came about."""
    details = {name: getattr(recognition, name) for name in (*DETAIL_FIELDS, "unsure")}
    if recognition.signer is not None:
        details["signer"] = to_json_values(recognition)["signer"]
    return json.dumps(details)


def parse_details(text: str | bytes) -> dict[str, Any]:
    """Parse the fields of a `Recognition` that `format_details` wrote.

    Fields that later versions add are ignored, and so is `unsure`, which depends on the caller's threshold.
    """
    content = json.loads(text)
    details = {name: value for name, value in content.items() if name in DETAIL_FIELDS}
    box = None
    if signer := content.get("signer"):
        x0, y0, x1, y1 = signer["box"]
        box = SignerBox(x0, y0, x1, y1, signer["source"], signer["confidence"])
    return {**details, "warnings": tuple(details["warnings"]), "signer": box}
