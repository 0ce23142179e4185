"""The command line; `abe.cli` is its entry point and `abe._cli.app` defines the commands."""
