"""Training of the detector, the landmark and the retrieval branch, and calibration of the verdict."""
