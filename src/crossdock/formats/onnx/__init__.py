"""ONNX as a target: a Hugging Face folder with a graph that points into its weights.

options, target   what is asked for, and the folder that comes of it
fields            which models the graph can express, field by field
graph, weights    nodes and values; canonical tensors as views of what is stored
layers            the model, as the reference forward has it
genai, source     the configuration of onnxruntime-genai; folders that are read, and what is wrong with their graphs
"""
