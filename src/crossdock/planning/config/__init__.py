"""From the configuration keys of a format to the canonical configuration, every field with its origin."""
