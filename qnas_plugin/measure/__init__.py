"""ONNX files to numbers: scores, sizes and milliseconds, and what is believed of them."""
