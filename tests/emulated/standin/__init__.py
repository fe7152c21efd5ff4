"""Stand-ins for the driver libraries of GPUs, on machines without one.

``libamdhip64.so`` and ``libcuda.so.1`` are generated from the vendors' headers, so that every function has exactly the
declared parameters, and their calls are served here: kernels for AMD run in the emulator (tests/emulated/cdna), those
for NVIDIA are recorded. What they do is a reading of the documentation, not evidence of what a real driver does; they
are stricter: work that is not waited for does not happen, and misuse is an error that says why.
"""
