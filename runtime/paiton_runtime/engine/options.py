"""How the engine serves, and what follows from that and from a bundle's plans."""

from __future__ import annotations

from paiton_artifacts.errors import UsageError
from paiton_artifacts.record import dataclass
from paiton_runtime.engine.scheduler import Limits
from paiton_runtime.model import Model


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine serves.

    Attributes:
        max_num_seqs: requests that run at once; None: what the bundle's plans hold.
        max_num_batched_tokens: tokens of a step; None: likewise.
        max_prompt_tokens: of them, for prompts while others decode; None: a quarter, at least 64.
        max_model_len: positions of a request; None: the bundle's, or the KV cache where that is smaller.
        max_waiting: requests that may wait; more are refused.
        enable_prefix_caching: compute a prompt's beginning only once.
        step_timeout: seconds after which a step counts as lost, and the engine as dead.
    """

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_prompt_tokens: int | None = None
    max_model_len: int | None = None
    max_waiting: int = 1024
    enable_prefix_caching: bool = True
    step_timeout: float = 60.0


def context_of(model: Model, options: EngineOptions) -> int:
    """Returns the positions that a request may have.

    Raises:
        UsageError: more are wanted than the bundle's plans allow.
    """
    wanted = options.max_model_len
    if wanted is None:
        return model.context_tokens
    if not 0 < wanted <= model.manifest.model.max_model_len:
        limit = model.manifest.model.max_model_len
        raise UsageError(f"max_model_len {wanted} is not within 1 .. {limit}", hint="build the bundle again")
    return min(wanted, model.context_tokens)


def limits_of(model: Model, options: EngineOptions) -> Limits:
    """Returns what a step may hold.

    Raises:
        UsageError: an option exceeds what the bundle's plans hold.
    """
    memory = model.memory
    for name, value, most in (
        ("max_num_seqs", options.max_num_seqs, memory.max_requests),
        ("max_num_batched_tokens", options.max_num_batched_tokens, memory.max_tokens),
    ):
        if value is not None and not 0 < value <= most:
            raise UsageError(f"{name} {value} is not within 1 .. {most}", hint="build the bundle again for more")
    requests = options.max_num_seqs or memory.max_requests
    tokens = options.max_num_batched_tokens or memory.max_tokens
    prompt_tokens = min(tokens, options.max_prompt_tokens or max(64, tokens // 4))
    return Limits(tokens, prompt_tokens, min(requests, tokens), memory.max_requests)
