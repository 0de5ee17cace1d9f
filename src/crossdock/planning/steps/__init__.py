"""The five steps of a plan, each from value to value: containers → sources → encodings → extras → assembly."""
