"""Packages that are installed already: nothing to fetch, whatever is required."""

load("@pypi//:names.bzl", "NAMES")

def requirement(name):
    if name not in NAMES:
        fail("%s is no package that setup.py requires" % name)
    return "@pypi//:" + name
