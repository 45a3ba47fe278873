"""ONNX files: read, checked, rewritten, simplified; never with torch."""
