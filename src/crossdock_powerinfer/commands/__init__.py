"""The commands that crossdock's command line has for PowerInfer; loaded when they are asked for."""
