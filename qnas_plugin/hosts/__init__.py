"""Toolkits that people already use: Optimum, Neural Compressor, Olive, Optuna."""
