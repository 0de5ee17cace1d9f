"""FP8 weights with the scales stored beside them, as each format reads and writes them."""
