"""Typed ONNX: the graph in the numeric type that the engine runs."""
