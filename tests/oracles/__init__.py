"""Independent answers to hold crossdock against: real programs, and rules written without its layout
files."""
