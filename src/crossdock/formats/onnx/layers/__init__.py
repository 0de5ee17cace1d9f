"""The layers of the reference forward (`model.layers`) as ONNX nodes, one module for each of its modules."""
