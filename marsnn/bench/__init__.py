"""Measurements behind the figures in the docs; each prints its table and writes its JSON."""
