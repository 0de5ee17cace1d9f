import numpy  # noqa: F401  # before ml_dtypes, whose extension would make an interrupt of this import another error
