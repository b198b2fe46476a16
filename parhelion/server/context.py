"""What all endpoints share: the engine, the limits, the counters."""

from __future__ import annotations

from dataclasses import dataclass

from parhelion.config import ServerConfig
from parhelion.errors import EngineDeadError
from parhelion.server.admission import Admission
from parhelion.server.engine_client import EngineClient
from parhelion.server.errors import ModelNotServedError
from parhelion.server.metrics import ServerMetrics


@dataclass(frozen=True)
class ServingContext:
    """One application's parts. ``created`` is the Unix time of its start, shown as the model's."""

    engine: EngineClient
    config: ServerConfig
    metrics: ServerMetrics
    admission: Admission
    created: int

    @property
    def model_name(self) -> str:
        """The name that answers carry."""
        return self.config.served_model_name or self.engine.model_name

    def serves(self, model: str) -> bool:
        """Whether a client may ask for the model under this name."""
        return model in (self.model_name, self.engine.model_name)

    def check_model(self, model: str | None) -> None:
        """A body without a model means the one that is served.

        Raises:
            ModelNotServedError: it names another.
        """
        if model is not None and not self.serves(model):
            raise ModelNotServedError(
                f"The model {model[:200]!r} does not exist here; this server serves {self.model_name!r}"
            )

    def check_alive(self) -> None:
        """Raises EngineDeadError if nothing can be served any more."""
        if self.engine.is_dead:
            raise EngineDeadError("The engine has ended and serves nothing more: the server must be restarted")
