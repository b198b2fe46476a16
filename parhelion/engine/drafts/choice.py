"""Who guesses tokens ahead: what the options ask for, and whether it fits the model. Nothing is loaded here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from parhelion.config import EngineConfig
from parhelion.errors import CheckpointError, ConfigError
from parhelion.models.checkpoint import read_model_config
from parhelion.models.config import ModelConfig
from parhelion.models.eagle3_config import Eagle3Config, check_fits, is_eagle3, read_eagle3_config
from parhelion.models.resolve import resolve_model
from parhelion.models.tokenizer import Tokenizer, load_tokenizer
from parhelion.speculative import Drafting, DraftingAhead, NgramProposer, Pace, Speculation, Speculator


@dataclass(frozen=True)
class DraftChoice:
    """A model, or a head, that guesses for another one.

    Attributes:
        path: a folder or a ``.gguf`` file.
        config: dimensions of what it keeps keys and values of.
        head: more about it if it is a head.
    """

    path: Path
    config: ModelConfig
    head: Eagle3Config | None = None


def read_draft(path: Path) -> DraftChoice:
    """The draft model or head at this path, whatever it is to guess for.

    Raises:
        CheckpointError: its configuration cannot be read.
    """
    if is_eagle3(path):
        head = read_eagle3_config(path)
        return DraftChoice(path, head.layer, head)
    return DraftChoice(path, read_model_config(path))


def choose_draft(config: EngineConfig, model_path: Path) -> DraftChoice | None:
    """The draft model or head that the options name, if any.

    Raises:
        ConfigError: it does not fit the model.
        ModelNotFoundError, CheckpointError: it is not there, or cannot be read.
    """
    if config.draft_model is None or config.speculate == "off":
        return None
    target = read_model_config(model_path)
    chosen = read_draft(resolve_model(config.draft_model))
    if chosen.head is not None:
        if config.speculate == "draft":
            raise ConfigError(f"{config.draft_model} is an EAGLE-3 head and no model of its own: choose eagle3 or auto")
        check_fits(chosen.head, target)
        return chosen
    if config.speculate == "eagle3":
        raise ConfigError(f"{config.draft_model} is no EAGLE-3 head: name one, or choose draft or auto")
    draft = chosen.config
    _check_vocabulary(config, target, draft, model_path, chosen.path)
    wanted = config.max_model_len or target.max_position
    if draft.max_position < wanted:
        raise ConfigError(
            f"the draft model {config.draft_model} was made for {draft.max_position} tokens, and requests may have "
            f"{wanted}: pass max_model_len {draft.max_position} or less, or another draft model"
        )
    return chosen


def _check_vocabulary(
    config: EngineConfig, target: ModelConfig, draft: ModelConfig, target_path: Path, draft_path: Path
) -> None:
    if draft.vocab_size != target.vocab_size:
        raise ConfigError(
            f"the draft model {config.draft_model} has {draft.vocab_size} tokens and {config.model} has "
            f"{target.vocab_size}: a draft model must have the same vocabulary"
        )
    if config.load_format == "dummy":
        return
    tokenizers: list[Tokenizer] = []
    for path in (target_path, draft_path):
        try:
            tokenizers.append(load_tokenizer(path))
        except CheckpointError:
            return  # A draft model needs no tokenizer: without one, equal sizes have to do.
    ours, theirs = tokenizers
    for token_id in range(min(ours.vocab_size, theirs.vocab_size)):
        if ours.token_bytes(token_id) != theirs.token_bytes(token_id):
            raise ConfigError(
                f"token {token_id} is {theirs.token_text(token_id)!r} to the draft model {config.draft_model} and "
                f"{ours.token_text(token_id)!r} to {config.model}: a draft model must have the same vocabulary"
            )


def speculator(
    config: EngineConfig, chosen: DraftChoice | None = None, cost: float = 1.0, on_gpu: bool = False
) -> Speculator | None:
    """Who guesses on behalf of the scheduler, if anyone does.

    Args:
        config: all options.
        chosen: the draft model, if there is one.
        cost: of a token that it computes over one of the target's.
        on_gpu: where both compute.
    """
    if config.speculate == "off":
        return None
    pace = Pace() if config.speculate == "auto" else None
    if chosen is not None:
        most, needs_states = config.num_speculative_tokens, chosen.head is not None
        if config.pp > 1:
            return DraftingAhead(most, cost, pace, needs_states)
        return Drafting(most, cost, pace, needs_states, on_device=on_gpu)
    return Speculation(NgramProposer(), config.num_speculative_tokens, pace)
