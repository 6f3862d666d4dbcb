"""The errors of asl-triton. Every message says what happened, to which file or model, and what to do next.

AslTritonError
├── VideoError       a clip could not be read, or exceeds a limit
├── ServerError      the server did not answer: down, overloaded, too slow, or it refused the caller
│   ├── ConnectionLostError    the connection could not be made, or broke
│   └── BusyError              every server was full or shutting down; retry later
├── ContractError    the served model does not match asl-triton's contract
├── CheckpointError  a checkpoint could not be read, or is not an I3D
├── LabelsError      labels do not fit the model: wrong number, empty, or duplicates
└── DictionaryError  taught signs could not be read or changed, or belong to another model
"""


class AslTritonError(Exception):
    """Base class of every error that asl-triton raises because of a caller, a file or a server."""


class VideoError(AslTritonError):
    """A clip could not be read, or exceeds a limit."""


class ServerError(AslTritonError):
    """The server did not answer: it is down, overloaded or too slow, or it refused the caller."""


class ConnectionLostError(ServerError):
    """The connection to the server could not be made, or broke. Retry the request when the server is back."""


class BusyError(ServerError):
    """Every server was full or shutting down. Retry the request later."""


class ContractError(AslTritonError):
    """The served model does not match asl-triton's contract."""


class CheckpointError(AslTritonError):
    """A checkpoint could not be read, or is not an I3D."""


class LabelsError(AslTritonError):
    """The labels do not fit the checkpoint or the served model."""


class DictionaryError(AslTritonError):
    """A dictionary of taught signs could not be read or changed, or belongs to another model."""
