"""The module that PowerInfer's program calls to make a GPU index; crossdock does the work."""
