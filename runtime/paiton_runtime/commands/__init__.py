"""The subcommands of `paiton-run`, one module each with a `run(args)`; imported when asked for."""
