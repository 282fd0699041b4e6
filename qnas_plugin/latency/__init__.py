"""Additive tables of milliseconds: what the parts of a network take, fitted to whole networks."""
