"""Measuring PS-Net: detection, landmarks, retrieval, verdicts and ablations, with intervals."""
