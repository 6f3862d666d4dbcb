"""The errors of asl-triton. Every message says what happened, to which file or model, and what to do next.

AslTritonError
├── VideoError       a clip could not be read, or is beyond a limit
├── ServerError      no answer from the server: away, overloaded, too slow, or it refused the caller
│   ├── ConnectionLostError    no connection came about, or it broke
│   └── BusyError              none had room for the request, or all were stopping: it may be sent again later
├── ContractError    the served model is not one we can talk to
├── CheckpointError  a checkpoint could not be read, or is of another network
├── LabelsError      labels that do not fit: wrong number, empty, twice the same
└── DictionaryError  taught signs that cannot be read, or that belong to another model
"""


class AslTritonError(Exception):
    """Root of all errors that asl-triton raises for what a caller, a file or a server did."""


class VideoError(AslTritonError):
    """A clip could not be read, or is beyond a limit."""


class ServerError(AslTritonError):
    """The server gave no answer: away, overloaded, too slow, or it refused the caller."""


class ConnectionLostError(ServerError):
    """No connection to the server came about, or it broke: the same request may be answered when the server is back."""


class BusyError(ServerError):
    """No server had room for the request, or all were stopping: the same request may be answered later."""


class ContractError(AslTritonError):
    """The served model is not one that asl-triton can talk to."""


class CheckpointError(AslTritonError):
    """A checkpoint could not be read, or holds another network than I3D."""


class LabelsError(AslTritonError):
    """Labels that do not fit the checkpoint or the served model."""


class DictionaryError(AslTritonError):
    """A dictionary of taught signs cannot be read or changed, or belongs to another model."""
