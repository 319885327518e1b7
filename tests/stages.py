"""The numbered scripts in this process: tests run them and call their functions through here alone."""

import importlib


def module(name):
    """A script by name, such as "05_wild_constrained", for tests of its functions."""
    return importlib.import_module(name)


def stage(name, *arguments):
    """What main of a script returns, called with these arguments."""
    return module(name).main([str(argument) for argument in arguments])
