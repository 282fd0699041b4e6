"""Trials of one request, stored so that a run killed at any moment goes on where it was."""
