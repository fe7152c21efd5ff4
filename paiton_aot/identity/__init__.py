"""What a build depends on, as one key: the same key means the same bytes."""
