"""Candidate to FP32 ONNX: the supernet is exported once, a subnet is a slice of its graph."""
