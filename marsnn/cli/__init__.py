"""The command line; `marsnn.cli.main` holds the verbs."""
