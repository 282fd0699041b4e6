"""FP32 ONNX and a precision policy to mixed ONNX, verified as it is written and as it is executed."""
