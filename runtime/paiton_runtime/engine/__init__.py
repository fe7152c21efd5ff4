"""The engine: many requests at once on one booted model, by continuous batching over a paged KV cache."""
