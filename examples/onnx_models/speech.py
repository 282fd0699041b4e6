"""Data and metric for ``silero-vad``: the eight spoken recordings of Debian's ``alsa-utils``, in noise of its own."""

from __future__ import annotations

import os
import wave
from pathlib import Path

import numpy as np

SOUNDS = Path(os.environ.get("SOUNDS", "/usr/share/sounds/alsa"))
CLIPS, CHUNK, CONTEXT, CHUNKS = 600, 512, 64, 60


def clips() -> list[dict[str, np.ndarray]]:
    """Clips of 1.9 s at 16 kHz as one run of the model takes them, and which of the 60 chunks are spoken.

    A chunk is spoken where the recording alone, before the noise, is within 35 dB of its loudest chunk.
    """
    rng = np.random.default_rng(0)
    voices = [_read(path) for path in sorted(SOUNDS.glob("*_*.wav"))]
    noise = _read(SOUNDS / "Noise.wav")
    examples = []
    for i in range(CLIPS):
        voice, clean = voices[i % len(voices)], np.zeros(CHUNK * CHUNKS, dtype=np.float32)
        voice = voice[: int(rng.uniform(0.4, 1.0) * len(voice))] * rng.uniform(0.2, 1.0)
        start = int(rng.integers(0, len(clean) - len(voice)))
        clean[start : start + len(voice)] = voice
        energy = np.square(clean).reshape(CHUNKS, CHUNK).mean(axis=1)
        ground = np.resize(np.roll(noise, int(rng.integers(len(noise)))), len(clean))
        ratio = 10 ** (rng.uniform(0, 25) / 20)  # loudest speech to noise, in amplitude
        mixed = clean + ground / np.std(ground) * np.sqrt(energy.max()) / ratio
        padded = np.concatenate([np.zeros(CONTEXT), mixed])
        frames = np.stack([padded[k * CHUNK : (k + 1) * CHUNK + CONTEXT] for k in range(CHUNKS)])
        state = np.zeros((1, 1, 128), dtype=np.float32)
        examples.append(
            {
                "input": frames.astype(np.float32),
                "h": state,
                "c": state,
                "labels": energy > energy.max() * 10**-3.5,
            }
        )
    return examples


def decisions(outputs: dict[str, np.ndarray], labels: np.ndarray) -> np.ndarray:
    """The share of chunks in which the model is right."""
    return ((outputs["speech_probs"] > 0.5) == labels).mean(axis=-1)


def _read(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / 2**15
        samples = samples.reshape(-1, file.getnchannels()).mean(axis=1)
        step = file.getframerate() // 16_000
    return samples[: len(samples) // step * step].reshape(-1, step).mean(axis=1)
