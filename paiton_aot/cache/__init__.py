"""The build cache: finished bundles by build key, in a directory or in an object store."""
