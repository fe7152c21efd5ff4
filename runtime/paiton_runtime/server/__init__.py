"""The OpenAI-compatible server: HTTP and JSON around the engine. Nothing here is imported before `paiton-run serve`."""
