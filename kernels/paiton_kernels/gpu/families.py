"""The kernel families of GPU targets, by name."""

from __future__ import annotations

from paiton_kernels.gpu.all_gather import ALL_GATHER
from paiton_kernels.gpu.all_reduce import ALL_REDUCE
from paiton_kernels.gpu.argmax import ARGMAX
from paiton_kernels.gpu.attention import ATTENTION
from paiton_kernels.gpu.embed import EMBED
from paiton_kernels.gpu.expert_linear import EXPERT_LINEAR
from paiton_kernels.gpu.expert_sum import EXPERT_SUM
from paiton_kernels.gpu.linear import LINEAR
from paiton_kernels.gpu.norm import NORM
from paiton_kernels.gpu.quantize import QUANTIZE
from paiton_kernels.gpu.rope_table import ROPE_TABLE
from paiton_kernels.gpu.route import ROUTE
from paiton_kernels.gpu.route_order import ROUTE_ORDER
from paiton_kernels.gpu.sample import SAMPLE_CHAIN
from paiton_kernels.gpu.sample_history import HISTORY
from paiton_kernels.gpu.schedule import SCHEDULE

_FORWARD = (EMBED, ROPE_TABLE, NORM, QUANTIZE, LINEAR, SCHEDULE, ATTENTION)
_EXPERTS = (ROUTE, ROUTE_ORDER, EXPERT_LINEAR, EXPERT_SUM)
_COLLECTIVE = (ALL_REDUCE, ALL_GATHER, ARGMAX)

FAMILIES = {spec.family: spec for spec in (*_FORWARD, *_EXPERTS, *_COLLECTIVE, *SAMPLE_CHAIN, HISTORY)}
