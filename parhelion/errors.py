"""Every error that a user may meet. Each message names the thing, the value, the limit and the way out."""


class ParhelionError(Exception):
    """Base of all errors raised on purpose by this package."""


class InvalidRequestError(ParhelionError, ValueError):
    """A request cannot be served as it stands (HTTP 400).

    Attributes:
        param: the name of the offending parameter, as the client spells it, or None.
        code: a short machine-readable code.
    """

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class QueueFullError(ParhelionError):
    """More requests are waiting than the engine was told to hold (HTTP 429)."""


class EngineDeadError(ParhelionError):
    """The engine process ended; its requests are lost (HTTP 503)."""


class RequestsLostError(EngineDeadError):
    """One of several engines ended.

    Attributes:
        request_ids: what it was to compute.
        others_serve: sent again, that would run elsewhere.
    """

    def __init__(self, message: str, request_ids: list[str], others_serve: bool) -> None:
        super().__init__(message)
        self.request_ids = request_ids
        self.others_serve = others_serve


class ConfigError(ParhelionError, ValueError):
    """An option of the engine or the server is unusable, alone or beside the others."""


class ModelNotFoundError(ParhelionError):
    """No model answers to the name, and it cannot be fetched."""


class CheckpointError(ParhelionError):
    """A checkpoint is damaged, incomplete, or of a kind that is not supported."""


class PackError(ParhelionError):
    """A pack is damaged, incomplete, of another version, or made for something else."""


class OutOfMemoryError(ParhelionError):
    """The device has too little free memory for the weights or for a useful KV cache."""


def error_of_kind(kind: str, message: str) -> ParhelionError:
    """An error that another process met, under its own class if a start may fail with that, else as a dead engine's."""
    known: tuple[type[ParhelionError], ...] = (CheckpointError, ConfigError, ModelNotFoundError, OutOfMemoryError)
    classes = {each.__name__: each for each in known}
    return classes.get(kind, EngineDeadError)(message)


def first_line(error: Exception) -> str:
    """An error, whoever raised it, in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
