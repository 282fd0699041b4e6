"""Any ONNX file as a network of one architecture, whose layers' precisions are searched."""
