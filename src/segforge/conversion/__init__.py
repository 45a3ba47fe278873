"""From a checkpoint to an ONNX file that is compared with it before it is accepted."""
