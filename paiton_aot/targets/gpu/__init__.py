"""GPU targets: programs as chains of Triton kernels, planned per device profile. Needs the `gpu` extra."""
