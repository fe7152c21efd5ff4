"""C kernels for x86-64, and what compiles them."""
