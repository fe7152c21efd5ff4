"""From an open checkpoint to everything that can be known without reading weights: program, layout, plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paiton_aot.blob_layout import blob_size, lay_out
from paiton_aot.checkpoint.base import Checkpoint, ModelConfig
from paiton_aot.models import architecture_of
from paiton_aot.models.frequencies import scaling_name
from paiton_aot.models.storage import Storage
from paiton_aot.options import BuildOptions
from paiton_aot.program import Program
from paiton_aot.scales import with_scales
from paiton_aot.targets.cpu.plans import MAX_TOKENS, CpuPlans, make_plans
from paiton_aot.targets.shape import Shape
from paiton_aot.weights import WeightSpec, check_tp
from paiton_artifacts.schema import ExpertFacts, ModelFacts, Rope, Tensor


@dataclass(frozen=True, slots=True)
class Lowered:
    """A model as it will be written."""

    facts: ModelFacts
    program: Program
    specs: Sequence[WeightSpec]
    tensors: Sequence[Tensor]
    blob_bytes: int
    shape: Shape
    cpu: CpuPlans


def lower(checkpoint: Checkpoint, options: BuildOptions) -> Lowered:
    """Settles every choice of a build.

    Raises:
        UnsupportedError: the architecture, a format or a shape is not one that we handle.
        UsageError: flags that do not fit the model.
    """
    architecture = architecture_of(checkpoint)
    check_tp(checkpoint.config, options.tp)
    storage = Storage.settle(checkpoint, options)
    program = architecture.program(checkpoint, storage)
    specs = with_scales(checkpoint, architecture.weights(checkpoint, storage), options.tp)
    tensors = lay_out(specs, options.tp, checkpoint.config.kv_heads)
    facts = _facts(checkpoint, storage, options)
    limits = (options.max_num_batched_tokens or MAX_TOKENS, options.max_num_seqs, facts.max_model_len)
    shape = Shape.of(checkpoint.config, options.tp, storage.kv_cache, limits)
    size = blob_size(tensors)
    return Lowered(facts, program, specs, tensors, size, shape, make_plans(program, tensors, size, shape))


def _facts(checkpoint: Checkpoint, storage: Storage, options: BuildOptions) -> ModelFacts:
    config = checkpoint.config
    return ModelFacts(
        name=options.name or checkpoint.title,
        architecture=config.architecture,
        layers=config.layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        experts=_expert_facts(config),
        attention_heads=config.attention_heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        max_model_len=storage.context,
        rms_norm_eps=config.rms_norm_eps,
        rope=Rope(config.rope_theta, scaling_name(config.rope_scaling)),
        tied_embeddings=config.tied_embeddings,
        bos_token_id=config.bos_token_id,
        eos_token_ids=tuple(config.eos_token_ids),
        weights=storage.weights,
        lm_head=storage.lm_head,
        activations=storage.activations,
        kv_cache=storage.kv_cache,
    )


def _expert_facts(config: ModelConfig) -> ExpertFacts | None:
    if config.experts is None:
        return None
    layers = config.layers - len(config.experts.dense_layers)
    return ExpertFacts(layers, config.experts.count, config.experts.per_token, config.experts.intermediate_size)
