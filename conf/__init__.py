"""Configuration files: ``default.yaml`` explains every key, the others override some."""
