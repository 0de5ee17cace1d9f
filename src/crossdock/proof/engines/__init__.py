"""Programs that compute logits, one child script a file; `registry` lists them and `ask` runs them."""
