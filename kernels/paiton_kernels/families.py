"""The kernel families of the cpu target, by name."""

from __future__ import annotations

from paiton_kernels.all_reduce import ALL_REDUCE
from paiton_kernels.attention import ATTENTION
from paiton_kernels.embed import EMBED
from paiton_kernels.expert_sum import EXPERT_SUM
from paiton_kernels.experts import EXPERTS
from paiton_kernels.history import HISTORY
from paiton_kernels.linear import LINEAR
from paiton_kernels.norm_add import NORM_ADD
from paiton_kernels.pack import PACK
from paiton_kernels.rope_kv import ROPE_KV
from paiton_kernels.rope_table import ROPE_TABLE
from paiton_kernels.route import ROUTE
from paiton_kernels.router import ROUTER
from paiton_kernels.sample import SAMPLE

_SPECS = (
    ROPE_TABLE,
    EMBED,
    PACK,
    LINEAR,
    ROPE_KV,
    ATTENTION,
    ROUTER,
    ROUTE,
    EXPERTS,
    EXPERT_SUM,
    ALL_REDUCE,
    NORM_ADD,
    SAMPLE,
    HISTORY,
)

FAMILIES = {spec.family: spec for spec in _SPECS}
