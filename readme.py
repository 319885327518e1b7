"""Stub."""


def fill_readme(args):
    """x."""
