"""Data for the seizure detector of ``brainmaze-eeg-models``: synthetic, so only likeness to FP32 means much."""

from __future__ import annotations

import numpy as np

CLIPS, RATE, SECONDS, BINS = 150, 500, 60, 100


def spectrograms() -> dict[str, np.ndarray]:
    """A minute of noise that falls with frequency, some with rhythmic bursts; a column for each half second."""
    rng = np.random.default_rng(0)
    clips = np.empty((CLIPS, BINS, 2 * SECONDS - 1), np.float32)
    time = np.arange(SECONDS * RATE) / RATE
    for i in range(CLIPS):
        spectrum = np.fft.rfft(rng.normal(size=len(time)))
        signal = np.fft.irfft(spectrum / np.maximum(np.arange(len(spectrum)), 1) ** 0.5)
        signal /= signal.std()
        for _ in range(rng.integers(0, 3)):
            begin, pitch = rng.uniform(0, 50), rng.uniform(2, 12)
            burst = np.abs(np.sin(np.pi * pitch * time)) ** 8 * np.exp(-(((time - begin - 5) / 4) ** 2))
            signal += rng.uniform(2, 10) * burst
        windows = np.lib.stride_tricks.sliding_window_view(signal, RATE)[:: RATE // 2] * np.hanning(RATE)
        power = np.abs(np.fft.rfft(windows))[:, :BINS].T ** 2
        clips[i] = (power - power.mean(axis=1, keepdims=True)) / power.std(axis=1, keepdims=True)
    return {"x": clips}
