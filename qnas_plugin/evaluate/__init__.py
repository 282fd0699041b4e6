"""Candidates to measured trials: here, in other processes, or on a cluster."""
