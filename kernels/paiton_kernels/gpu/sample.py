"""``sample``: from logits to the next token of every row, as a chain of five launches.

Order of operations: biases (logit_bias) and mask; repetition, then frequency and presence penalties; temperature; min-p
(before top-k, so dropped tokens do not count there); top-k; top-p; draw. From top-k on it is the CPU's
:mod:`paiton_kernels.sample`: equal logits rank by lower id, the draw walks the kept tokens by id against u times their
mass, with u the 53-bit uniform of Philox4x32-10. Temperature 0 takes the most probable token after biases, mask and
penalties; NaN counts as -inf. If no token is left (all are masked, or -inf), token 0 is taken. Reported
log-probabilities and ranks are of the logits as they came, before biases, mask, penalties and temperature.

==================  =================  ==========================================================================
launch              blocks             does
==================  =================  ==========================================================================
sample_process      rows x chunks      biases, mask, penalties; largest logits and the sum of exponentials by chunk
sample_histogram    rows x chunks      masses by chunk, a row's histogram, what of a chunk may be among the best
sample_candidates   rows x chunks      gathers the tokens that the limits of top-k and top-p lie among
sample_draw         rows               exact limits, draw
sample_report       rows x chunks + 1  rank, log-probability, best tokens; last token, counts, end of the request
==================  =================  ==========================================================================

Every launch reads a row at most once, and greedy rows only twice in all; nothing is sorted. All sums that decide are
of integers, so the same inputs give the same token whatever the order of blocks and whatever the batch. Between its
launches the chain keeps :data:`SAMPLE_SCRATCH`; nothing in it has to be cleared before or outlives a step.
"""

from __future__ import annotations

from paiton_kernels.gpu.sample_args import SAMPLE_SCRATCH
from paiton_kernels.gpu.sample_candidates import SAMPLE_CANDIDATES
from paiton_kernels.gpu.sample_draw import SAMPLE_DRAW
from paiton_kernels.gpu.sample_histogram import SAMPLE_HISTOGRAM
from paiton_kernels.gpu.sample_process import SAMPLE_PROCESS
from paiton_kernels.gpu.sample_report import SAMPLE_REPORT

SAMPLE_CHAIN = (SAMPLE_PROCESS, SAMPLE_HISTOGRAM, SAMPLE_CANDIDATES, SAMPLE_DRAW, SAMPLE_REPORT)
"""In launch order; all with the same constant VOCAB, rows as in the bucket's requests."""

__all__ = ["SAMPLE_CHAIN", "SAMPLE_SCRATCH"]
