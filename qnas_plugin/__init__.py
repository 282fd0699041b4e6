"""Joint search of sub-network and INT8/FP32 precision for ONNX models on server CPUs."""

__version__ = "0.1.0"
