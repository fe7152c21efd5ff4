"""The cpu target: every launch is a C kernel that a thread team runs; plans are shared by all levels."""
